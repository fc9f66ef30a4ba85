"""Changes to pages for the site alone.

- A link out of docs/ works where the repository is browsed. The site has only the path to show.
- A block of commands and their output becomes one block for each, so that a command is copied without its prompt.
"""

import re
from itertools import groupby

LINK_OUT = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)[^)]*\)")
SESSION = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = "$ "


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page as the site shows it."""
    return SESSION.sub(lambda found: _apart(found[1]), LINK_OUT.sub(r"`\1`", markdown))


def _apart(session: str) -> str:
    """Commands and output of a session, each in a block of its own."""
    blocks = []
    for is_command, lines in groupby(session.splitlines(), key=lambda line: line.startswith(PROMPT)):
        text = "\n".join(line.removeprefix(PROMPT) for line in lines)
        blocks.append(f"```{'sh' if is_command else 'text'}\n{text}\n```")
    return "\n\n".join(blocks)
