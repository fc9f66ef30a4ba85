"""The row in which a path describes itself; nothing else in the package knows its name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, Flag, auto
from importlib import import_module
from typing import Any


class Fact(Flag):
    """Something that a path needs, or gives to others and to the checks."""

    PROGRAM = auto()
    HARDWARE = auto()
    MODEL = auto()
    WORKLOAD = auto()
    NUMERICS = auto()
    PROMPTS = auto()
    TECHNOLOGY = auto()
    WEIGHTS = auto()
    """A checkpoint that the model names."""
    TRACE = auto()
    """Where loops were left and which rows were gathered; where no path gives it, the workload's schedule stands in."""
    BITS = auto()
    """Memories before the first and after the last instruction."""
    TIMES = auto()
    """Start and end of each instruction; they follow from program, hardware and trace, so whoever needs them works them out."""
    ESTIMATE = auto()
    """Cycles in closed form, and a bound that no schedule beats."""
    CYCLES = auto()
    """One figure for the whole program, `makespan_cycles` or `estimated_cycles`."""
    COUNTS = auto()
    """Event counts, which all paths share."""
    TOKENS = auto()
    """Generated tokens, and how far they are from the unquantised reference."""
    DIFFERENCES = auto()
    """Differences from the witnesses that the path runs beside: metrics `differing_*`, each expected to be 0."""
    QUALITY = auto()
    """Quality of the model: held-out problems solved, or its perplexity."""
    RESULTS = auto()
    """Results of all paths of the run."""
    FIGURES = auto()
    """Metrics of other hardware on the same workload."""
    CHECKS = auto()
    """Discrepancies of its own."""

    @property
    def argument(self) -> str:
        """The parameter of a path's function that takes it."""
        return str(self.name).lower()


INPUTS = (
    Fact.PROGRAM | Fact.HARDWARE | Fact.MODEL | Fact.WORKLOAD | Fact.NUMERICS | Fact.PROMPTS | Fact.TECHNOLOGY | Fact.TRACE
)  # fmt: skip
"""Facts that are handed to the function of a path."""
FROM_PATHS = Fact.BITS | Fact.TOKENS
"""Facts without a stand-in: a path that runs beside must give them."""


class Picture(Enum):
    """A picture that is drawn of a result (tripath.report.pictures)."""

    ROOFLINE = "roofline"
    STALLS = "stalls"
    STEPS = "steps"
    ENERGY = "energy"
    TIMELINE = "timeline"


@dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """A path: what it needs and gives, how it runs, what a reader sees of it.

    Attributes:
        name: Name in `paths` and in metrics.
        module: Where it lives; its results are kept under the sources of that module.
        needs: Facts that it is handed, or that others must give.
        gives: Facts that others may need, and by which the checks choose it.
        run: Called with the facts that it needs by name, and with its options; None: `simulate` of the module.
        content: Everything else that its results depend on; they are kept under it.
        cost: Metric by which jobs of a sweep are ordered; empty: by none of this path.
        headline: Metrics that the table of a sweep shows.
        style: Marker and line in pictures.
        pictures: Pictures of its result.
        sentence: Its metrics in a line for the terminal.
        light: It takes milliseconds, so that jobs of a sweep go together.
        here: It runs where the run is put together and is not kept: it takes no longer than a task costs, or is about that
            machine.
        library: A library that must be installed, with `tripath[study]`.
        files: Options that name a file; its bytes decide the results.
        modules: Options that name a module of a user; its sources decide the results.
    """

    name: str
    module: str
    needs: Fact
    gives: Fact
    run: Callable[..., Any] | None = None
    content: object = None
    cost: str = ""
    headline: Sequence[str] = ()
    style: str = "o-"
    pictures: Sequence[Picture] = ()
    sentence: Callable[[Mapping[str, float]], str] | None = None
    light: bool = False
    here: bool = False
    library: str = ""
    files: Sequence[str] = ()
    modules: Sequence[str] = ()

    @property
    def simulate(self) -> Callable[..., Any]:
        """The function of its module; its parameters with a default, of those that are no facts, are the path's options."""
        return import_module(self.module).simulate
