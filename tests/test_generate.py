"""`make generate` on a tree where the instruction table has just changed: one command, and what it writes is whole."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from npu import sources
from npu.errors import TripathError
from npu.hardware import Timing
from npu.isa import TABLE, OpClass
from npu.isa.presets import FOLDER, by_instruction, preset
from npu.isa.spec import TIMED_UNITS
from tests.conftest import compose_experiment

ROOT = Path(__file__).parents[1]
NEW = '''

@instruction(opcode=0x71, unit=Unit.VECTOR, op_class=OpClass.ELEMENTWISE,
             operands={"dst": VECTOR, "a": VECTOR, "n": N}, reads=(touch("a", "n"),), writes=(touch("dst", "n"),),
             lanes=lambda o: o["n"])  # fmt: skip
def v_neg_v(vector, dst, a, n):
    """vector[dst] := -vector[a]."""
    for i in range(n):
        vector[dst + i] = -vector[a + i]
'''


@pytest.fixture
def tree(tmp_path):
    """A copy of what generation reads and writes."""
    for name in (*sources.PACKAGES, "conf", "docs"):
        skip = shutil.ignore_patterns("__pycache__", "checkpoints", "pictures")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def generate(tree):
    # -o: the environment is that of the tests, and nothing is installed.
    command = ["make", "--silent", "-o", ".venv/.test", f"BIN={Path(sys.executable).parent}", "generate"]
    done = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")


GENERATED = ("accuracy/dispatch.py", "docs/isa.md", "docs/configuration.md", "rtl/tripath_pkg.sv",
             "conf/hardware/timing/rtl.yaml", "conf/hardware/timing/plena.yaml")  # fmt: skip


def test_an_instruction_that_was_just_added_is_in_all_that_is_generated(tree):
    vector = tree / "npu" / "isa" / "vector.py"
    # One instruction comes, and one has another name: the dispatcher that is there cannot be imported any more.
    vector.write_text(vector.read_text().replace("def v_max_abs_vv(", "def v_maximum_abs_vv(") + NEW)
    for place in (tree / "rtl", tree / "npu" / "isa" / "timing"):
        for file in [*place.glob("*.sv"), *place.glob("*.yaml")]:
            file.write_text(file.read_text().replace("V_MAX_ABS_VV", "V_MAXIMUM_ABS_VV"))
    generate(tree)
    text = {name: (tree / name).read_text() for name in GENERATED}
    assert "elif opcode == 0x71:\n        v_neg_v(vector, address_of" in text["accuracy/dispatch.py"]
    assert "### V_NEG_V\n\n`0x71`" in text["docs/isa.md"]
    assert "OP_V_NEG_V = 8'h71;" in text["rtl/tripath_pkg.sv"]
    assert re.search(r"OP_V_NEG_V.*: is_elementwise = 1'b1;", text["rtl/tripath_pkg.sv"])
    assert yaml.safe_load(text["conf/hardware/timing/rtl.yaml"])["V_NEG_V"] == {"latency": 11, "provenance": "rtl"}
    assert "V_NEG_V: {latency: 12, provenance: assumed}" in text["conf/hardware/timing/plena.yaml"]
    code = "import accuracy; from tripath.command.composition import compose_experiment as c; print(c().hardware.latency_cycles('V_NEG_V'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("12\n", "")


@pytest.mark.parametrize("name", ["rtl", "plena"])
def test_a_preset_is_written_out_by_instruction(name):
    written = ROOT / "conf" / "hardware" / "timing" / f"{name}.yaml"
    assert written.read_text() == preset(FOLDER / f"{name}.yaml"), "make generate"
    rows = yaml.safe_load(written.read_text())
    assert set(rows) == {spec.mnemonic for spec in TABLE.values() if spec.unit in TIMED_UNITS}


def test_an_instruction_takes_its_own_fields_and_those_of_its_class():
    rows = by_instruction({"ELEMENTWISE": {"latency": 5, "provenance": "assumed"}, "V_ADD_VV": {"latency": 3}})
    assert rows["V_ADD_VV"] == {"latency": 3, "provenance": "assumed"}
    assert rows["V_MUL_VV"] == {"latency": 5, "provenance": "assumed"}
    assert set(rows) == {spec.mnemonic for spec in TABLE.values() if spec.op_class is OpClass.ELEMENTWISE}
    with pytest.raises(TripathError, match=r"hardware\.timing\.ELEMENTWIZE: no such .*; did you mean 'ELEMENTWISE'"):
        by_instruction({"ELEMENTWIZE": {}})


def test_a_preset_of_a_user_may_have_classes_and_an_instruction_is_a_key_still():
    added = compose_experiment(
        "+hardware.timing.SYNC={latency: 9, provenance: assumed}", "hardware.timing.M_MM.latency=40"
    )
    assert added.hardware.timing["M_MM"].latency == 40
    assert added.hardware.timing["M_SYNC"].latency == 1, "its own row has every field"
    alone = compose_experiment("~hardware.timing.M_SYNC", "+hardware.timing.SYNC={latency: 9, provenance: assumed}")
    assert alone.hardware.timing["M_SYNC"] == Timing(latency=9, provenance="assumed")
