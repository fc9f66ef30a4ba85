"""Changes to pages for the site alone.

- A link out of docs/ works where the repository is browsed. The site has only the path to show.
- A link whose text is the file's name has the title of the page, or of the part that it leads to.
- A block of commands and their output becomes one block for each, so that a command is copied without its prompt.
"""

import re
from functools import cache
from itertools import groupby
from pathlib import Path

DOCS = Path(__file__).parent
LINK_OUT = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)[^)]*\)")
BY_FILE = re.compile(r"\[(\w+\.md)\]\(\1(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
SESSION = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = "$ "


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page as the site shows it."""
    named = BY_FILE.sub(_titled, LINK_OUT.sub(r"`\1`", markdown))
    return SESSION.sub(lambda found: _apart(found[1]), named)


def _titled(link: re.Match[str]) -> str:
    headings = _headings(link[1])
    title = headings.get(link[2] or "", next(iter(headings.values())))
    return f"[{title}]({link[1]}{'#' * bool(link[2])}{link[2] or ''})"


@cache
def _headings(page: str) -> dict[str, str]:
    """Headings of a page by the anchor that the site gives each, its title first."""
    found = HEADING.findall((DOCS / page).read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\s-]", "", text).strip().lower().replace(" ", "-"): text for text in found}


def _apart(session: str) -> str:
    """Commands and output of a session, each in a block of its own."""
    blocks = []
    for is_command, lines in groupby(session.splitlines(), key=lambda line: line.startswith(PROMPT)):
        text = "\n".join(line.removeprefix(PROMPT) for line in lines)
        blocks.append(f"```{'sh' if is_command else 'text'}\n{text}\n```")
    return "\n\n".join(blocks)
