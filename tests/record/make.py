"""What each configuration gives: `python -m tests.record.make [NAME ...]` measures and writes record.json anew."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import compose_experiment
from tests.record.configurations import configurations
from tripath.api import accuracy, analytical, cycle, prepare

FILE = Path(__file__).with_name("record.json")
MEMORIES = ("hbm", "matrix", "vector", "fp", "integer")


def digest(*values: object) -> str:
    """First 16 hexadecimal digits of a SHA-256 over values or arrays."""
    state = hashlib.sha256()
    for value in values:
        state.update(value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, sort_keys=True).encode())
    return state.hexdigest()[:16]


def compiled(overrides: tuple[str, ...]) -> Mapping[str, object]:
    """The program of a configuration: words, digest, rows of a chunk."""
    experiment = compose_experiment(*overrides)
    program = prepare(experiment, DEFAULT_PROMPT).program
    assert program is not None
    return {"program": program.digest, "words": len(program.words), "chunk_rows": program.layout["chunk_rows"]}


DEFAULT_PROMPT = "Tom has 12 apples and finds 30 more. How many apples does Tom have now?"


def measured(overrides: tuple[str, ...]) -> dict[str, object]:
    """All that a rebuild must leave: the program, its estimate, cycles, counts, tokens and the bits of all memories."""
    experiment = compose_experiment(*overrides)
    prepared = prepare(experiment, DEFAULT_PROMPT)
    program = prepared.program
    assert program is not None
    found = dict(compiled(overrides))
    trace = experiment.schedule(prepared.token_ids)
    if "accuracy" in experiment.paths:
        outcome = accuracy.simulate(
            program, model=experiment.model, workload=experiment.workload, prompts=prepared.token_ids
        )
        _, machine = accuracy.final_state(
            program, model=experiment.model, workload=experiment.workload, prompts=prepared.token_ids
        )
        trace = outcome.trace
        found |= {"tokens": digest(outcome.token_ids), "trips": outcome.trip_counts, "trace": outcome.trace.digest[:16]}
        found |= {f"bits.{name}": digest(getattr(machine, name)) for name in MEMORIES}
    facts = {"hardware": experiment.hardware, "trace": trace}
    estimate = analytical.simulate(program, **facts, technology=experiment.technology)
    times = cycle.simulate(program, **facts, technology=experiment.technology, race_check=False)
    assert estimate.counts == times.counts
    return found | {
        "cycles": times.metrics["makespan_cycles"], "counts": digest(dict(times.counts)),
        "cycle.metrics": digest(dict(times.metrics)), "estimated_cycles": estimate.metrics["estimated_cycles"],
        "lower_bound_cycles": estimate.metrics["lower_bound_cycles"], "analytical.metrics": digest(dict(estimate.metrics)),
    }  # fmt: skip


def table(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Rows of a chunk, words and cycles of each configuration, plain and now, for docs/compiler.md."""
    lines = ["| configuration | rows of a chunk | words | cycles | |", "|---|---|---|---|---|"]
    for name, new in now.items():
        old = before[name]
        cells = [
            f"{old[key]:,}" if old[key] == new[key] else f"{old[key]:,} to {new[key]:,}"
            for key in ("chunk_rows", "words", "cycles")
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {new['cycles'] / old['cycles'] - 1:+.2%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the named configurations, or all."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    names = sys.argv[1:] or list(configurations())
    for name in names:
        known[name] = measured(configurations()[name])
        print(name, known[name]["cycles"], flush=True)
        ordered = {key: known[key] for key in configurations() if key in known}
        FILE.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
