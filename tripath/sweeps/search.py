"""A search through a space of designs: the analytical path proposes, the cycle path confirms the front.

A design is a choice of one value for each axis. Every design is weighed by objectives (metrics to be small, or large) and held
to limits; the front are those within the limits that no other beats in one objective without being worse in another.
"""

import csv
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from npu.choices import check_choices, one_of, within
from npu.errors import TripathError
from npu.metrics import Table
from tripath.paths import Fact, giver_name
from tripath.report.drawing import BLUE, VERMILION, literal, new_figure, save, worded
from tripath.sweeps.study import front as best_of
from tripath.sweeps.summary import Row, markdown_line

if TYPE_CHECKING:
    import optuna

DIRECTIONS = {"minimize": 1.0, "maximize": -1.0}
SAMPLERS = ("grid", "optuna")
PROPOSED, CONFIRMED = f"{giver_name(Fact.ESTIMATE)}.", f"{giver_name(Fact.TIMES)}."
"""Metrics of the path that proposes have their like in the path that confirms."""
QUALITY = f"{giver_name(Fact.QUALITY)}."
"""Metrics of a design's formats, from the file `quality`."""
OF_ROW = ("numerics", "model")
"""Columns of that file which are no metric."""
DESIGNS, FRONT, PICTURE = "designs.csv", "pareto.md", "pareto.png"
PATIENCE = 20
"""Proposals for each new design that a sampler may make before its space counts as used up."""
MOST_DESIGNS = 1_000_000

