"""The output of a run on the terminal: progress while it works, then text, tables and where to look."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dllm.checkpoint import SYNTHETIC
from npu.errors import printable
from npu.metrics import Table as Rows
from tripath.experiment import Experiment, Outcome
from tripath.paths import PATHS
from tripath.report.headline import energy_line, headline, verdicts
from tripath.validation.settings import FREE_RUNNING

LEFT_COLUMNS = (
    "fact",
    "meaning",
    "matrix unit",
    "path",
    "metric",
    "bound by",
    "check",
    "kind",
    "verdict",
    "device",
    "phase",
    "note",
    "given",
)
SHOWN_PROMPTS = 4
LINE_SECONDS = 10.0
STYLES = {"passed": "green", "failed": "bold red", "bad input": "red", "internal error": "bold red"}


class _Console(Console):
    """A console that shows text as it is: brackets are no markup, colons no emoji; and that outlives its reader (`| head`)."""

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on: the work goes on, and its status stays what it is."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = _Console()
error_out = _Console(stderr=True, soft_wrap=True)


class Tracked(Protocol):
    """Where a run is found (tripath.tracking.store.Tracked)."""

    @property
    def run_id(self) -> str:
        """Identifier of the run."""
        ...

    @property
    def command(self) -> str:
        """Shell command that opens the store."""
        ...

    @property
    def page(self) -> str:
        """Address of the run."""
        ...


@contextmanager
def progress() -> Iterator[Callable[[dict[str, str]], None]]:
    """A status line: the state of each path and how long it has been in it; plain lines where no terminal is."""
    since: dict[str, tuple[str, float]] = {}

    with out.status("starting") as status:

        def show(state: dict[str, str]) -> None:
            now = time.monotonic()
            for name in set(since) - set(state):
                del since[name]
            for name, what in state.items():
                if since.get(name, ("", 0.0))[0] != what:
                    since[name] = what, now
                    if not out.is_terminal:
                        out.print(f"  {name}: {what}")
            status.update(Text("   ").join(_state(name, what, now - since[name][1]) for name, what in state.items()))

        yield show


@contextmanager
def sweep_progress() -> Iterator[Callable[[Sequence[str], int, int], None]]:
    """A bar: verdicts so far of how many jobs, how many of them were handed out, time to the end; where no terminal is, a
    line now and then."""
    began, printed = time.monotonic(), 0.0
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("waits for Ray", total=None)

        def show(verdicts: Sequence[str], total: int, running: int) -> None:
            nonlocal printed
            done, now = len(verdicts), time.monotonic()
            bad = sum(verdict not in ("passed", "infeasible") for verdict in verdicts)
            left = f", {format_clock((now - began) / done * (total - done))} left" if 0 < done < total else ""
            text = f"{done} of {total} jobs done, {running} handed out, {bad} failed{left}"
            bar.update(task, completed=done, total=total, description=text)
            if not out.is_terminal and (now - printed > LINE_SECONDS or done == total):
                printed = now
                out.print(f"  {text}")

        yield show


def format_clock(seconds: float) -> str:
    """Seconds as M:SS."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _state(name: str, what: str, elapsed: float) -> Text:
    seconds = "" if what.startswith("done") else f" {elapsed:.0f} s"
    return Text.assemble(f"{name} ", (what + seconds, "dim"))


