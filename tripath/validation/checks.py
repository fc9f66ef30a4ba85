"""The checks: what must be equal, what must bound what, what must be near what.

A check is a function from results and settings to discrepancies; to add one, write it and name it in `CHECKS`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

from npu.errors import TripathError
from npu.metrics import Result
from tripath.paths import Fact, giver_name, gives
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.settings import IDEAL, Settings

Results = Mapping[str, Result]
"""Results by name of the path."""

WITNESS_OF = {"differing_instructions": Fact.TIMES}
"""Which fact of another path a difference is from, where it is not its bits."""
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
    for estimate, exact in _estimated(results):
        estimated, timed = results[estimate].metrics, results[exact].metrics
        for name in sorted(set(estimated) & set(timed)):
            if name.startswith("busy_cycles."):
                yield Discrepancy(
                    metric=name, scope="program", kind="count", expected=estimated[name], expected_source=estimate,
                    observed=timed[name], observed_source=exact, tolerance=0.0,
                    reason="retired instructions times their intervals",
                )  # fmt: skip


def check_bound(results: Results, _: Settings) -> Iterator[Discrepancy]:
    """No schedule beats the lower bound in closed form."""
    for estimate, exact in _estimated(results):
        yield Discrepancy(
            metric="makespan_cycles", scope="program", kind="bound",
            expected=results[estimate].metrics["lower_bound_cycles"],
            expected_source=f"{estimate}.lower_bound_cycles",
            observed=results[exact].metrics["makespan_cycles"], observed_source=exact, tolerance=0.0,
            reason="no schedule beats the lower bound",
        )  # fmt: skip


def check_estimate(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """The estimate in closed form is near the makespan that every instruction's times make."""
    for estimate, exact in _estimated(results):
        yield Discrepancy(
            metric="makespan_cycles", scope="program", kind="estimate",
            expected=results[exact].metrics["makespan_cycles"], expected_source=exact,
            observed=results[estimate].metrics["estimated_cycles"], observed_source=f"{estimate}.estimated_cycles",
            tolerance=settings.estimate.value, reason=settings.estimate.reason,
        )  # fmt: skip


def check_energy(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """Both timing paths charge the same events alike, and their times differ no more than the estimate may."""
    tolerances = {
        "dynamic_energy_joules": (SAME_EVENTS, "the same events at the same energies; only the order of sums differs"),
        "energy_joules": (settings.energy.value, settings.energy.reason),
    }
    for (estimate, exact), (name, (tolerance, reason)) in itertools.product(_estimated(results), tolerances.items()):
        if all(name in results[path].metrics for path in (estimate, exact)):
            yield Discrepancy(
                metric=name, scope="program", kind="estimate", expected=results[exact].metrics[name],
                expected_source=exact, observed=results[estimate].metrics[name], observed_source=estimate,
                tolerance=tolerance, reason=reason,
            )  # fmt: skip


def check_fidelity(results: Results, settings: Settings) -> Iterator[Discrepancy]:
    """Who generates tokens stays near the unquantised reference."""
    for path, (name, tolerance) in itertools.product(_that_give(Fact.TOKENS, results), settings.fidelity.items()):
        yield Discrepancy(
            metric=name, scope="generation", kind="fidelity", expected=IDEAL[name], expected_source="FP32 reference",
            observed=results[path].metrics[name], observed_source=path, tolerance=tolerance.value,
            reason=tolerance.reason,
        )  # fmt: skip


def check_differences(results: Results, _: Settings) -> Iterator[Discrepancy]:
    """Who runs beside witnesses starts and ends every instruction as one of them does, and leaves the other's bits."""
    for path in _that_give(Fact.DIFFERENCES, results):
        metrics = results[path].metrics
        expected = {name: (giver_name(WITNESS_OF.get(name, Fact.BITS)), 0.0) for name in metrics
                    if name.startswith("differing_")}  # fmt: skip
        for exact in _that_give(Fact.TIMES, results):
            expected["makespan_cycles"] = exact, results[exact].metrics["makespan_cycles"]
        for name, (source, value) in expected.items():
            yield Discrepancy(
                metric=name, scope="program", kind="count", expected=value, expected_source=source, observed=metrics[name],
                observed_source=path, tolerance=0.0, reason="the same machine, described once more",
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
    check_counts, check_busy_cycles, check_bound, check_estimate, check_energy, check_fidelity, check_differences,
    check_references,
)  # fmt: skip
"""Every check, in the order in which people read them."""


def _that_give(fact: Fact, results: Results) -> list[str]:
    """The paths that ran and give a fact."""
    return [name for name in results if fact in gives(name)]


def _estimated(results: Results) -> list[tuple[str, str]]:
    """Every pair of a path that estimates and one that times each instruction."""
    return list(itertools.product(_that_give(Fact.ESTIMATE, results), _that_give(Fact.TIMES, results)))


def _family(name: str) -> str:
    return name.partition(".")[0]
