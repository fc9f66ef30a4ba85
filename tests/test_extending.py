"""docs/extending.md is true: each of its changes is made in a copy of the sources, and what was added works there.

The page is read by machine: `New file`, `Append to` and `Change` (a diff) head a block, `Files: N.` says how many files a section
costs, and lines that begin with `$` are its commands.
"""

import filecmp
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from npu import sources
from tests.test_generate import GENERATED, generate

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"^(New file|Append to|Change) `([^`]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

RUN = """
import json, sys
from tripath.command.composition import build_experiment, compose_values
from tripath.run.job import outcome_of, prepare
from tripath.run.pipeline import run_paths
from tripath.run.results import Cache

for command in json.loads(sys.argv[1]):
    experiment, prompt = build_experiment(compose_values(*command))
    prepared = prepare(experiment, prompt)
    runs = run_paths(prepared.program, experiment, prepared.token_ids, Cache(None))
    outcome = outcome_of(experiment, prepared, runs)
    print(json.dumps({
        "status": outcome.status, "devices": outcome.devices,
        "checks": [[row.metric, row.expected_source, row.observed_source, row.passed] for row in outcome.discrepancies],
        "metrics": {name: dict(result.metrics) for name, result in outcome.results.items()},
        "counts": {name: dict(result.counts) for name, result in outcome.results.items()},
        "trips": {name: run.trip_counts for name, run in runs.items()},
        "layout": prepared.program.layout if prepared.program else {},
        "tensors": [tensor.name for tensor in prepared.program.hbm] if prepared.program else [],
    }))
"""
"""Commands of the page one after the other, without cluster, tracking and files; what each finds is a line."""
WEIGHTS = """
import math
from dllm.families import expected_shapes
from tripath.command.composition import compose_experiment

shapes = expected_shapes(compose_experiment("model=dream_small", "workload.prompt_length=1", "paths=[analytical]").model)
print(sum(math.prod(shape) for name, shape in shapes.items() if "blocks" in name))
"""
FORMAT = "from npu.formats import FORMATS; print(FORMATS['mxfp8_e3m4'].element_values().tolist())"
NEGATION = """
import sys
import ml_dtypes
import numpy as np
import analytical, cycle
from accuracy.executor import Machine
from npu.errors import TripathError
from npu.isa import assemble
from npu.program import Program, Tensor, words_of
from npu.program.trace import Trace
from rtl.hardware import small_core
from rtl.limits import check_program

core = small_core()
program_text = '''
A_BASE register=0 base=0
A_BASE register=1 base=64
A_BASE register=2 base=0
A_BASE register=3 base=64
H_LOAD_V dst=a0 src=a2 rows=1 cols=32 format=1 block=5 signal=s1
V_NEG_V dst=a1 a=a0 n=32 wait=s1 signal=s2
H_STORE_V dst=a3 src=a1 rows=1 cols=32 format=1 block=5 wait=s2
C_END
'''
geometry = {"blen": core.blen, "mlen": core.mlen, "vlen": core.vlen, "matrix_bytes": 64, "vector_bytes": 256, "fp_bytes": 4,
            "int_bytes": 4}
tensor = Tensor(name="rows", address=0, shape=(2, 32), format="bf16", block=32, writable=True)
program = Program(words=words_of(assemble(program_text)), hbm=(tensor,), geometry=geometry,
                  layout={"batch": 1, "generation_length": 1}, phases=())
if "timed" in sys.argv:
    for path in (analytical, cycle):
        print(path.simulate(program, hardware=core, trace=Trace(breaks=())).counts["instructions.V_NEG_V"])
else:
    machine = Machine(program=program, hbm=np.zeros(program.hbm_bytes, np.uint8))
    machine.hbm[:64] = np.arange(32).astype(ml_dtypes.bfloat16).view(np.uint8)
    machine.run_to_break()
    print((machine.hbm[64:].view(ml_dtypes.bfloat16) == -np.arange(32)).all())
    try:
        check_program(program, core)
    except TripathError as error:
        print(error)
"""
TRAINED = """
import numpy as np
import torch
from dllm.checkpoint import load_tensors
from dllm.families import PREFIX
from dllm.reference import ReferenceModel
from dllm_training.model import DiffusionTransformer
from tripath.command.composition import compose_experiment

options = "+model.channel_scales=true", "model.checkpoint=synthetic", "workload.prompt_length=1"
spec = compose_experiment(*options).model
rng, stored = np.random.default_rng(0), load_tensors(spec)
tensors = {name: rng.normal(1, 0.2, stored[name].shape).astype(np.float32) if "norm" in name or "scale" in name else stored[name] for name in stored}
model = DiffusionTransformer(spec)
model.load_state_dict({name.removeprefix(PREFIX): torch.from_numpy(value) for name, value in tensors.items()})
tokens = np.arange(3, 23)
reference = ReferenceModel(spec, tensors)
logits = reference.logits(reference.forward(tokens))
trained = model(torch.from_numpy(tokens)[None], torch.ones(1, 20, dtype=torch.bool))[0].detach().numpy()
print(np.abs(logits).max(), np.abs(logits - trained).max())
"""