def print_outcome(experiment: Experiment, outcome: Outcome, tracked: Tracked | None, folder: str) -> None:
    """Generated text, headline metrics, discrepancies, and where everything is."""
    if outcome.generated:
        for prompt, text in list(zip(outcome.generated.prompts, outcome.generated.texts, strict=True))[:SHOWN_PROMPTS]:
            out.print()
            out.print(Text.assemble(("prompt  ", "dim"), printable(prompt)))
            out.print(Text.assemble(("answer  ", "dim"), (printable(text), "bold")))
        steps = " + ".join(map(str, outcome.generated.trip_counts))
        out.print(Text(f"        {steps} denoising steps in {len(outcome.generated.trip_counts)} blocks", style="dim"))
    if outcome.program is not None:
        words = f"{len(outcome.program.words):,} instruction words"
        out.print()
        out.print(
            table_of(f"{experiment.model.name} on {experiment.hardware.name}, {words}", headline(experiment, outcome))
        )
        if line := energy_line(outcome):
            out.print(line, soft_wrap=True)
    if outcome.program is not None and experiment.trace_giver is None and not experiment.workload.commits.is_scheduled:
        steps = "no path says how many steps the commits take; timing has those of workload.steps"
        error_out.print(f"note: workload.commit={experiment.workload.commit}: {steps}", style="yellow")
    for result in outcome.results.values():
        if FREE_RUNNING in result.metrics and experiment.model.checkpoint == SYNTHETIC:
            what = "is not judged: tokens of random weights part at the first near tie"
            error_out.print(f"note: {result.simulator}.{FREE_RUNNING} {what}", style="yellow")
        if (until := result.metrics.get("recorded_until_cycle")) is not None:
            what = f"has more instructions than a timeline holds, which ends at cycle {until:,.0f}"
            error_out.print(f"note: simulator.{result.simulator}.trace_window: {what}", style="yellow")
    if outcome.reference_only:
        out.print(f"reference path only: no program carries out {outcome.reference_only}", soft_wrap=True)
    for row in PATHS.values():
        if row.sentence and row.name in outcome.results:
            out.print(f"{row.name}: {row.sentence(outcome.results[row.name].metrics)}", soft_wrap=True)
    took = [_took(outcome, name) for name in outcome.wall_seconds if name not in outcome.cached]
    if took:
        out.print(Text(f"simulated in {', '.join(took)}", style="dim"))
    if outcome.cached:
        out.print(Text(f"from the cache: {', '.join(outcome.cached)}", style="dim"))
    out.print()
    for title, table in outcome.tables.items():
        out.print(table_of(title, table))
        out.print()
    if outcome.discrepancies:
        out.print(table_of("cross-validation", verdicts(outcome)))
    out.print(verdict_line(outcome), style=STYLES[outcome.status])
    print_places(folder, tracked)


def _took(outcome: Outcome, name: str) -> str:
    """The time that a path took and the tokens that it generated per second, as text."""
    seconds, result = outcome.wall_seconds[name], outcome.results.get(name)
    tokens = result.metrics.get("generated_tokens", 0) if result else 0
    rate = f" ({tokens / seconds:.2g} tokens/s)" if tokens and seconds else ""
    return f"{name} {seconds:.1f} s{rate}"


def print_places(folder: str, tracked: Tracked | None) -> None:
    """Where the files of a run or a sweep are, and its page."""
    out.print(f"files   {folder}", soft_wrap=True)
    if tracked:
        out.print(f"mlflow  run {tracked.run_id}{', opened with' if tracked.command else ''}", soft_wrap=True)
        if tracked.command:
            out.print(f"        {tracked.command}", soft_wrap=True)
        out.print(f"        {tracked.page}", soft_wrap=True)


def verdict_line(outcome: Outcome) -> str:
    """The result of the checks in one line. Failures of a kind that `fail_on` leaves out are reported too."""
    failed = len(outcome.failures)
    missed = sum(not row.passed for row in outcome.discrepancies) - failed
    verdict = f"{failed} checks failed" if failed else "all checks hold" if outcome.discrepancies else "no checks"
    if missed:
        verdict += f" but {missed} of a kind that is only reported (validation.fail_on)"
    return verdict


def table_of(title: str, rows: Rows) -> Table:
    """A table of text cells as the console shows it; verdicts are coloured."""
    table = Table(title=printable(title), title_justify="left", box=None, pad_edge=False, padding=(0, 1))
    for column in rows.columns:
        side = "left" if column in LEFT_COLUMNS else "right"
        table.add_column(column, header_style="underline", justify=side, overflow="fold")
    for row in rows.rows:
        table.add_row(*(Text(printable(str(cell)), style=STYLES.get(str(cell), "")) for cell in row))
    return table
