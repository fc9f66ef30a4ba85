"""The headline of a report, as text: a row for each timing path, the energy in a line, and the checks."""

from collections.abc import Mapping

from npu.metrics import Table
from npu.units import format_seconds
from tripath.experiment import Experiment, Outcome
from tripath.paths import Fact, cycles_of, gives, most_exact
from tripath.validation import WHOLE_RUN, Discrepancy


def headline(experiment: Experiment, outcome: Outcome) -> Table:
    """One row per timing path, as text: what a reader looks at first.

    Where a path gave tokens, those before the end token are counted apart (kept/s).
    """
    rows, kept = [], _kept_share(outcome)
    for name, result in outcome.results.items():
        metrics, cycles = result.metrics, cycles_of(result.metrics)
        if Fact.CYCLES not in gives(name) or cycles is None:
            continue
        row = [name, f"{cycles:,.0f}", format_seconds(cycles / experiment.hardware.clock_hz)]
        speed = metrics.get("tokens_per_second")
        row.append("" if speed is None else _number(speed))
        if kept is not None:
            row.append("" if speed is None else _number(kept * speed))
        if "sampling_share" in metrics:
            row += [_bound_by(metrics, cycles), f"{metrics['matrix_utilisation']:.1%}", f"{metrics['sampling_share']:.1%}",
                    _number(metrics["tokens_per_joule"]) if "tokens_per_joule" in metrics else ""]  # fmt: skip
        rows.append(row)
    counted = ["tokens/s"] if kept is None else ["tokens/s", "kept/s"]
    columns = ["path", "cycles", "time", *counted, "bound by", "array use", "sampling", "tokens/J"]
    return Table(columns=columns, rows=[[*row, *[""] * (len(columns) - len(row))] for row in rows])


def _kept_share(outcome: Outcome) -> float | None:
    """Of the generated tokens, those before the end token; None where no path gave tokens."""
    for result in outcome.results.values():
        if "kept_tokens" in result.metrics:
            return result.metrics["kept_tokens"] / result.metrics["generated_tokens"]
    return None


def energy_line(outcome: Outcome) -> str:
    """Energy, power and area of the run in one line, by the most exact path; empty without a technology."""
    path, prefix = most_exact(outcome.results), "block_energy_joules."
    if path is None or "energy_joules" not in outcome.results[path].metrics:
        return ""
    metrics = outcome.results[path].metrics
    blocks = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    largest = sorted(blocks, key=lambda name: -blocks[name])[:3]
    shares = ", ".join(f"{name} {blocks[name] / metrics['energy_joules']:.0%}" for name in largest)
    return (
        f"energy {metrics['energy_joules']:.3g} J ({shares}), {metrics['average_power_watts']:.3g} W of at most "
        f"{metrics['peak_power_watts']:.3g} W, {metrics['area_mm2']:.3g} mm2; "
        f"{metrics['energy_assumed_share']:.0%} of the energy rests on assumed numbers"
    )


def verdicts(outcome: Outcome) -> Table:
    """The checks as text: equal counts in one row, everything else singly; a failure names its two witnesses."""
    rows: list[list[str]] = []
    equal = sum(row.kind == "count" and row.passed for row in outcome.discrepancies)
    if equal:
        rows.append([f"{equal} counts equal", "count", "", "", "", "0", "passed"])
    rows += [
        [
            _subject(row) if row.passed else f"{_subject(row)}: {row.observed_source} vs {row.expected_source}", row.kind,
            _number(row.expected), _number(row.observed), _error(row.kind, row.relative_error),
            _tolerance(row.kind, row.tolerance), row.verdict,
        ]
        for row in outcome.discrepancies
        if row.kind != "count" or not row.passed
    ]  # fmt: skip
    return Table(columns=["check", "kind", "expected", "observed", "error", "tolerance", "verdict"], rows=rows)


def _subject(row: Discrepancy) -> str:
    return row.metric if row.scope in WHOLE_RUN else f"{row.metric} {row.scope}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.5g}"


def _error(kind: str, error: float) -> str:
    return f"{error:+.4f}" if kind == "fidelity" else f"{error:+.2%}"


def _tolerance(kind: str, tolerance: float) -> str:
    if kind == "bound":
        return ">="
    return f"{tolerance:g}" if kind == "fidelity" or tolerance < 1e-3 else f"{tolerance:.0%}"


def _bound_by(metrics: Mapping[str, float], cycles: float) -> str:
    """The busiest resource, with its share of the time."""
    kind = "bound_cycles." if any(name.startswith("bound_cycles.") for name in metrics) else "busy_cycles."
    loads = {name.removeprefix(kind): value for name, value in metrics.items() if name.startswith(kind)}
    busiest = max(loads, key=lambda name: loads[name])
    return f"{busiest} {loads[busiest] / cycles:.0%}"