@dataclass(frozen=True)
class Section:
    """One thing to add: files that the page says it costs, its changes, the arguments of its commands."""

    files: int
    changes: list[tuple[str, str, str]]
    commands: list[list[str]]

    @property
    def command(self):
        """The arguments of the first command, if there is one."""
        return self.commands[0] if self.commands else []


def section(title):
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    (files,) = re.findall(r"^Files: (\d+)\.$", text, re.MULTILINE)
    commands = re.findall(r"^\$ tripath (.*)$", text, re.MULTILINE)
    return Section(int(files), BLOCK.findall(text), [shlex.split(command) for command in commands])


def changed(text, diff):
    """The text after a diff, whose places are found by the lines that stay and go."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] or line for line in lines if line[0] != sign) for sign in "+-")
        assert text.count(old) == 1, f"not one place for\n{old}"
        text = text.replace(old, new)
    return text


class Tree:
    """A copy of the sources. Compiled code is kept by what it depends on, so copies share that of what they do not change."""

    def __init__(self, folder):
        self.folder, self.written = folder, set()
        for name in (*sources.PACKAGES, "conf"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    def add(self, title):
        """Make the changes of a section, which cost as many files as it says."""
        new = section(title)
        for verb, name, block in new.changes:
            file = self.folder / name
            assert (verb == "New file") != file.exists(), name
            before = "" if verb == "New file" else file.read_text()
            file.write_text(changed(before, block) if verb == "Change" else f"{before}\n\n{block}" if before else block)
            self.written.add(name)
        assert len(self.written) == new.files
        return new.command

    def changed(self):
        """Sources and configurations of the copy that the originals do not have so."""
        files = [file for file in self.folder.rglob("*.*") if file.suffix in (".py", ".yaml", ".sv")]
        names = {str(file.relative_to(self.folder)) for file in files}
        same, _, _ = filecmp.cmpfiles(self.folder, ROOT, names, shallow=False)
        return names - set(same)

    def python(self, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(self.folder), **environment},
        )  # fmt: skip
        return done.stdout, done.stderr

    def run(self, *commands, **environment):
        """What commands of the page leave; every check that they make holds."""
        output, errors = self.python("-c", RUN, json.dumps(commands), **environment)
        found = [json.loads(line) for line in output.splitlines()]
        assert len(found) == len(commands), errors
        for each in found:
            assert [row for row in each["checks"] if not row[-1]] == []
            assert each["status"] == "passed"
        return found


@pytest.fixture
def tree(tmp_path):
    """A copy to make changes in; in the end nothing but these and what is generated is unlike the originals."""
    made = Tree(tmp_path / "copy")
    yield made
    assert made.written
    assert made.changed() - set(GENERATED) == made.written - set(GENERATED)


INTERPRETED = {"NUMBA_DISABLE_JIT": "1"}
"""Where compiled code has changed: it takes minutes to compile, and a tiny program less to interpret."""
TINY = ("model.layers=1", "model.hidden=32", "model.heads=1", "model.kv_heads=1", "model.head_dim=32", "model.ffn=32",
        "model.vocab=32", "model.checkpoint=synthetic", "workload.prompt_length=3", "workload.block_length=4",
        "workload.generation_length=4", "workload.steps=2", "hardware.blen=4", "paths=[analytical,accuracy]")  # fmt: skip


def test_hardware(tree):
    (wide,) = tree.run(tree.add("Hardware"))
    metrics = wide["metrics"]["cycle"]
    # By the definition of utilisation, for an array of 16 by 32.
    assert metrics["matrix_utilisation"] == pytest.approx(metrics["macs_per_cycle"] / (16 * 32))


@pytest.mark.system
def test_model(tree):
    (made,) = tree.run(tree.add("Model"))
    estimate, exact = made["metrics"]["analytical"]["estimated_cycles"], made["metrics"]["cycle"]["makespan_cycles"]
    assert exact == pytest.approx(estimate, rel=0.1)
    parameters = int(tree.python("-c", WEIGHTS)[0])
    assert parameters == pytest.approx(0.36e9, rel=0.01), "the model card of Qwen2.5-0.5B"


def test_device(tree):
    (made,) = tree.run(tree.add("Device"))
    h100, gh200 = (made["devices"][name]["kernel_seconds"] for name in ("h100", "gh200"))
    assert gh200 < h100 < gh200 * 4.9 / 3.35, "only the memory is faster, by the ratio of the data sheets"


def test_kv_scheme(tree):
    others = [["experiment=quick", "paths=[analytical]", f"scheme={name}"] for name in ("hadamard", "plain")]
    made, *known = tree.run(tree.add("KV scheme"), *others)
    both, none = (each["counts"]["analytical"]["macs"] for each in known)
    # Four heads of Q and two of K are multiplied, or also two of V and four of the output: twice as many.
    assert made["counts"]["accuracy"]["macs"] == (both + none) / 2


def test_path(tree):
    (made,) = tree.run(tree.add("Path"))
    counts = made["counts"]["analytical"]
    moved = counts["hbm_read_bytes"] + counts["hbm_write_bytes"]
    # Half of two channels of 32 bytes a cycle.
    assert made["metrics"]["bandwidth"]["makespan_cycles"] == pytest.approx(moved / 32)
    assert ["macs", "analytical", "bandwidth", True] in made["checks"]


def test_check(tree):
    (made,) = tree.run(tree.add("Check"))
    assert ["makespan_cycles", "cycle.busy_cycles.matrix", "cycle", True] in made["checks"]


@pytest.mark.system
def test_number_format(tree):
    command = tree.add("Number format")
    values = np.array(eval(tree.python("-c", FORMAT)[0], {"nan": np.nan, "inf": np.inf}))
    np.testing.assert_array_equal(values, np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e3m4).astype(float))
    coarser = [each.replace("e3m4", "e4m3") for each in command]
    made, known = (
        each["metrics"]["accuracy"] for each in tree.run([*command, *TINY], [*coarser, *TINY], **INTERPRETED)
    )
    assert 0 < made["logit_kl"] < known["logit_kl"], "a mantissa of one bit more"


@pytest.mark.system
def test_instruction(tree):
    tree.add("Instruction")
    shutil.copytree(ROOT / "docs", tree.folder / "docs", ignore=shutil.ignore_patterns("pictures"))
    shutil.copy(ROOT / "Makefile", tree.folder)
    generate(tree.folder)
    negated, refused = tree.python("-c", NEGATION, **INTERPRETED)[0].splitlines()
    assert negated == "True"
    assert refused.startswith("rtl: V_NEG_V is not built")
    assert tree.python("-c", NEGATION, "timed") == ("1\n1\n", "")


@pytest.mark.system
def test_cache_policy(tree):
    pair, dual = tree.run(tree.add("Cache policy"), ["experiment=quick"])
    layers, hidden, query, kv, ffn, length = 4, 128, 128, 64, 256, 8
    of_a_row = (
        hidden * (query + 2 * kv) + query * hidden + 3 * hidden * ffn + 2 * query * pair["layout"]["cache_tokens"]
    )
    assert pair["trips"]["accuracy"] == dual["trips"]["accuracy"] == [2, 2]
    later_steps = 2  # one of each block
    more = pair["counts"]["cycle"]["macs"] - dual["counts"]["cycle"]["macs"]
    assert more == later_steps * layers * length * of_a_row
    assert pair["metrics"]["accuracy"]["logit_kl"] < 1e-4


@pytest.mark.system
def test_commit_policy(tree):
    tree.add("Commit policy")
    quality, made = tree.run(*section("Commit policy").commands)
    assert quality["metrics"]["quality"]["steps_per_block"] == 1
    assert made["trips"]["accuracy"] == [1, 1]
    assert made["metrics"]["accuracy"]["token_agreement"] == 1


@pytest.mark.system
def test_operator(tree):
    command = tree.add("Operator")
    made, without = tree.run(command, [each for each in command if "channel_scales" not in each])
    assert set(made["tensors"]) - set(without["tensors"]) == {"attention_scales_weight", "ffn_scales_weight"}
    assert made["metrics"]["accuracy"]["logit_kl"] < 1e-3
    for device in ("h100", "host"):
        assert made["devices"][device]["seconds"] > without["devices"][device]["seconds"]
    largest, difference = map(float, tree.python("-c", TRAINED)[0].split())
    assert difference < 1e-4 * largest


TITLES = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)[:-1]
"""Without the last, which is about libraries."""


def test_every_change_of_the_page_can_be_made(tmp_path):
    trees = {}
    for title in TITLES:
        place = tmp_path / title.removesuffix(" for programs")
        tree = trees[place] if place in trees else trees.setdefault(place, Tree(place))
        tree.add(title)
        for name in tree.written:
            if name.endswith(".py"):
                compile((place / name).read_text(), name, "exec")


def test_every_section_is_tried():
    titles = TITLES
    tried = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {title.lower().replace(" ", "_") for title in titles} <= tried
