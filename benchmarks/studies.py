"""The tables and pictures of quality in docs: `python benchmarks/studies.py NAME [OVERRIDE ...]`, NAME one of `PAGES`.

Runs `tripath --multirun experiment=NAME`, puts its table between the marks of NAME in its page, and its pictures in
docs/pictures. What the cache of results has is not run again, so an interrupted run goes on where it ended.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tripath.sweeps.study import PAGE

DOCS = Path(__file__).parents[1] / "docs"
SIZE = ("simulator.quality.problems=240", "simulator.quality.compared=64")
PAGES: dict[str, tuple[str, Sequence[str]]] = {
    "kv_quantisation": ("kv_quantisation.md", SIZE), "sampling_precision": ("decoding_quality.md", SIZE),
    "decoding_quality": ("decoding_quality.md", SIZE), "kv_outliers": ("kv_quantisation.md", ()),
}  # fmt: skip
"""By experiment: its page, and what it is run with."""


def main() -> int:
    """Run the experiment and rewrite its page; returns the exit status."""
    if len(sys.argv) < 2 or sys.argv[1] not in PAGES:
        sys.stderr.write(f"usage: python benchmarks/studies.py {'|'.join(PAGES)} [OVERRIDE ...]\n")
        return 2
    name = sys.argv[1]
    written, size = PAGES[name]
    overrides = {each.partition("=")[0]: each for each in (*size, *sys.argv[2:])}
    folder = Path("runs") / "studies" / name
    shutil.rmtree(folder, ignore_errors=True)  # pictures of another sweep would be taken for this one's
    command = ["--multirun", f"experiment={name}", *overrides.values()]
    tripath = [sys.executable, "-m", "tripath", *command, f"hydra.sweep.dir={folder}"]
    status = subprocess.run(tripath, check=False).returncode  # noqa: S603  ourselves
    if status:
        return status
    page = DOCS / written
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    shown = {picture.stem: DOCS / "pictures" / f"{name}_{picture.name}" for picture in sorted(folder.glob("*.png"))}
    shown.pop("sweep")
    for stem, file in shown.items():
        shutil.copy(folder / f"{stem}.png", file)
    pictures = "".join(f"![{stem.replace('_', ' ')}](pictures/{file.name})\n" for stem, file in shown.items())
    told = [each for each in command if not each.startswith("launch.")]  # where it ran decides nothing
    content = f"{begin}\n`tripath {shlex.join(told)}`\n\n{pictures}\n{(folder / PAGE).read_text()}{end}"
    text, count = re.subn(f"{begin}.*{end}", lambda _: content, page.read_text(), flags=re.DOTALL)
    assert count == 1, f"{page} has no marks of {name}"
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
