"""A judge of one's own: an answer counts if it shows the sum, `12 + 30 = 42`, and not its result alone."""


def solved(text: str, result: object) -> bool:
    """True if the generated `text` holds the line of working that the problem's `result` asks for."""
    return str(result) in text