Design = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Designs to run next; the last batch confirms the front."""

    designs: Sequence[Design]
    confirms: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighed:
    """A design that ran: its job, its metrics, and by how much it exceeds each limit (0: not at all)."""

    number: int
    design: Design
    metrics: Mapping[str, float]
    excess: Sequence[float]

    @property
    def feasible(self) -> bool:
        """True if the design keeps every limit."""
        return not any(self.excess)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """The goals of a search, and its method.

    Attributes:
        objectives: Metrics, each to `minimize` or `maximize`.
        limits: Metrics, each with the largest value allowed.
        sampler: grid tries every design; optuna lets NSGA-II choose some.
        trials: Designs that optuna chooses.
        batch: Designs that run together.
        seed: Seed of optuna's choices.
        confirm: Overrides of the jobs that confirm the front.
        confirm_at_most: Designs that are confirmed, spread over the front.
        quality: A CSV file with columns `numerics` (a choice of formats), `model` (the model measured), and one for each
            metric `quality.NAME` that the choice decides; null: none.
        numerics: The choice of formats where it is not an axis; the command line fills it in.
    """

    objectives: Mapping[str, str]
    limits: Mapping[str, float] = field(default_factory=dict, metadata=within(-1e30, 1e30))
    sampler: str = field(default="grid", metadata=one_of(SAMPLERS))
    trials: int = field(default=300, metadata=within(1, MOST_DESIGNS))
    batch: int = field(default=50, metadata=within(1, MOST_DESIGNS))
    seed: int = field(default=0, metadata=within(0, (1 << 32) - 1))
    confirm: Sequence[str] = ("paths=[analytical,cycle]",)
    confirm_at_most: int = field(default=24, metadata=within(0, MOST_DESIGNS))
    quality: str | None = None
    numerics: str = ""

    def __post_init__(self) -> None:
        if not self.objectives:
            raise TripathError("hydra.sweeper.search.objectives: at least one metric is needed")
        for name, direction in self.objectives.items():
            if direction not in DIRECTIONS:
                known = ", ".join(DIRECTIONS)
                raise TripathError(f"hydra.sweeper.search.objectives.{name}: unknown {direction!r}, one of {known}")
        check_choices("hydra.sweeper.search", self)

    def batches(self, axes: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> Iterator[Batch]:
        """Yield the designs to run, batch by batch. The caller adds the jobs of a batch to `rows` before it asks for the next.

        Raises:
            TripathError: there is no axis, no design has one of the objectives, or a file cannot be read.
        """
        if not axes:
            raise TripathError("hydra.sweeper.params: nothing is swept, give at least one axis with several values")
        quality = self._quality()
        if self.sampler == "grid":
            yield Batch(designs=[dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())])
        else:
            yield from self._ask(axes, rows, quality)
        front = self.front(self.weighed(rows, quality))
        if front and self.confirm_at_most:
            yield Batch(designs=[each.design for each in spread(front, self.confirm_at_most)], confirms=True)

    def _ask(
        self, axes: Mapping[str, Sequence[str]], rows: Sequence[Row], quality: Mapping[str, Mapping[str, float]]
    ) -> Iterator[Batch]:
        """Batches of what Optuna proposes; a design that it proposes again is answered at once."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.NSGAIISampler(population_size=self.batch, seed=self.seed)
        study = optuna.create_study(directions=cast("Any", [*self.objectives.values()]), sampler=sampler)
        known: dict[tuple[str, ...], Weighed | None] = {}
        while len(known) < self.trials:
            asked: dict[tuple[str, ...], list[optuna.Trial]] = {}
            for _ in range(PATIENCE * self.batch):
                trial = study.ask()
                key = tuple(trial.suggest_categorical(axis, values) for axis, values in axes.items())
                if key in known:
                    self._tell(study, trial, known[key])
                    continue
                asked.setdefault(key, []).append(trial)
                if len(asked) == min(self.batch, self.trials - len(known)):
                    break
            if not asked:
                return
            yield Batch(designs=[dict(zip(axes, key, strict=True)) for key in asked])
            found = {tuple(each.design.values()): each for each in self.weighed(rows, quality)}
            for key, trials in asked.items():
                known[key] = found.get(key)
                for trial in trials:
                    self._tell(study, trial, known[key])

    def _tell(self, study: "optuna.Study", trial: "optuna.Trial", weighed: Weighed | None) -> None:
        import optuna

        if weighed is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        for name, excess in zip(self.limits, weighed.excess, strict=True):
            trial.set_constraint(name, excess)
        study.tell(trial, [weighed.metrics[name] for name in self.objectives])

    def weighed(self, rows: Sequence[Row], quality: Mapping[str, Mapping[str, float]] | None = None) -> list[Weighed]:
        """The proposals among `rows`, by job number; not those that cannot be.

        Raises:
            TripathError: a job lacks an objective or a limit.
        """
        quality = self._quality() if quality is None else quality
        found = []
        for row in sorted(rows, key=lambda row: row.number):
            if not row.metrics or row.report is not None:
                continue
            metrics = {**row.metrics, **quality.get(row.swept.get("numerics", self.numerics), {})}
            for name in (*self.objectives, *self.limits):
                if name not in metrics:
                    where = "objectives" if name in self.objectives else "limits"
                    raise TripathError(f"hydra.sweeper.search.{where}.{name}: no such metric in {row.name}")
            excess = [max(0.0, metrics[name] - limit) for name, limit in self.limits.items()]
            found.append(Weighed(number=row.number, design=row.swept, metrics=metrics, excess=excess))
        return found

    def front(self, weighed: Sequence[Weighed]) -> list[Weighed]:
        """Those within the limits that no other of them beats, by the first objective; of equals the first."""
        feasible = [each for each in weighed if each.feasible]
        if not feasible:
            return []
        values = self._values([each.metrics for each in feasible])
        kept = [each for each, beaten in zip(feasible, dominated(values), strict=True) if not beaten]
        first, sign = next(iter(self.objectives)), DIRECTIONS[next(iter(self.objectives.values()))]
        return sorted(kept, key=lambda each: (sign * each.metrics[first], each.number))

    def _values(self, metrics: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Objectives [designs, objectives], each to be small."""
        return np.array([[DIRECTIONS[way] * of[name] for name, way in self.objectives.items()] for of in metrics])

    def _quality(self) -> dict[str, dict[str, float]]:
        if self.quality is None:
            return {}
        try:
            with Path(self.quality).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
            return {
                row["numerics"]: {f"{QUALITY}{name}": float(row[name]) for name in row if name not in OF_ROW}
                for row in rows
            }
        except OSError as error:
            raise TripathError(f"hydra.sweeper.search.quality: cannot read {self.quality} ({error.strerror})") from None
        except (KeyError, ValueError, TypeError, csv.Error):
            message = "needs a column numerics, and numbers in all others but model"
            raise TripathError(f"hydra.sweeper.search.quality: {self.quality} {message}") from None

    def _titled(self, name: str, told: Callable[[str], str] = str) -> str:
        """A metric as tables and pictures call it: of quality with the model that it was measured on."""
        if self.quality is None or not name.startswith(QUALITY):
            return told(name)
        with Path(self.quality).open(newline="", encoding="utf-8") as file:
            models = dict.fromkeys(row.get("model") for row in csv.DictReader(line for line in file if line[:1] != "#"))
        measured = ", ".join(model for model in models if model)
        return f"{told(name)} of {literal(measured)}" if measured else told(name)

    def outcome(self, rows: Sequence[Row]) -> tuple[str, Table]:
        """In a sentence what was found, and the front: designs, objectives as proposed, and what the confirming path says."""
        weighed, front, told = self._found(rows)
        within = sum(each.feasible for each in weighed)
        limits = ", ".join(f"{self._titled(name)} <= {limit:g}" for name, limit in self.limits.items())
        kept = f", {within} of them within the limits ({limits})" if limits else ""
        confirmed = sum(each.number in told for each in front)
        said = f"{len(weighed)} designs{kept}; {len(front)} are on the front, {confirmed} of them confirmed"
        axes = [axis for axis in front[0].design if len({each.design[axis] for each in weighed}) > 1] if front else []
        names, shown = [axis.rpartition(".")[2] for axis in axes], self._shown
        twins = [name for name in self.objectives if any(_twin(name) in metrics for metrics in told.values())]
        stays = self._stays(front, told)
        cells = [
            [
                str(each.number), *(each.design[axis] for axis in axes), *(f"{each.metrics[name]:.4g}" for name in shown),
                *(f"{told[each.number][_twin(name)] / each.metrics[name] - 1:+.2%}" if each.number in told else ""
                  for name in twins), stays.get(each.number, ""),
            ]
            for each in front
        ]  # fmt: skip
        columns = [
            "job",
            *names,
            *map(self._titled, shown),
            *(f"{_twin(name)} against it" for name in twins),
            "stays on the front",
        ]
        return said, Table(columns=columns, rows=cells)

    def write(self, folder: Path, rows: Sequence[Row]) -> list[str]:
        """Write every design, the front as a table, and a picture; the names of the files."""
        weighed, front, told = self._found(rows)
        if not weighed:
            return []
        said, table = self.outcome(rows)
        lines = [f"{said}.", "", *map(markdown_line, (table.columns, *table.rows))]
        lines.insert(3, "|---" * len(table.columns) + "|")
        (folder / FRONT).write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._write_designs(folder / DESIGNS, weighed, {each.number for each in front})
        return [DESIGNS, FRONT, *(file.name for file in self._draw(folder / PICTURE, weighed, front, told))]

    @property
    def _shown(self) -> list[str]:
        return list(dict.fromkeys([*self.objectives, *self.limits]))

    def _found(self, rows: Sequence[Row]) -> tuple[list[Weighed], list[Weighed], dict[int, Mapping[str, float]]]:
        """Every proposal, the front, and what the path that confirms says of a design by the number of its proposal."""
        weighed = self.weighed(rows)
        numbers = {tuple(each.design.values()): each.number for each in weighed}
        axes = list(weighed[0].design) if weighed else []
        keys = {tuple(row.swept.get(axis, "") for axis in axes): row.metrics for row in rows if row.report is not None}
        return weighed, self.front(weighed), {numbers[key]: told for key, told in keys.items() if key in numbers}

    def _write_designs(self, path: Path, weighed: Sequence[Weighed], front: set[int]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            titles = [*map(self._titled, self._shown)]
            table.writerow(["job", *weighed[0].design, *titles, "within limits", "on the front"])
            for each in weighed:
                numbers = [each.metrics[name] for name in self._shown]
                table.writerow(
                    [each.number, *each.design.values(), *numbers, int(each.feasible), int(each.number in front)]
                )

    def _stays(self, front: Sequence[Weighed], told: Mapping[int, Mapping[str, float]]) -> dict[int, str]:
        """Of each confirmed design, whether no other confirmed one beats it in the numbers of the path that confirms."""
        own = [each for each in front if each.number in told]
        if not own:
            return {}
        exact = [{name: told[e.number].get(_twin(name), e.metrics[name]) for name in self.objectives} for e in own]
        beaten = dominated(self._values(exact))
        return {each.number: "no" if lost else "yes" for each, lost in zip(own, beaten, strict=True)}

    def _draw(
        self, path: Path, weighed: Sequence[Weighed], front: Sequence[Weighed],
        told: Mapping[int, Mapping[str, float]],
    ) -> list[Path]:  # fmt: skip
        """The first two objectives against each other; colour is the third, the marker the choice of formats."""
        names = list(self.objectives)
        across, up = names[0], names[1] if len(names) > 1 else names[0]
        figure = new_figure(9, 5.5)
        axes = figure.subplots()
        outside = [each for each in weighed if not each.feasible]
        inside = [each for each in weighed if each.feasible]
        if outside:
            axes.scatter([e.metrics[across] for e in outside], [e.metrics[up] for e in outside], s=10, color="#dddddd",
                         label=f"beyond the limits ({len(outside)})", zorder=1)  # fmt: skip
        choices = list(dict.fromkeys(e.design.get("numerics", "") for e in inside))
        colour = names[2] if len(names) > 2 else None
        shades = [e.metrics[colour] for e in inside] if colour else [0.0]
        scale: dict[str, Any] = {"vmin": min(shades), "vmax": max(shades), "cmap": "viridis"} if colour else {}
        drawn = None
        for choice, marker in zip(choices, itertools.cycle("osD^vP"), strict=False):
            of = [e for e in inside if e.design.get("numerics", "") == choice]
            shade: dict[str, Any] = {"c": [e.metrics[colour] for e in of], **scale} if colour else {"color": BLUE}
            drawn = axes.scatter([e.metrics[across] for e in of], [e.metrics[up] for e in of], s=16, marker=marker, zorder=2,
                                 label=literal(f"{choice or 'designs'} ({len(of)})"), **shade)  # fmt: skip
        axes.scatter([e.metrics[across] for e in front], [e.metrics[up] for e in front], s=70, facecolors="none",
                     edgecolors=VERMILION, linewidths=1.4, label=f"front ({len(front)})", zorder=3)  # fmt: skip
        if front and up != across:
            first, second = (DIRECTIONS[self.objectives[name]] for name in (across, up))
            line = best_of([(first * e.metrics[across], -second * e.metrics[up]) for e in front])
            axes.step([first * x for x, _ in line], [-second * y for _, y in line], where="post", color=VERMILION,
                      linewidth=1, zorder=2, label="front of these two alone")  # fmt: skip
        exact = [
            [told[e.number].get(_twin(name), e.metrics[name]) for name in (across, up)]
            for e in front
            if e.number in told
        ]
        if exact:
            axes.scatter(*zip(*exact, strict=True), marker="x", s=40, color="black", zorder=4,
                         label=f"confirmed by the cycle path ({len(exact)})")  # fmt: skip
        if drawn is not None and colour:
            figure.colorbar(drawn, ax=axes, label=self._titled(colour, worded))
        for scale_of, name in ((axes.set_xscale, across), (axes.set_yscale, up)):
            values = [e.metrics[name] for e in weighed]
            if min(values) > 0 and max(values) > 10 * min(values):
                scale_of("log")
        axes.set(xlabel=self._titled(across, worded), ylabel=self._titled(up, worded), title=f"{len(weighed)} designs")
        axes.grid(visible=True, alpha=0.2)
        axes.legend(fontsize=8)
        return save(figure, path)


def dominated(values: np.ndarray) -> np.ndarray:
    """Of each row of `values` [designs, objectives], all to be small, whether another beats it; of equal rows the first stays."""
    lost = np.zeros(len(values), bool)
    for number, own in enumerate(values):
        no_worse = (values <= own).all(axis=1)
        better = no_worse & (values < own).any(axis=1)
        equal_before = no_worse[:number] & (values[:number] == own).all(axis=1)
        lost[number] = better.any() or equal_before.any()
    return lost


def spread(front: Sequence[Weighed], most: int) -> list[Weighed]:
    """At most `most` of an ordered front, evenly from its first to its last."""
    if len(front) <= most:
        return list(front)
    places = [math.floor(number * (len(front) - 1) / max(1, most - 1)) for number in range(most)]
    return [front[place] for place in places]


def _twin(name: str) -> str:
    """The metric of the path that confirms which is the like of one of the path that proposes."""
    return CONFIRMED + name.removeprefix(PROPOSED) if name.startswith(PROPOSED) else name
