"""A headless browser without a network, and what it makes of a page."""

import html
import json
import re
import shutil
import subprocess

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--allow-file-access-from-files")
SECONDS = 180
ASK = """<!doctype html><iframe width="{width}" height="900" style="border:0" src="{page}"></iframe><pre id="answer"></pre>
<script>
document.querySelector('iframe').onload = event => {{
  const page = event.target.contentDocument, window = event.target.contentWindow;
  page.querySelectorAll('details').forEach(each => each.open = true);
  document.getElementById('answer').textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth, seen: page.documentElement.clientWidth,
    loaded: window.performance.getEntriesByType('resource').map(each => each.name),
    headings: [...page.querySelectorAll('h2')].map(each => each.textContent),
    pictures: [...page.images].map(each => each.naturalWidth),
    blocks: [...page.querySelectorAll('.block')].map(block => [...block.querySelectorAll('.token')].map(
      token => [token.querySelector('b').textContent, token.querySelector('small').textContent])),
    links: [...page.querySelectorAll('a')].map(each => each.getAttribute('href')),
  }});
}};
</script>"""


def dump(profile, address, *flags):
    """The page at `address` after it ran, as HTML."""
    command = [
        BROWSER,
        *FLAGS,
        *flags,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=30000",
        "--dump-dom",
        address,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout


def look_at(folder, page, width):
    """What a browser without a network shows of the file `page` in a window of `width` pixels."""
    (folder / "ask.html").write_text(ASK.format(width=width, page=page.as_uri()))
    text = dump(folder / "profile", (folder / "ask.html").as_uri(), *OFFLINE)
    return json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', text, re.DOTALL)[1]))
