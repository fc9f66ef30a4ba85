"""Configurations shared by the tests, composed from the shipped files."""

import dataclasses
import functools
import gc
import os
from pathlib import Path

import pytest

# Processes of the suite share the cores: threads of torch and of BLAS would wait for one another. Read when these are loaded.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from npu_compiler import compile_program, schedule
from tripath.command.composition import Composer, build_experiment

CHECKPOINT = Path(__file__).parents[1] / "accuracy" / "checkpoints" / "wordmath"
LLADA = (
    "model=llada_8b",
    "hardware=npu_datacenter",
    "workload=llada_gsm8k",
    "numerics=mxint4",
    "paths=[analytical,cycle]",
)
PROMPT = "Tom has 12 apples and finds 30 more. How many apples does Tom have now?"


@functools.cache
def _composer():
    with initialize_config_module("conf", version_base="1.3"):
        return Composer(GlobalHydra.instance().config_loader(), compose("config", return_hydra_config=True))


def compose_experiment(*overrides):
    """As `tripath.api.compose_experiment`, but files that were chosen before are not read and merged again (as in a sweep)."""
    own = [override for override in overrides if not override.startswith("hydra.")]
    return build_experiment(_composer()(0, own)[0])[0]


def compiled(experiment, prompt_length=19):
    """Program and scheduled trace of an experiment."""
    workload = experiment.workload
    lengths = [prompt_length] * workload.batch
    program = compile_program(
        experiment.model, workload, experiment.hardware, experiment.numerics, lengths, experiment.compiler
    )
    return program, schedule(workload)


FIRST = ("test_agreement.py", "test_races.py", "test_extending.py", "test_rtl.py", "test_folder.py", "test_record.py")
"""Files that take longest. The first two need different compiled code, which two processes would else both compile."""


def pytest_collection_modifyitems(items):
    """The longest files first, so that none is left alone at the end."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def cache_of_results(tmp_path_factory):
    """No test takes a result that an earlier run of the tests, or its user, left, or runs on the user's standing cluster."""
    os.environ["TRIPATH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TRIPATH_CLUSTER"] = str(tmp_path_factory.mktemp("no-cluster"))


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_left_alone():
    """What tests leave, above all compiled code, is millions of objects; the collector would go through them again and again."""
    gc.set_threshold(10_000)
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def default_experiment():
    return compose_experiment()


@pytest.fixture(scope="session")
def tensors(default_experiment):
    from dllm.checkpoint import load_tensors

    return load_tensors(default_experiment.model)


@pytest.fixture(scope="session")
def tokenizer(default_experiment):
    from dllm.checkpoint import load_tokenizer

    return load_tokenizer(default_experiment.model.checkpoint)


def with_timing(hardware, mnemonic, **changes):
    """The hardware with other timing facts for one instruction."""
    row = dataclasses.replace(hardware.timing[mnemonic], **changes)
    return dataclasses.replace(hardware, timing={**hardware.timing, mnemonic: row})
