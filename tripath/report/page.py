"""Pages for people: one HTML file that loads nothing, light and dark, on a phone as on a screen. All text is escaped."""

import base64
import hashlib
import html
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from npu.metrics import Table
from tripath.report.drawing import explained

SCRIPT = (Path(__file__).parent / "tables.js").read_text(encoding="utf-8")
"""The script that sorts and filters tables; without it they stay as they are."""
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
LONG = 28
"""A cell of more characters is broken into lines on a phone."""
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'"
"""The content security policy: a browser loads nothing from outside the page, and runs only this script."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: 64 120 192; --good: #1f7a33; --bad: #c22a2a; }
@media (prefers-color-scheme: dark) {
  :root { --good: #6cc784; --bad: #ff8a80; }
  body { background: #17191d; color: #e2e4e8; } a { color: #8ab4f8; }
  figure img { filter: invert(.9) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: .5rem 1rem 3rem; }
h1, p, summary { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .8rem 0 .4rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .4rem; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: .4rem 0; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th[aria-sort] { cursor: pointer; } th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; } .off { display: none; }
.tools { display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: baseline; font-size: .9em; }
.tools input[type=search] { font: inherit; max-width: 100%; padding: .15rem .4rem; }
.tools details { margin: 0; } .tools label { display: inline-block; margin-right: .8rem; overflow-wrap: anywhere; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
.note { white-space: normal; min-width: 11rem; max-width: 40rem; overflow-wrap: anywhere; }
tr:hover td { background: var(--soft); }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .4rem; background: var(--soft); }
figure { margin: .5rem 0 1.2rem; } figure img { display: block; max-width: 100%; border-radius: .4rem; }
figcaption, .caption { opacity: .8; font-size: .92em; max-width: 46rem; }
details { margin: .6rem 0; } summary { cursor: pointer; padding: .2rem 0; }
.verdict { font-size: 1.1rem; font-weight: 600; padding: .4rem .8rem; border-left: .35rem solid; background: var(--soft); }
.passed { color: var(--good); } .failed, .bad, .internal { color: var(--bad); font-weight: 600; }
.bar { display: inline-block; height: .75em; border-radius: 2px; background: rgb(var(--mark)); vertical-align: baseline; }
.block { display: grid; grid-template-columns: repeat(8, minmax(0, 5rem)); gap: 3px; margin: .2rem 0 .9rem; }
.token { background: rgb(var(--mark) / var(--late)); border: 1px solid var(--line); border-radius: 3px; padding: .1rem 0;
  text-align: center; font-size: .9rem; line-height: 1.3; overflow-wrap: anywhere; }
.token b { display: block; font-weight: 600; } .token small { opacity: .85; }
@media (max-width: 40rem) { td.long { white-space: normal; min-width: 7rem; }
  figure img { max-width: none; width: 36rem; } .token { font-size: .75rem; } }
"""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts that are HTML; its headings are listed on top."""
    headings = [re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', part) for part in parts]
    links = "".join(f'<a href="#{name}">{text}</a>' for found in headings for name, text in found)
    head = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n<h1>{_breakable(title)}</h1>"
    )
    first, *rest = parts
    return "\n".join([head, first, f"<nav>{links}</nav>", *rest, f"<script>{SCRIPT}</script>\n</html>\n"])


def heading(text: str) -> Markup:
    """The heading of a section, which the list on top leads to."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return Markup(f'<h2 id="{name}">{html.escape(text)}</h2>')


def verdict(text: str, *, good: bool) -> Markup:
    """The first line of a page."""
    return Markup(f'<p class="verdict {"passed" if good else "failed"}">{html.escape(text)}</p>')


def caption(text: str) -> Markup:
    """A paragraph in the style of a caption."""
    return Markup(f'<p class="caption">{html.escape(text)}</p>')


def table(rows: Table, extra: Collection[str] = ()) -> Markup:
    """A table that sorts and filters, in a box that scrolls where it is wider than the screen; columns of `extra` are shown
    when they are chosen."""
    texts = [not any(_numeric(row[at]) for row in rows.rows) for at in range(len(rows.columns))]
    head = "".join(
        f"<th{' class=text' * text}{' data-extra' * (column in extra)}{_titled(str(column))}>{_breakable(column)}</th>"
        for column, text in zip(rows.columns, texts, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row, texts))}</tr>" for row in rows.rows)
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>')


def _titled(heading: str) -> str:
    """Words for a heading that is a metric's name, where the pointer rests on it."""
    words = explained(heading)
    return f' title="{html.escape(words)}"' if words else ""


def _breakable(text: object) -> str:
    """A heading, which may be broken behind a dot or an underline."""
    return re.sub(r"([._])(?=\w)", r"\1<wbr>", html.escape(str(text)))


def _numeric(value: object) -> bool:
    """True if the text of a cell begins like a number; never for Markup."""
    return not isinstance(value, Markup) and re.match(r"[-+]?[0-9.]", str(value)) is not None


def _cell(value: object, is_text: bool) -> str:
    if isinstance(value, Markup):
        return f'<td class="text">{value}</td>'
    text = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    verdicts = {"passed", "failed", "bad input", "internal error"}
    classes = ["text"] * is_text + ["long"] * (len(text) > LONG) + [text] * (text in verdicts)
    mark = f' class="{" ".join(classes)}"' if classes else ""
    return f"<td{mark}>{html.escape(text)}</td>"


def bar(share: float) -> Markup:
    """A share of 0 to 1 as a bar."""
    return Markup(f'<span class="bar" style="width:{9 * share:.2f}rem"></span>')


def folded(summary: str, content: str) -> Markup:
    """Content that is shown when its summary is clicked."""
    return Markup(f"<details><summary>{html.escape(summary)}</summary>{content}</details>")


def code(text: str) -> Markup:
    """Text as it is."""
    return Markup(f"<pre>{html.escape(text)}</pre>")


def inline_code(text: str) -> Markup:
    """A name or a value."""
    return Markup(f"<code>{html.escape(text)}</code>")


def wrapped(text: str) -> Markup:
    """A sentence, also in a table."""
    return Markup(f'<div class="note">{html.escape(text)}</div>')


def picture(path: Path, text: str) -> Markup:
    """A PNG inside the page, and how to read it."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
    return Markup(f'<figure><div class="wide">{image}</div><figcaption>{html.escape(text)}</figcaption></figure>')


def link(target: str, text: str) -> Markup:
    """A link to a file beside the page."""
    return Markup(f'<a href="{html.escape(target)}">{html.escape(text)}</a>')


def reproduce(command: str, commit: str | None) -> Markup:
    """The shell commands that repeat the run."""
    if commit is None:
        return code(command)
    clean = commit.removesuffix("-dirty")
    changed = "    # and what was changed since" if clean != commit else ""
    return code(f"git checkout {shlex.quote(clean)}{changed}\n{command}")
