"""The burst model of DRAM against streams that an independent simulator ran (docs/dram.md)."""

from collections.abc import Sequence

from cycle.streams import Stream
from tripath.validation.discrepancy import Discrepancy
from tripath.validation.settings import MAXIMUM_TOLERANCE

SEQUENTIAL, IRREGULAR = 0.05, 0.10
"""Relative bands: streams of rows, and conflicts in one bank, random or alternating ones, which hang on more decisions."""

SLACK_CYCLES = 4
"""Where a stream is so short that this is more, a stream may be so many cycles off."""


def check_streams(streams: Sequence[Stream]) -> list[Discrepancy]:
    """Run every stream; one discrepancy each."""
    return [_compare(stream) for stream in streams]


def _compare(stream: Stream) -> Discrepancy:
    regular = stream.pattern == "rows" and not stream.in_one_bank
    band, kind = (SEQUENTIAL, "sequential or strided") if regular else (IRREGULAR, "conflicts, random or alternating")
    tolerance, reason = band, f"{band:.0%}: {kind}"
    if band * stream.cycles < SLACK_CYCLES:
        tolerance = min(SLACK_CYCLES / stream.cycles, MAXIMUM_TOLERANCE["reference"])
        reason = f"{SLACK_CYCLES} of {stream.cycles} cycles, which is more than {band:.0%}: {kind}"
    return Discrepancy(
        metric="dram.cycles", scope=f"{stream.name}/{stream.mapping}/{stream.channels}ch", kind="reference",
        expected=stream.cycles, expected_source=f"{stream.source} streams", observed=stream.run().cycles,
        observed_source="cycle.dram", tolerance=tolerance, reason=reason,
    )  # fmt: skip
