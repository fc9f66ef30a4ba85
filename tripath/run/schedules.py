"""The search of `compiler.schedule=auto`: one path proposes programs in closed form, another confirms the best of them.

The program of `schedule=pipelined` is always among those that are confirmed, so the one that is chosen never takes more cycles.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from npu.errors import TripathError
from npu.metrics import Result
from npu.program import Program
from npu.sources import digest_of_sources
from npu_compiler import CompilerOptions, compile_program
from tripath.experiment import Experiment
from tripath.paths import PATHS, Fact, cycles_of, giver_name
from tripath.report.explanation import CAUSES
from tripath.run.results import Cache, digest_of

CONFIRMED = 3
"""Programs that are confirmed, beside the one of `schedule=pipelined`."""
WORTH = 1e-4
"""The share of cycles that another program must save."""
ROUNDS = 2
"""The most times that each key is searched, with the best values of the others so far."""
SEARCHED = ("residency", "weight_slots", "heads", "ffn_slice", "chunk_rows")
"""Keys of `compiler` that are searched, in this order."""
UNIT = "matrix"
"""The unit whose waits say why one program is faster than another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The result of a search: the options of a program, its cycles, those of the `schedule=pipelined` program, and the reason.

    `proposed`, `confirmed`: the number of programs that each of the two paths ran.
    """

    options: CompilerOptions
    cycles: float
    pipelined_cycles: float
    proposed: int
    confirmed: int
    because: str

    @property
    def told(self) -> str:
        """The choice in one line."""
        keys = ", ".join(f"compiler.{key}={value}" for key, value in _keys(self.options).items())
        saved = 1 - self.cycles / self.pipelined_cycles
        gain = f"{saved:.2%} fewer cycles than schedule=pipelined" if saved > 0 else "as fast as schedule=pipelined"
        return f"{keys}: {gain}, because {self.because} ({self.proposed} programs proposed, {self.confirmed} confirmed)"


def axes(experiment: Experiment) -> Mapping[str, Sequence[object]]:
    """Values of each key that is searched. None of them changes a bit of what a program computes."""
    width = experiment.hardware.vlen
    slices = [each for each in (width // 2, width // 4, width // 8) if each >= 32]
    values = ("traffic", "rows"), (2, 3, 4, 6, 8), (1, 2, 4, 8), (None, *slices), (32, 64, 128, 192, 256, 384, 512)
    return dict(zip(SEARCHED, values, strict=True))


def search(
    experiment: Experiment, prompts: Sequence[Sequence[int]], cache: Cache,
    show: Callable[[dict[str, str]], None] = lambda _: None,
) -> Choice:  # fmt: skip
    """The options of the fastest program that is found for an experiment with `schedule=auto`; `show` is told what it does.

    Raises:
        TripathError: not even the program of `schedule=pipelined` is possible.
    """
    lengths = [len(tokens) for tokens in prompts]
    proposer, confirmer = (PATHS[giver_name(fact)] for fact in (Fact.ESTIMATE, Fact.TIMES))
    sources = digest_of_sources(proposer.module, confirmer.module, "npu_compiler", __name__)
    e = experiment
    digest = digest_of("schedule", e.model, e.workload, e.hardware, e.numerics, e.compiler, lengths, sources)
    if (known := _known(cache.get(digest))) is not None:
        return known
    made: dict[CompilerOptions, Program | None] = {}
    estimates: dict[str, float] = {}

    def run(simulate: Callable[..., Result], program: Program) -> Result:
        trace = e.with_load(program, e.schedule(prompts, program))
        return simulate(program, hardware=e.hardware, trace=trace)

    def estimate(options: CompilerOptions) -> float:
        """Cycles of the program with these options; infinite where there is none."""
        if options not in made:
            try:
                made[options] = compile_program(e.model, e.workload, e.hardware, e.numerics, lengths, options)
            except TripathError:  # the memories do not hold it, or a chunk no block
                made[options] = None
        program = made[options]
        if program is None:
            return float("inf")
        if program.digest not in estimates:
            estimates[program.digest] = _cycles(run(proposer.simulate, program))
        return estimates[program.digest]

    base = replace(e.compiler, schedule="pipelined")
    made[base] = compile_program(e.model, e.workload, e.hardware, e.numerics, lengths, base)
    best = base
    for _ in range(ROUNDS):
        before = best
        for key, values in axes(e).items():
            show({"schedule": f"searches compiler.{key}"})
            best = min([best, *(replace(best, **{key: value}) for value in values)], key=estimate)
        if best == before:
            break
    results: dict[str, tuple[CompilerOptions, Result]] = {}
    for options in [base, *sorted(made, key=estimate)]:  # the first that makes a program, of those that make it
        program = made[options]
        if program is not None and program.digest not in results:
            show({"schedule": f"confirms program {len(results) + 1} of at most {CONFIRMED + 1}"})
            results[program.digest] = options, run(confirmer.simulate, program)
        if len(results) > CONFIRMED:
            break
    first, *others = results.values()
    fastest = min([first, *others], key=lambda found: _cycles(found[1]))
    if _cycles(fastest[1]) > (1 - WORTH) * _cycles(first[1]):
        fastest = first
    choice = Choice(
        options=fastest[0], cycles=_cycles(fastest[1]), pipelined_cycles=_cycles(first[1]), proposed=len(estimates),
        confirmed=len(results), because="no other is faster" if fastest is first else _reason(first[1], fastest[1]),
    )  # fmt: skip
    cache.put(digest, asdict(choice))
    return choice


def _cycles(result: Result) -> float:
    cycles = cycles_of(result.metrics)
    assert cycles is not None
    return cycles


def _reason(before: Result, after: Result) -> str:
    """The activity or wait of the array that shrank most, and the cycles saved, as text."""
    spent = [dict(_spent(result)) for result in (before, after)]
    saved = {cause: spent[0].get(cause, 0.0) - spent[1].get(cause, 0.0) for cause in CAUSES}
    cause = max(saved, key=lambda key: saved[key])
    return f"the array {CAUSES[cause].removeprefix('the array ')} for {saved[cause]:,.0f} cycles less"


def _spent(result: Result) -> Iterator[tuple[str, float]]:
    """Cycles of the array by what it does."""
    table = result.tables["units"]
    row = next(row for row in table.rows if row[0] == UNIT)
    yield from zip(table.columns[1:], (float(str(value)) for value in row[1:]), strict=True)


def _keys(options: CompilerOptions) -> dict[str, str]:
    return {key: "null" if (value := getattr(options, key)) is None else str(value).lower() for key in SEARCHED}


def _known(content: Mapping[str, Any] | None) -> Choice | None:
    """A choice that was kept."""
    try:
        return None if content is None else Choice(**{**content, "options": CompilerOptions(**content["options"])})
    except (KeyError, TypeError):
        return None
