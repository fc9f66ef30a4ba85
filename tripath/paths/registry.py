"""The paths of the package, one row each, and a user's own module as a row of the same kind."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from npu.errors import TripathError
from tripath.paths.row import INPUTS, Fact, Path, Picture

if TYPE_CHECKING:
    from dllm.model import ModelSpec
    from dllm.workload import Workload
    from npu.hardware import HardwareConfig
    from npu.program import Program
    from npu.program.trace import Trace
    from rtl import RtlOutcome

ESTIMATED, MAKESPAN = "estimated_cycles", "makespan_cycles"
EXACTNESS = (Fact.TIMES, Fact.ESTIMATE)
"""Facts by how exact they are about time, the most exact first."""


def _accuracy(metrics: Mapping[str, float]) -> str:
    return (
        f"{metrics['generated_tokens']:.0f} tokens ({metrics['kept_tokens']:.0f} before the end token) in "
        f"{metrics['forwards']:.0f} forwards, agreement with the FP32 reference "
        f"{metrics['token_agreement']:.3f}, logit KL {metrics['logit_kl']:.2g} nats"
    )


def _quality(metrics: Mapping[str, float]) -> str:
    return (
        f"{metrics['solved']:.0f} of {metrics['problems']:.0f} held-out problems solved, exact match "
        f"{metrics['exact_match']:.3f} ({metrics['exact_match_low']:.3f} to {metrics['exact_match_high']:.3f}), "
        f"{metrics['steps_per_block']:.2f} steps per block, logit KL {metrics['logit_kl']:.2g} nats"
    )


def _perplexity(metrics: Mapping[str, float]) -> str:
    return (
        f"perplexity {metrics['perplexity']:.3f} over {metrics['tokens']:.0f} tokens ({metrics['perplexity_fp32']:.3f} in FP32), "
        f"logit KL {metrics['logit_kl']:.2g} nats, arg max agreement {metrics['argmax_agreement']:.3f}"
    )


def _beside_witnesses(
    *, program: "Program", hardware: "HardwareConfig", trace: "Trace", model: "ModelSpec", workload: "Workload",
    prompts: Sequence[Sequence[int]],
) -> "RtlOutcome":  # fmt: skip
    """The RTL from the executor's first memories, held to its last ones and to the times of the cycle path."""
    import accuracy
    import cycle
    import rtl
    from rtl.limits import check_program

    check_program(program, hardware)  # before the others take their time
    image, machine = accuracy.final_state(program, model=model, workload=workload, prompts=prompts)
    times = cycle.instruction_times(program, hardware=hardware, trace=trace, most_events=int(machine.retired.sum()))
    expected = rtl.Memories(**{name: getattr(machine, name) for name in rtl.Memories.__dataclass_fields__})
    return rtl.simulate(program, hardware=hardware, trace=trace, image=image, expected=expected, times=times)


