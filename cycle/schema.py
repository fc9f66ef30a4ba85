"""A state as a list of named fields, each with the way in which it counts when two moments of the state are compared.

All fields are int64 and lie in one array of words; arrays of records over the same words give them names. Compiled code reads
names, and what compares moments walks the list (`watch_rings`): it is written for any parts, rows and rings.
"""

from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

import numpy as np
from numba import njit

UNSEEN, EXACT, STRICT, IDLE, CLIPPED, INSTRUCTION, ADDRESS = range(7)
"""Rules for comparing a field. UNSEEN: ignored; nothing later depends on it, or it follows from others. EXACT: equal. STRICT: a
time, equal relative to now. IDLE: as STRICT, or unchanged and past. CLIPPED: a time, equal relative to now, or past in both
moments. INSTRUCTION: equal, the number of an instruction. ADDRESS: the addresses of that instruction, each moved along by its
register's stride."""


def record(*columns: str | tuple[str, int | tuple[int, ...]] | tuple[str, np.dtype, tuple[int, ...]]) -> np.dtype:
    """A record of int64 fields: each a name, (name, shape), or (name, record, shape)."""
    rows = [(column,) if isinstance(column, str) else column for column in columns]
    return np.dtype([row if len(row) > 2 else (row[0], np.int64, *row[1:]) for row in rows], align=True)


RING = record("first", "count", "size")
"""Which elements of a ring are in use: the oldest, how many; and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A field of a record: an integer, an array of integers, or a RING.

    Attributes:
        name: Its name.
        kind: Role while its element is in use.
        spare: Role while its element is not in use.
        lead: A time is past, nothing can notice it, so many cycles after it.
        shape: Of an array.
        ring: It is a RING.
    """

    name: str
    kind: int = UNSEEN
    spare: int = UNSEEN
    lead: int = 0
    shape: tuple[int, ...] = ()
    ring: bool = False

    @property
    def words(self) -> int:
        """Its size in words of int64."""
        return prod(self.shape) * (RING.itemsize // 8 if self.ring else 1)

    @property
    def column(self) -> tuple:
        """The field in a dtype."""
        return self.name, RING if self.ring else np.int64, self.shape


@dataclass(frozen=True, kw_only=True)
class Part:
    """An array of the state: of records with `fields`, or of integers (one field without a name).

    Attributes:
        name: Its name.
        shape: Its dimensions; the last is a ring where `ring` is given.
        fields: Those of an element.
        ring: Which part, and which field of it, is the RING of each row.
    """

    name: str
    shape: tuple[int, ...]
    fields: tuple[Field, ...]
    ring: tuple[str, str] | None = None

    @cached_property
    def dtype(self) -> np.dtype:
        """The type of an element."""
        if self.fields[0].name:
            return np.dtype([field.column for field in self.fields], align=True)
        return np.dtype(RING if self.fields[0].ring else np.int64)

    @property
    def words(self) -> int:
        """Its size in words of int64."""
        return prod(self.shape) * self.dtype.itemsize // 8


def integers(name: str, size: int, kind: int = UNSEEN) -> Part:
    """A part of plain integers."""
    return Part(name=name, shape=(size,), fields=(Field(name="", kind=kind),))


def allocate(parts: Sequence[Part]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Zeros for all parts, one behind the other, and each part by name as an array over its share of them."""
    words, arrays, base = np.zeros(sum(part.words for part in parts), np.int64), {}, 0
    for part in parts:
        arrays[part.name] = words[base : base + part.words].view(part.dtype).reshape(part.shape)
        base += part.words
    return words, arrays


# ------------------------------------------------------------------------------------------------- for compiled code

NOTE = record("word", "kind", "lead", "register")
"""A word of the state that is compared, and how; `register`: that of an ADDRESS."""
RULE = record("word", "values", "kind", "spare", "lead")
"""A field of a ring's element: from which word on, and so on as `Field`."""
RINGED = record("base", "rows", "elements", "words", "ring", "pitch", "first_rule", "last_rule", "spares")
"""A part with rings: its first word, rows, elements a row, words an element; the word of the first RING and words from one to
the next; its rules; whether elements that are not in use count."""

Watch = namedtuple("Watch", "plain note ringed rule")
"""The words to compare: the first `plain` of the `note`s are words that always count; those of rings are written behind them at
run time, by `ringed` and `rule`."""


def watch_of(parts: Sequence[Part]) -> Watch:
    """The schema for compiled code."""
    sizes = {part.name: part.dtype.itemsize // 8 for part in parts}
    bases = dict(zip(sizes, accumulate((part.words for part in parts), initial=0), strict=False))
    first_word = {
        (part.name, field.name): bases[part.name] + word for part in parts for word, field in _words(part.fields)
    }
    notes, ringed, rules, capacity = [], [], [], 0
    for part in parts:
        base, size, rows = bases[part.name], sizes[part.name], prod(part.shape[:-1])
        own = [
            (word, prod(field.shape), field.kind, field.spare, field.lead)
            for word, field in _words(part.fields) if field.kind or field.spare
        ]  # fmt: skip
        if part.ring:
            spares, last = any(field.spare for field in part.fields), len(rules) + len(own)
            ring = first_word[part.ring], sizes[part.ring[0]]
            ringed.append((base, rows, part.shape[-1], size, *ring, len(rules), last, spares))
            rules += own
            capacity += rows * (1 + part.shape[-1] * sum(values for _, values, *_ in own))
        else:
            notes += [
                (base + element * size + word + value, kind, lead, 0)
                for element in range(prod(part.shape)) for word, values, kind, _, lead in own for value in range(values)
            ]  # fmt: skip
    note = np.zeros(len(notes) + capacity, NOTE)
    note[: len(notes)] = notes
    return Watch(len(notes), note, np.array(ringed, RINGED), np.array(rules, RULE))


def _words(fields: Sequence[Field]) -> Iterator[tuple[int, Field]]:
    """Each field behind its first word."""
    return zip(accumulate((field.words for field in fields), initial=0), fields, strict=False)


@njit(cache=True)
def watch_rings(words, code, watch):
    """Write the notes of all rings behind the plain ones: how many elements are in use, then these, from the oldest on.

    Returns the end of the notes. A number (of elements, of an instruction) stands before the words that it decides on, so two
    moments that agree up to a note have a word of the same meaning there.
    """
    end = watch.plain
    for part in watch.ringed:
        for row in range(part.rows):
            ring = part.ring + row * part.pitch
            first, count, size = words[ring], words[ring + 1], words[ring + 2]
            end = _note(watch.note, end, ring + 1, EXACT, 0)
            for element in range(size if part.spares else count):
                place = first + element
                if place >= size:
                    place -= size
                word = part.base + (row * part.elements + place) * part.words
                pc = np.int64(0)
                for number in range(part.first_rule, part.last_rule):
                    rule = watch.rule[number]
                    kind, values = rule.kind if element < count else rule.spare, rule.values
                    if kind == UNSEEN:
                        continue
                    if kind == INSTRUCTION:
                        pc = words[word + rule.word]
                    elif kind == ADDRESS:
                        values = code[pc].addresses
                    for value in range(values):
                        register = code[pc].register[value] if kind == ADDRESS else 0
                        end = _note(watch.note, end, word + rule.word + value, kind, rule.lead, register)
    return end


@njit(cache=True)
def _note(notes, at, word, kind, lead, register=0):
    note = notes[at]
    note.word, note.kind, note.lead, note.register = word, kind, lead, register
    return at + 1
