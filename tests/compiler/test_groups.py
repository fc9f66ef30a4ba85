"""A model may have several groups of layers: how they are grouped changes no bit."""

import dataclasses

import pytest

from dllm.model import ModelSpec
from tests.conftest import compose_experiment
from tests.record.make import DEFAULT_PROMPT
from tripath.api import accuracy, analytical, cycle, prepare


def outcome(*changes):
    x = compose_experiment("workload.generation_length=16", "numerics=mxint4_baos", *changes)
    prepared = prepare(x, DEFAULT_PROMPT)
    found = accuracy.simulate(prepared.program, model=x.model, workload=x.workload, prompts=prepared.token_ids)
    times = cycle.simulate(prepared.program, hardware=x.hardware, trace=found.trace)
    bound = analytical.simulate(prepared.program, hardware=x.hardware, trace=found.trace)
    assert bound.metrics["lower_bound_cycles"] <= times.metrics["makespan_cycles"]
    assert bound.counts == times.counts == found.result.counts
    return prepared.program, found


@pytest.mark.parametrize("changes", [(), ("workload.cache=append", "scheme=frozen"), ("scheme=prerope",)], ids=str)
def test_layers_in_three_groups_give_the_same_steps(monkeypatch, changes):
    program, one = outcome(*changes)
    whole = ModelSpec.network.fget

    def split(spec):
        network = whole(spec)
        (group,) = network.groups
        parts = (("first", 1), ("", group.repeat - 2), ("last", 1))
        return dataclasses.replace(
            network, groups=tuple(dataclasses.replace(group, repeat=repeat, name=name) for name, repeat in parts)
        )

    monkeypatch.setattr(ModelSpec, "network", property(split))
    grouped, three = outcome(*changes)
    names = {tensor.name for tensor in grouped.hbm}
    assert {"first.w_qkv", "w_qkv", "last.w_qkv"} <= names
    assert program.digest != grouped.digest
    assert one.token_ids == three.token_ids
    for mine, yours in zip(one.steps[0], three.steps[0], strict=True):
        assert (mine.logits == yours.logits).all()
