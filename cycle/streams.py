"""Reference streams: a file of memory streams with the cycles that an independent DRAM simulator took for each.

`data/hbm_streams.json` is the published one; its `pattern_grammar` and `memory` sections explain the format.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cycle.dram import CLOSED, READ, WRITE, Streamed, all_banks, memory_of, place, stream
from npu.errors import TripathError, did_you_mean
from npu.hardware import DRAM_TIMINGS, Hbm

SUBJECT = "validation.streams"
PUBLISHED = "published"
OPERATIONS = {"R": READ, "W": WRITE}
ORGANISATION = {
    "pseudo_channels": "pseudo_channels", "bank_groups": "bank_groups", "banks_per_group": "banks_per_group",
    "rows": "rows", "page_bytes_per_pseudo_channel": "page_bytes", "burst_bytes": "burst_bytes",
}  # fmt: skip
"""Keys of `memory.organisation` and the fields of `Hbm` that they give."""

DERIVED = {"read_to_write": "nCL + nBL + 2 - nCWL", "write_to_read": "nCWL + nBL + nWTR"}
"""Turnarounds as the model has them; a file that says otherwise is refused."""

LARGEST = 1 << 48
"""No number of a file is above: addresses stay far from the end of 64 bits."""

MOST_BURSTS = 1 << 24
"""More in one stream would take minutes."""

MOST = {
    "channels": 4096,
    "rows": 1 << 32,
    "page_bytes": 1 << 20,
    "read_queue_entries": 4096,
    "write_queue_entries": 4096,
}
"""Limits of single facts of a memory; it is 4096 for others of the organisation."""

DEEPEST = 8
"""Levels of streams that alternate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One stream of file `source`: its bursts (numbers, READ or WRITE each), the memory that serves them, the cycles expected."""

    name: str
    source: str
    pattern: str
    mapping: str
    channels: int
    hbm: Hbm
    numbers: np.ndarray
    kinds: np.ndarray
    cycles: int

    def run(self) -> Streamed:
        """Serve it, all banks closed before, refresh by the clock."""
        memory = memory_of(self.hbm)
        return stream(self.numbers, self.kinds, memory, all_banks(CLOSED, memory))

    @property
    def in_one_bank(self) -> bool:
        """True if all bursts go to the same bank, but not all to the same row."""
        memory, values = memory_of(self.hbm), np.empty(5, np.int64)
        bank, row = place(self.numbers[0], memory, values)[1:]
        several = False
        for number in self.numbers[1:]:
            other = place(number, memory, values)
            if other[1] != bank:
                return False
            several = several or other[2] != row
        return several


def read_streams(name: str, hbm: Hbm) -> list[Stream]:
    """The streams of file `name`, or of the published one; what its memory section leaves out is as in `hbm`.

    Raises:
        TripathError: the file cannot be read, or is not of the format; the message names the stream and the key.
    """
    source = files("cycle").joinpath("data/hbm_streams.json") if name == PUBLISHED else Path(name)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:120]
        raise TripathError(f"{SUBJECT}: cannot read {name} ({why}){did_you_mean(name, [PUBLISHED])}") from None
    reader = _Reader(name)
    top = reader.mapping(content, "the file")
    base = reader.memory(reader.mapping(top.get("memory", {}), "memory"), hbm)
    rows = reader.sequence(top.get("streams"), "streams")
    if not rows:
        reader.refuse("streams", "must not be empty")
    return [reader.stream(reader.mapping(row, f"streams[{i}]"), f"streams[{i}]", base) for i, row in enumerate(rows)]


class _Reader:
    """Checks what it reads; `at` says where in the file a value is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def refuse(self, at: str, rule: str) -> NoReturn:
        raise TripathError(f"{SUBJECT}: {self._name}: {at}: {rule}")

    def mapping(self, value: object, at: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.refuse(at, f"must be an object, got {_short(value)}")
        return value

    def sequence(self, value: object, at: str) -> Sequence[Any]:
        if not isinstance(value, list):
            self.refuse(at, f"must be a list, got {_short(value)}")
        return value

    def text(self, values: Mapping[str, Any], key: str, at: str) -> str:
        value = values.get(key)
        if not isinstance(value, str) or not value or not value.isprintable():
            self.refuse(f"{at}.{key}", f"must be a printable text, got {_short(value)}")
        return value

    def number(
        self,
        values: Mapping[str, Any],
        key: str,
        at: str,
        *,
        least: int = 1,
        most: int = LARGEST,
        default: int | None = None,
    ) -> int:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(f"{at}.{key}", f"must be an integer from {least} to {most}, got {_short(value)}")
        return value

    def memory(self, values: Mapping[str, Any], hbm: Hbm) -> Hbm:
        """`hbm` with what the memory section gives, refreshed by the clock."""
        given: dict[str, Any] = {"refresh": "absolute"}
        organisation = self.mapping(values.get("organisation", {}), "memory.organisation")
        for key, field in ORGANISATION.items():
            if key in organisation:
                given[field] = self.number(organisation, key, "memory.organisation", most=MOST.get(field, 4096))
        for key, field in (("tCK_ps", "tck_ps"), ("read_queue_entries", "read_queue_entries"),
                           ("write_queue_entries", "write_queue_entries")):  # fmt: skip
            if key in values:
                given[field] = self.number(values, key, "memory", most=MOST.get(field, LARGEST))
        timings, at = self.mapping(values.get("timings_cycles", {}), "memory.timings_cycles"), "memory.timings_cycles"
        known = dict(hbm.timings)
        for key in timings:
            if key in DERIVED:
                if "".join(self.text(timings, key, at).split()) != "".join(DERIVED[key].split()):
                    self.refuse(f"{at}.{key}", f"is modelled as {DERIVED[key]}, got {_short(timings[key])}")
            elif key == "ACT_command_cycles":
                given["act_command_cycles"] = self.number(timings, key, at)
            elif key in DRAM_TIMINGS:
                known[key] = self.number(timings, key, at)
            else:
                self.refuse(at, f"no timing {_short(key)}, one of {', '.join(DRAM_TIMINGS)}")
        return self._hbm(hbm, "memory", timings=known, **given)

    def stream(self, values: Mapping[str, Any], at: str, base: Hbm) -> Stream:
        """One entry of `streams`."""
        name = self.text(values, "stream", at)
        at = f"{at} ({name[:40]})"
        mapping = self.text(values, "address_mapping", at)
        channels = self.number(values, "channels", at, most=MOST["channels"])
        interleave = base.interleave_bytes
        if values.get("channel_interleave_bytes") is not None:
            interleave = self.number(values, "channel_interleave_bytes", at)
        hbm = self._hbm(base, at, address_mapping=mapping, channels=channels, interleave_bytes=interleave)
        pattern = self.mapping(values.get("pattern"), f"{at}.pattern")
        numbers, kinds = self.bursts(pattern, f"{at}.pattern", hbm.burst_bytes, DEEPEST)
        return Stream(
            name=name, source=self._name, pattern=pattern["kind"], mapping=mapping, channels=channels, hbm=hbm, numbers=numbers,
            kinds=kinds, cycles=self.number(values, "cycles", at),
        )  # fmt: skip

    def bursts(self, values: Mapping[str, Any], at: str, burst: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Burst numbers of a pattern in order, and READ or WRITE each."""
        kind = self.text(values, "kind", at)
        if kind == "alternate":
            return self._alternate(values, at, burst, depth)
        operation = self.text(values, "op", at)
        if operation not in OPERATIONS:
            self.refuse(f"{at}.op", f"must be R or W, got {_short(operation)}")
        if kind == "rows":
            rows, size = self.number(values, "rows", at), self.number(values, "row_bytes", at)
            stride = self.number(values, "stride_bytes", at, least=0, default=size)
            first = self.number(values, "base", at, least=0, default=0)
            self._limit(rows * (size // burst + 1), at)
            if rows * stride > LARGEST:
                self.refuse(f"{at}.stride_bytes", f"{rows} rows must end below {LARGEST}, got {stride}")
            starts = first + np.arange(rows, dtype=np.int64) * stride
        elif kind == "random":
            count, size = self.number(values, "count", at), self.number(values, "granule_bytes", at)
            span, seed = self.number(values, "span_bytes", at), self.number(values, "seed", at, least=0)
            self._limit(count * (size // burst + 1), at)
            draw = random.Random(seed)  # noqa: S311  the format names this generator
            starts = np.array([draw.randrange(0, span, size) for _ in range(count)], np.int64)
        else:
            self.refuse(f"{at}.kind", f"must be rows, alternate or random, got {_short(kind)}")
        firsts = starts // burst
        counts = (starts + size - 1) // burst + 1 - firsts
        self._limit(int(counts.sum()), at)
        skipped = np.repeat(firsts - np.cumsum(counts) + counts, counts)  # number minus position, in each run
        numbers = skipped + np.arange(len(skipped))
        return numbers, np.full(len(numbers), OPERATIONS[operation], np.int64)

    def _alternate(self, values: Mapping[str, Any], at: str, burst: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        granule = -(-self.number(values, "granule_bytes", at) // burst)
        inner = self.sequence(values.get("streams"), f"{at}.streams")
        if not inner:
            self.refuse(f"{at}.streams", "must not be empty")
        if not depth:
            self.refuse(at, f"streams alternate at most {DEEPEST} levels deep")
        made = [
            self.bursts(self.mapping(row, f"{at}.streams[{i}]"), f"{at}.streams[{i}]", burst, depth - 1)
            for i, row in enumerate(inner)
        ]
        self._limit(sum(len(numbers) for numbers, _ in made), at)
        # A burst's turn is its granule's number, then its stream's; a stable sort keeps the order within a granule.
        turns = np.concatenate(
            [np.arange(len(numbers)) // granule * len(made) + i for i, (numbers, _) in enumerate(made)]
        )
        order = np.argsort(turns, kind="stable")
        return tuple(np.concatenate(parts)[order] for parts in zip(*made, strict=True))  # type: ignore[return-value]

    def _limit(self, bursts: int, at: str) -> None:
        if bursts > MOST_BURSTS:
            self.refuse(at, f"must be at most {MOST_BURSTS} bursts, got {bursts}")

    def _hbm(self, hbm: Hbm, at: str, **changes: Any) -> Hbm:  # noqa: ANN401  fields of Hbm
        try:
            return dataclasses.replace(hbm, **changes)
        except TripathError as error:
            self.refuse(at, str(error).removeprefix("hardware.hbm."))


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:40]}..."
