"""Rewrites links that leave docs/: they work where the repository is browsed, but the site can only show their path."""

import re

LINK_OUT = re.compile(r"\[[^\]]*\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with the path in place of each link out of docs/."""
    return LINK_OUT.sub(r"`\1`", markdown)