_ROWS = (
    Path(
        name="analytical", module="analytical", needs=Fact.PROGRAM | Fact.HARDWARE | Fact.TRACE | Fact.TECHNOLOGY,
        gives=Fact.COUNTS | Fact.CYCLES | Fact.ESTIMATE, cost=ESTIMATED, headline=(ESTIMATED, "tokens_per_second"),
        style="x--", pictures=(Picture.ROOFLINE,), light=True,
    ),
    Path(
        name="cycle", module="cycle", needs=Fact.PROGRAM | Fact.HARDWARE | Fact.TRACE | Fact.TECHNOLOGY,
        gives=Fact.COUNTS | Fact.CYCLES | Fact.TIMES, cost=MAKESPAN, headline=(MAKESPAN, "tokens_per_second"),
        pictures=(Picture.ROOFLINE, Picture.STALLS, Picture.STEPS, Picture.ENERGY, Picture.TIMELINE),
    ),
    Path(
        name="accuracy", module="accuracy", needs=Fact.PROGRAM | Fact.MODEL | Fact.WORKLOAD | Fact.PROMPTS | Fact.WEIGHTS,
        gives=Fact.COUNTS | Fact.TRACE | Fact.TOKENS | Fact.BITS, cost="logit_kl", headline=("token_agreement",),
        sentence=_accuracy,
    ),
    Path(
        name="quality", module="accuracy.quality", needs=Fact.MODEL | Fact.WORKLOAD | Fact.NUMERICS | Fact.WEIGHTS,
        gives=Fact.TRACE | Fact.QUALITY, cost="logit_kl", headline=("exact_match",), sentence=_quality, library="torch",
        files=("dataset",), modules=("scoring",),
    ),
    Path(
        name="perplexity", module="accuracy.quality.perplexity",
        needs=Fact.MODEL | Fact.WORKLOAD | Fact.NUMERICS | Fact.PROMPTS | Fact.WEIGHTS, gives=Fact.QUALITY, cost="logit_kl",
        headline=("perplexity", "logit_kl"), sentence=_perplexity, library="torch",
    ),
    Path(
        name="rtl", module="rtl", run=_beside_witnesses,
        needs=Fact.PROGRAM | Fact.HARDWARE | Fact.TRACE | Fact.MODEL | Fact.WORKLOAD | Fact.PROMPTS | Fact.WEIGHTS
        | Fact.BITS | Fact.TIMES,
        gives=Fact.COUNTS | Fact.CYCLES | Fact.DIFFERENCES,
    ),
)  # fmt: skip
PATHS: Mapping[str, Path] = {row.name: row for row in _ROWS}
"""The paths of the package by name; of several that give the same, the first that runs counts."""


def own_path(name: str, module: str) -> Path:
    """The row of a user's own module: it needs the facts that `simulate` has parameters for.

    Raises:
        TripathError: the module cannot be imported, or has no function `simulate`.
    """
    row = Path(name=name, module=module, needs=Fact(0), gives=Fact.COUNTS | Fact.CYCLES)
    try:
        parameters = inspect.signature(row.simulate).parameters
    except (ImportError, AttributeError) as error:
        raise TripathError(f"simulator.{name}.module: no function simulate in {module} ({error})") from None
    needs = reduce(or_, (fact for fact in INPUTS if fact.argument in parameters), Fact(0))
    return Path(name=name, module=module, needs=needs, gives=row.gives)


def giver_of(fact: Fact, rows: Iterable[Path]) -> Path | None:
    """The first of `rows` that gives a fact."""
    return next((row for row in rows if fact in row.gives), None)


def giver_name(fact: Fact) -> str:
    """The name of the first path of the package that gives a fact, which one must."""
    giver = giver_of(fact, PATHS.values())
    assert giver is not None
    return giver.name


def in_order(rows: Iterable[Path]) -> list[Path]:
    """The rows, each after all that give what it needs, else as they stand.

    Raises:
        TripathError: rows need each other.
    """
    left, found = list(rows), list[Path]()
    while left:
        ready = next((row for row in left if not any(row.needs & other.gives for other in left if other != row)), None)
        if ready is None:
            raise TripathError(f"paths: {', '.join(row.name for row in left)} need each other")
        left.remove(ready)
        found.append(ready)
    return found


def gives(name: str) -> Fact:
    """Facts that the path of this name gives to the checks; a user's own path gives counts and cycles."""
    return PATHS[name].gives if name in PATHS else Fact.COUNTS | Fact.CYCLES


def most_exact(names: Iterable[str]) -> str | None:
    """Of some paths the one that is most exact about time; None: none is about time."""
    known = list(names)
    return next((name for fact in EXACTNESS for name in known if fact in gives(name)), None)


def cycles_of(metrics: Mapping[str, float]) -> float | None:
    """The cycles that a path gives for the whole program; None: its metrics have none."""
    return metrics.get(ESTIMATED, metrics.get(MAKESPAN))
