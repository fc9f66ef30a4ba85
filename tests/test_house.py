"""The floors of the house: what the linter allows, what the caches hash and what the page draws are one and the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import analytical.overlap
import cycle.machine
from npu import sources
from npu.compiled import BySources, is_kept

ROOT = Path(__file__).parents[1]
WITNESSES = ("analytical", "cycle", "accuracy", "rtl")


def layers():
    """The floors from the roof down, each a list of modules."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = [each for each in settings["contracts"] if each["type"] == "layers"]
    return settings["root_packages"], [[name.strip() for name in row.split("|")] for row in contract["layers"]]


def floor_of(module, floors):
    """The place of a module in the list, counted from the roof; None: a package's face."""
    return next(
        (n for n, row in enumerate(floors) if any(module == m or module.startswith(f"{m}.") for m in row)), None
    )


def test_every_module_stands_on_a_floor():
    packages, floors = layers()
    assert tuple(packages) == sources.PACKAGES
    for package in packages:
        for file in (ROOT / package).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            face = file.name == "__init__.py"
            assert face or floor_of(module, floors) is not None, module


@pytest.mark.parametrize("module", [*WITNESSES, "accuracy.quality", "npu_compiler"])
def test_what_the_caches_hash_is_what_importing_loads_and_nothing_above(module):
    hashed = dict(sources.sources_of(module))
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert not run.returncode, run.stderr
    loaded = {name for name in run.stdout.split() if name.partition(".")[0] in sources.PACKAGES}
    assert loaded - {"npu.compiled"} <= set(hashed)  # where compiled code is kept changes no result
    _, floors = layers()
    above = [name for name in hashed if name.partition(".")[0] in ("tripath", "dllm_training")]
    assert above == []
    own = floor_of(module, floors)
    assert all(floor_of(name, floors) is None or floor_of(name, floors) >= own for name in hashed if "/" not in name)


def forget():
    """Read the sources anew."""
    for kept in (sources.sources_of, sources.digest_of_sources, sources._imported_by, sources._file_of):
        kept.cache_clear()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the sources, whose digests the test asks for."""
    for package in sources.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "checkpoints"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    yield tmp_path
    forget()


def test_a_digest_changes_with_what_the_thing_depends_on_alone(copied):
    def digests():
        forget()
        return {name: sources.digest_of_sources(name) for name in (*WITNESSES, "npu.formats.rounding")}

    def changed_by(file):
        before = digests()
        (copied / file).write_text((copied / file).read_text() + "\n# changed\n")
        return {name for name, was in digests().items() if was != before[name]}

    assert changed_by("cycle/machine.py") == {"cycle"}
    assert changed_by("npu/isa/vector.py") == {*WITNESSES}
    assert changed_by("npu/formats/rounding.py") == {*WITNESSES, "npu.formats.rounding"}
    assert changed_by("rtl/lane.sv") == {"rtl"}
    for file in ("tripath/report/console.py", "tripath/validation/checks.py", "dllm_training/train.py"):
        assert changed_by(file) == set()


def test_a_change_compiles_again_what_depends_on_it_alone(copied):
    def places():
        forget()
        return {
            each: BySources(each.py_func).get_cache_path() for each in (cycle.machine.run, analytical.overlap.makespan)
        }

    before = places()
    (copied / "cycle" / "dram.py").write_text((copied / "cycle" / "dram.py").read_text() + "\n# changed\n")
    assert [each for each, place in places().items() if place != before[each]] == [cycle.machine.run]


def test_code_is_kept_once_it_was_compiled_and_until_a_source_changes(copied, tmp_path, monkeypatch):
    monkeypatch.setattr("npu.compiled.ROOT", copied)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    assert not is_kept("cycle")
    Path(BySources(cycle.machine.run.py_func).get_cache_path()).mkdir(parents=True)
    assert is_kept("cycle")
    assert not is_kept("analytical")
    (copied / "cycle" / "dram.py").write_text((copied / "cycle" / "dram.py").read_text() + "\n# changed\n")
    forget()
    assert not is_kept("cycle")


def test_the_page_draws_the_floors_of_the_linter():
    _, floors = layers()
    page = (ROOT / "docs" / "architecture.md").read_text()
    (drawn,) = re.findall(r"^## The house\n.*?^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [re.split(r" +\| +", line.strip()) for line in drawn.splitlines()] == floors


@pytest.mark.parametrize("home", ["/proc/nobody", None])
def test_without_a_home_caches_are_private_and_temporary(tmp_path, monkeypatch, home):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def nobody():
        message = "Could not determine home directory."
        raise RuntimeError(message)

    monkeypatch.setattr("pathlib.Path.home", (lambda: Path(home)) if home else nobody)
    sources._private.cache_clear()
    folder = sources.user_cache()
    assert folder == tmp_path / f"tripath-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # someone else may have made it
    sources._private.cache_clear()
    assert sources.user_cache() != folder
    sources._private.cache_clear()
