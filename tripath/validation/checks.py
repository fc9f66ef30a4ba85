"""The checks: what must be equal, what must bound what, what must be near what.

A check is a function from results and settings to discrepancies; to add one, write it and name it in `CHECKS`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

from npu.errors import TripathError
from npu.metrics import Result
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.settings import IDEAL, Settings

Results = Mapping[str, Result]
"""Results by name of the path."""

SAME_EVENTS = 1e-9
"""Relative difference of two sums of the same terms in another order."""


def validate(results: Results, settings: Settings) -> list[Discrepancy]:
    """All discrepancies between the results of one program.

    Raises:
        TripathError: the results belong to different programs or traces and must not be compared.
    """
    check_digests(results)
    return list(itertools.chain.from_iterable(check(results, settings) for check in CHECKS))


def check_digests(results: Results) -> None:
    """Refuse results of different programs or traces; what ran no program may stand beside any.

    Raises:
        TripathError: a digest differs.
    """
    of_program = {name: result for name, result in results.items() if result.program_digest}
    for digest in ("program_digest", "trace_digest"):
        values = {name: getattr(result, digest) for name, result in of_program.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {value[:12]}" for name, value in values.items())
            what = digest.replace("_", " ")
            raise TripathError(f"validation: results of a different {what} are not comparable ({shown})")


def check_counts(results: Results, _: Settings) -> Iterator[Discrepancy]:
    """Event counts are equal between every two paths, exactly.

    A family of counts (`instructions.*`) that both paths know is compared over all its members: what one path never saw
    counts as 0 there.
    """
    for (first, one), (second, other) in itertools.combinations(sorted(results.items()), 2):
        common = {_family(name) for name in one.counts} & {_family(name) for name in other.counts}
        for name in sorted({*one.counts, *other.counts}):
            if _family(name) in common:
                yield Discrepancy(
                    metric=name, scope="program", kind="count", expected=one.counts.get(name, 0), expected_source=first,
                    observed=other.counts.get(name, 0), observed_source=second, tolerance=0.0,
                    reason="both count the same program",
                )  # fmt: skip


def check_busy_cycles(results: Results, _: Settings) -> Iterator[Discrepancy]:
    """Cycles in which a unit is occupied follow from counts and the hardware's intervals, so they are counts too."""
    if not {"analytical", "cycle"} <= set(results):
        return
    analytical, cycle = results["analytical"].metrics, results["cycle"].metrics
    for name in sorted(set(analytical) & set(cycle)):
        if name.startswith("busy_cycles."):
            yield Discrepancy(
                metric=name, scope="program", kind="count", expected=analytical[name], expected_source="analytical",
                observed=cycle[name], observed_source="cycle", tolerance=0.0,
                reason="retired instructions times their intervals",
            )  # fmt: skip


def check_bound(results: Results, _: Settings) -> Iterator[Discrepancy]:
    """No schedule beats the analytical lower bound."""
    if {"analytical", "cycle"} <= set(results):
        yield Discrepancy(
            metric="makespan_cycles", scope="program", kind="bound",
            expected=results["analytical"].metrics["lower_bound_cycles"],
            expected_source="analytical.lower_bound_cycles",
            observed=results["cycle"].metrics["makespan_cycles"], observed_source="cycle", tolerance=0.0,
            reason="no schedule beats the lower bound",
        )  # fmt: skip


def check_estimate(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """The analytical estimate is near the cycle path's makespan."""
    if {"analytical", "cycle"} <= set(results):
        yield Discrepancy(
            metric="makespan_cycles", scope="program", kind="estimate",
            expected=results["cycle"].metrics["makespan_cycles"], expected_source="cycle",
            observed=results["analytical"].metrics["estimated_cycles"], observed_source="analytical.estimated_cycles",
            tolerance=settings.estimate.value, reason=settings.estimate.reason,
        )  # fmt: skip


def check_energy(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """Both timing paths charge the same events alike, and their times differ no more than the estimate may."""
    if not {"analytical", "cycle"} <= set(results):
        return
    tolerances = {
        "dynamic_energy_joules": (SAME_EVENTS, "the same events at the same energies; only the order of sums differs"),
        "energy_joules": (settings.energy.value, settings.energy.reason),
    }
    for name, (tolerance, reason) in tolerances.items():
        if all(name in results[path].metrics for path in ("analytical", "cycle")):
            yield Discrepancy(
                metric=name, scope="program", kind="estimate", expected=results["cycle"].metrics[name],
                expected_source="cycle", observed=results["analytical"].metrics[name], observed_source="analytical",
                tolerance=tolerance, reason=reason,
            )  # fmt: skip


def check_fidelity(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """The executor stays near the unquantised reference."""
    if "accuracy" not in results:
        return
    for name, tolerance in settings.fidelity.items():
        yield Discrepancy(
            metric=name, scope="generation", kind="fidelity", expected=IDEAL[name], expected_source="FP32 reference",
            observed=results["accuracy"].metrics[name], observed_source="accuracy", tolerance=tolerance.value,
            reason=tolerance.reason,
        )  # fmt: skip


def check_rtl(results: Results, _: Settings) -> Iterator[Discrepancy]:
    """The RTL starts and ends every instruction when the cycle path says so, and leaves the executor's bits."""
    if "rtl" not in results:
        return
    metrics = results["rtl"].metrics
    expected = {name: ("cycle" if name == "differing_instructions" else "accuracy", 0.0) for name in metrics
                if name.startswith("differing_")}  # fmt: skip
    if "cycle" in results:
        expected["makespan_cycles"] = "cycle", results["cycle"].metrics["makespan_cycles"]
    for name, (source, value) in expected.items():
        yield Discrepancy(
            metric=name, scope="program", kind="count", expected=value, expected_source=source, observed=metrics[name],
            observed_source="rtl", tolerance=0.0, reason="the same machine, described once more",
        )  # fmt: skip


def check_references(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """Metrics against figures measured elsewhere; a figure for a path that did not run is left out.

    Raises:
        TripathError: a path that ran has no such metric.
    """
    for reference in settings.references:
        path, name = reference.metric.split(".", 1)
        if path not in results:
            continue
        if name not in results[path].metrics:
            raise TripathError(f"validation.references: {path} has no metric {name}")
        yield Discrepancy(
            metric=name, scope="program", kind="reference", expected=reference.expected,
            expected_source=reference.source, observed=results[path].metrics[name], observed_source=path,
            tolerance=reference.tolerance, reason=reference.reason,
        )  # fmt: skip


CHECKS: tuple[Callable[[Results, Settings], Iterator[Discrepancy]], ...] = (
    check_counts, check_busy_cycles, check_bound, check_estimate, check_energy, check_fidelity, check_rtl,
    check_references,
)  # fmt: skip
"""Every check, in the order in which people read them."""


def _family(name: str) -> str:
    return name.partition(".")[0]
