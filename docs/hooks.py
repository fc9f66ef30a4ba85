"""What mkdocs.yml cannot say: a link out of docs/ works where the repository is browsed; the site has only the path to show."""

import re

LINK_OUT = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with the path in place of each link out of docs/."""
    return LINK_OUT.sub(r"`\1`", markdown)
