"""A sweep for continuous integration: junit.xml, a test case for each job and kind of check, and summary.md, a table."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from tripath.sweeps.baseline import Drift, by_metric
from tripath.sweeps.summary import Row, markdown_line, markdown_text, summary

JUNIT, MARKDOWN = "junit.xml", "summary.md"
RUN, BASELINE = "run", "baseline"
"""The cases that are no kind of check: the job gave results; they are those of the baseline."""
MOST_LINES = 100
"""Of drifts in summary.md; junit.xml has all."""
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A test case of a job. `outcome`: what a `message` of one says, a tag of JUnit; None: it passed."""

    check: str
    outcome: str | None = None
    lines: Sequence[str] = ()
    seconds: float = 0.0


def cases_of(row: Row) -> Iterator[Case]:
    """The cases of a job: that it ran, and each kind of its checks. A kind that does not fail the run is skipped."""
    if row.report is None:
        yield Case(check=RUN, outcome="error", lines=[row.error or row.verdict])
        return
    yield Case(check=RUN, seconds=sum(row.wall_seconds.values()))
    failed: dict[str, list[str]] = {}
    for check in row.report["discrepancies"]:
        lines = failed.setdefault(check["kind"], [])
        if check["verdict"] != "passed":
            lines.append(
                f"{check['metric']} ({check['scope']}): {check['observed_source']} has {check['observed']}, "
                f"{check['expected_source']} {check['expected']}, tolerance {check['tolerance']:g}"
            )
    for kind, lines in failed.items():
        outcome = None if not lines else "failure" if kind in row.fail_on else "skipped"
        yield Case(check=kind, outcome=outcome, lines=lines)


def junit(rows: Sequence[Row], drifts: Sequence[Drift] | None) -> bytes:
    """The sweep as JUnit reads it: a suite for each job. `drifts` None: there is no baseline."""
    suites = {row.name: list(cases_of(row)) for row in sorted(rows, key=lambda row: row.number)}
    if drifts is not None:
        lines = _by_job(drifts)
        for name in dict.fromkeys([*suites, *lines]):
            drifted = lines.get(name, [])
            case = Case(check=BASELINE, outcome="failure" if drifted else None, lines=drifted)
            suites.setdefault(name, []).append(case)
    every = [case for cases in suites.values() for case in cases]
    root = ET.Element("testsuites", {"name": "tripath", **_counts(every)})
    for name, cases in suites.items():
        suite = ET.SubElement(root, "testsuite", {"name": _clean(name), **_counts(cases)})
        for case in cases:
            attributes = {"classname": _clean(name), "name": case.check, "time": f"{case.seconds:.3f}"}
            element = ET.SubElement(suite, "testcase", attributes)
            if case.outcome:
                first, more = case.lines[0], len(case.lines) - 1
                message = f"{first}, and {more} more" if more else first
                ET.SubElement(element, case.outcome, message=_clean(message)).text = _clean("\n".join(case.lines))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def markdown(rows: Sequence[Row], drifts: Sequence[Drift] | None, metric: str | None, shown: Sequence[str] = ()) -> str:
    """The sweep as a page of a pipeline: what became of it, a table of its jobs, what failed, what drifted."""
    bad = sum(row.verdict != "passed" for row in rows)
    title = "failed" if bad or drifts else "passed"
    against = "" if drifts is None else f"; drifts from the baseline: {len(drifts)}"
    table, lines = summary(rows, metric, shown), _by_job(drifts or [])
    names = {str(row.number): row.name for row in rows}
    columns = [*table.columns, *([] if drifts is None else ["drifts"])]
    text = [f"# Sweep {title}", "", f"{len(rows)} jobs, {bad} not passed{against}.", "", markdown_line(columns),
            "|---" * len(columns) + "|"]  # fmt: skip
    for cells in table.rows:
        drifted = [] if drifts is None else [str(len(lines.get(names[str(cells[0])], [])))]
        text.append(markdown_line([*map(str, cells), *drifted]))
    failed = [f"- {row.name}: {case.check}: {line}" for row in rows for case in cases_of(row)
              if case.outcome in {"failure", "error"} for line in case.lines]  # fmt: skip
    drifted = [f"- {job}: {line}" for job, of_job in lines.items() for line in of_job]
    grouped = [f"- {line}" for line in by_metric(drifts or [], len(rows))]
    for heading, items in (("Failed", failed), ("Drifts by metric", grouped), ("Drifts", drifted)):
        if items:
            left = len(items) - MOST_LINES
            rest = [f"- and {left} more, in {JUNIT}"] if left > 0 else []
            text += ["", f"## {heading}", "", *map(markdown_text, items[:MOST_LINES]), *rest]
    return "\n".join(text) + "\n"


def _by_job(drifts: Sequence[Drift]) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for drift in drifts:
        lines.setdefault(drift.job, []).append(str(drift))
    return lines


def _counts(cases: Sequence[Case]) -> Mapping[str, str]:
    """The attributes of a suite."""
    number = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counts = {name: str(sum(case.outcome == outcome for case in cases)) for name, outcome in number.items()}
    return {"tests": str(len(cases)), **counts, "time": f"{sum(case.seconds for case in cases):.3f}"}


def _clean(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return NOT_XML.sub("?", text)
