"""A wheel, installed where the source tree is not: it has all files, and the main job runs from any folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from npu.sources import PACKAGES as SOURCES

ROOT = Path(__file__).parents[1]
PACKAGES = (*SOURCES, "conf", "hydra_plugins")
UV = Path(sys.executable).with_name("uv")
SECONDS = 600

pytestmark = [pytest.mark.system, pytest.mark.skipif(not UV.exists(), reason="no uv beside this Python: make test")]


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=SECONDS, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == expected
    for one in ("conf/config.yaml", "accuracy/checkpoints/wordmath/model.safetensors", "rtl/core.sv"):
        assert one in inside


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """The installed command: an empty environment has the wheel; what it depends on is that of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(
        f"{sysconfig.get_path('purelib')}\n"
    )  # a folder: its .pth files do not count
    return folder / "bin" / "tripath", site


@pytest.mark.parametrize("arguments", [["paths=[analytical]"], []])
def test_the_main_job_runs_from_another_folder(command, arguments, tmp_path):
    tripath, site = command
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TRIPATH_CACHE"] = str(tmp_path / "cache")
    code = "import tripath, analytical, conf; print(tripath.__file__, analytical.__file__, conf.__file__)"
    found = run(tripath.with_name("python"), "-c", code, cwd=tmp_path, env=environment).split()
    assert all(Path(each).is_relative_to(site) for each in found)
    printed = run(tripath, *arguments, "hydra.run.dir=run", cwd=tmp_path, env=environment)
    assert "all checks hold" in printed or "no checks" in printed
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "passed"
    assert set(report["simulators"]) == ({"analytical"} if arguments else {"analytical", "cycle", "accuracy"})
    assert (tmp_path / "mlruns" / "mlflow.db").exists()
