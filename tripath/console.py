"""What a run prints: progress while it works, then text, tables and where to look."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tripath.experiment import Experiment, Outcome
from tripath.tracking import Tracked
from tripath.units import format_seconds

out = Console(highlight=False, soft_wrap=False)
error_out = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """One line on standard error."""
    error_out.print(Text("error: ", style="bold red") + Text(" ".join(message.split())))


@contextmanager
def progress() -> Iterator[Callable[[dict[str, str]], None]]:
    """A status line with the state of each path and the time gone by; plain lines where no terminal is."""
    began, shown = time.monotonic(), dict[str, str]()
    with out.status("starting") as status:

        def show(state: dict[str, str]) -> None:
            text = "   ".join(f"{name}: {what}" for name, what in state.items())
            status.update(f"{text}   [dim]{time.monotonic() - began:.0f} s[/dim]")
            if not out.is_terminal and state != shown:
                for name, what in state.items():
                    if what != shown.get(name):
                        out.print(f"  {name}: {what}")
                shown.clear()
                shown.update(state)

        yield show


def print_outcome(experiment: Experiment, outcome: Outcome, tracked: Tracked | None, folder: str) -> None:
    """Generated text, headline metrics, discrepancies, and where everything is."""
    if outcome.generated:
        for prompt, text in list(zip(outcome.generated.prompts, outcome.generated.texts, strict=True))[:4]:
            out.print()
            out.print(Text("prompt  ", style="dim") + Text(prompt))
            out.print(Text("answer  ", style="dim") + Text(text, style="bold"))
        steps = " + ".join(map(str, outcome.generated.trip_counts))
        out.print(Text(f"        {steps} denoising steps in {len(outcome.generated.trip_counts)} blocks", style="dim"))
    out.print()
    out.print(_headline(experiment, outcome))
    out.print(_discrepancies(outcome))
    failed = len(outcome.failures)
    verdict = (
        Text("all checks hold", style="bold green") if not failed else Text(f"{failed} checks failed", style="bold red")
    )
    out.print(verdict)
    out.print(f"files   {folder}", soft_wrap=True)
    if tracked:
        out.print(f"mlflow  run {tracked.run_id}, open with", soft_wrap=True)
        out.print(f"        {tracked.command}", soft_wrap=True)
        out.print(f"        {tracked.page}", soft_wrap=True)


def _headline(experiment: Experiment, outcome: Outcome) -> Table:
    table = Table(title=f"{experiment.model.name} on {experiment.hardware.name}, {len(outcome.program.words)} instruction words",
                  title_justify="left")  # fmt: skip
    for name in ("path", "cycles", "time", "tokens/s", "bound by", "array use", "sampling", "took"):
        table.add_column(name, justify="left" if name in ("path", "bound by") else "right")
    for name, result in outcome.results.items():
        metrics = result.metrics
        took = format_seconds(outcome.wall_seconds[name])
        if name == "accuracy":
            agreement = f"token agreement {metrics['token_agreement']:.3f}, logit KL {metrics['logit_kl']:.2g}"
            table.add_row(name, "", "", "", agreement, "", "", took)
            continue
        cycles = metrics["makespan_cycles" if name == "cycle" else "estimated_cycles"]
        table.add_row(
            name, f"{cycles:,.0f}", format_seconds(cycles / experiment.hardware.clock_hz), f"{metrics['tokens_per_second']:,.0f}",
            _bound_by(result.metrics), f"{metrics['matrix_utilisation']:.1%}", f"{metrics['sampling_share']:.1%}", took,
        )  # fmt: skip
    return table


def _bound_by(metrics: Mapping[str, float]) -> str:
    """The unit that is busiest, with its share of the time."""
    total = metrics.get("makespan_cycles", metrics.get("estimated_cycles", 0.0))
    busy = {name.split(".", 1)[1]: value for name, value in metrics.items() if name.startswith("busy_cycles.")}
    unit = max(busy, key=lambda name: busy[name])
    return f"{unit} ({busy[unit] / total:.0%} busy)"


def _discrepancies(outcome: Outcome) -> Table:
    table = Table(title="cross-validation", title_justify="left")
    for name in ("check", "kind", "expected", "observed", "error", "tolerance", "verdict"):
        table.add_column(name, justify="left" if name in ("check", "kind", "verdict") else "right")
    counts = [row for row in outcome.discrepancies if row.kind == "count" and row.passed]
    if counts:
        table.add_row(
            f"{len(counts)} event counts of the paths", "count", "equal", "equal", "0", "0", "[green]passed[/green]"
        )
    for row in outcome.discrepancies:
        if row.kind == "count" and row.passed:
            continue
        verdict = "[green]passed[/green]" if row.passed else "[bold red]failed[/bold red]"
        table.add_row(
            f"{row.metric} ({row.observed_source} vs {row.expected_source})", row.kind, f"{row.expected:,.6g}",
            f"{row.observed:,.6g}", f"{row.relative_error:+.2%}", f"{row.tolerance:.0%}", verdict,
        )  # fmt: skip
    return table
