"""Whatever a configuration holds: a compiled program, or one line. From the composed configuration to the program, in process."""

import copy
import os
import signal
from contextlib import contextmanager

from hydra import compose, initialize_config_module
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tripath.cluster.launch import Launch
from tripath.command.building import build
from tripath.command.composition import INPUT_ERRORS, build_experiment, one_line
from tripath.run.job import prepare
from tripath.tracking.store import Tracking

CASES = int(os.environ.get("TRIPATH_FUZZ_CASES", "200"))
"""`.ci/run` tries 2,000."""
SECONDS = 30
"""A case that takes longer hangs."""
LEFT = {"tracking": Tracking, "launch": Launch}
"""Groups that a compiled program does not depend on: built, not run."""

with initialize_config_module("conf", version_base="1.3"):
    BASES = [
        OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
        for overrides in ([], ["model=llada_8b", "hardware=npu_datacenter", "workload=llada_gsm8k", "numerics=mxint4_baos", "paths=[cycle]", "workload.prompt_length=64"])
    ]  # fmt: skip


def leaves(node, path=()):
    """Paths of all values in a configuration, also of lists and mappings as a whole."""
    if path:
        yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))


PLACES = [sorted(set(leaves(base)), key=str) for base in BASES]
INTEGERS = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        7,
        8,
        31,
        32,
        33,
        64,
        127,
        128,
        1 << 10,
        (1 << 16) - 1,
        1 << 16,
        1 << 20,
        1 << 24,
        1 << 31,
        1 << 32,
        1 << 53,
        1 << 63,
        1 << 64,
        10**30,
    ]
)
VALUES = st.one_of(
    INTEGERS, INTEGERS.map(lambda n: -n), st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from([True, False, None, "", " ", "none", "dual", "bf16", "mxint4", "serial", "\x00", "ä", "../..", "${", "9" * 400]), st.text(max_size=8),
    st.sampled_from([[], {}, [1], ["cycle"], {"a": 1}, [[]], {"_target_": "os.getcwd"}]),
)  # fmt: skip


@contextmanager
def no_hang():
    """The case ends in time, or fails."""

    def late(*_):
        raise AssertionError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def configurations(draw):
    """A shipped configuration with one to three values replaced."""
    which = draw(st.integers(0, len(BASES) - 1))
    config, said = copy.deepcopy(BASES[which]), []
    for path in draw(st.lists(st.sampled_from(PLACES[which]), min_size=1, max_size=3, unique=True)):
        node = config
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = copy.deepcopy(draw(VALUES))
            said.append((path, node[path[-1]]))
    return config, said


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(configurations())
def test_any_configuration_gives_a_program_or_one_line(case):
    values, said = case
    with no_hang():
        try:
            config = OmegaConf.create(values)
            for group, kind in LEFT.items():
                build(kind, group, config[group])
            experiment, default_prompt = build_experiment(config)
            prepared = prepare(experiment, default_prompt)
        except INPUT_ERRORS as error:
            line = one_line(error)
            assert line, said
            assert "\n" not in line, said
            return
    assert prepared.program is None or len(prepared.program.words) > 10
