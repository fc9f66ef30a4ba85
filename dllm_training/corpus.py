"""Generated grade-school word problems with worked answers, and the tokenizer that reads them.

A problem is a kind (which operations), its operands, and words; `12 + 30 = 42. #### 42` is an answer. A problem is held
out of training by a hash of its text, so the two sets are disjoint for any number of samples.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ANSWER_TOKENS = 32
VOCABULARY = 512
MASK, EOS, UNKNOWN = "[MASK]", "[EOS]", "[UNK]"
JOIN = "~"
HELD_OUT_SHARE = 0.02

NAMES = (
    "Tom Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tina Uma Victor "
    "Wendy Yusuf Zoe Alice Bruno Carla Diego Elena Felix Hanna Ivan Julia Karim Lena Mateo Nora Omar Petra Ali Bella "
    "Carlos Dora Erik Fatima Georg Hugo Irene Jonas Kim Laura Mark Mia Noah Olga Peter Rita Sofia Theo"
).split()
OBJECTS = (
    "apples oranges pears plums lemons cherries books pencils pens stamps coins shells stones marbles balls dolls cars "
    "trains cards stickers buttons flowers roses tulips seeds trees eggs cakes cookies muffins candies nuts ribbons "
    "beads boxes bottles cups plates spoons keys photos maps letters tickets toys kites hats scarves socks shirts "
    "bananas grapes peaches carrots potatoes tomatoes onions beans pies rolls sandwiches bricks blocks nails acorns "
    "feathers crayons brushes erasers magnets puzzles robots boats planes fish birds hens ducks sheep lamps candles "
    "pillows towels rings badges medals dollars"
).split()
PLACES = (
    "garden park market school shop kitchen forest beach river farm library attic cellar street yard field house "
    "room garage barn lake village museum station bakery classroom"
).split()
CONTAINERS = "bags baskets jars drawers shelves crates trays packs bowls rows cases cartons buckets piles".split()
GAINS = "finds buys gets collects wins picks receives gathers earns makes adds".split()
LOSSES = "loses sells uses breaks drops eats spends hides".split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A word problem: prompt, worked answer, final result, and the kind of its operations (e.g. `add-sub`)."""

    prompt: str
    answer: str
    result: int
    kind: str

    @property
    def held_out(self) -> bool:
        """True if the problem belongs to the test set; a function of its prompt alone."""
        return zlib.crc32(self.prompt.encode()) % 10_000 < HELD_OUT_SHARE * 10_000


def worked_answer(steps: list[tuple[int, str, int, int]]) -> str:
    """`a + b = c.` for each step, then `#### result`."""
    lines = [f"{a} {op} {b} = {c}." for a, op, b, c in steps]
    return " ".join([*lines, f"#### {steps[-1][3]}"])


def _chain(first: int, moves: list[tuple[str, int]]) -> list[tuple[int, str, int, int]]:
    steps, value = [], first
    for op, operand in moves:
        after = value + operand if op == "+" else value - operand if op == "-" else value * operand
        steps.append((value, op, operand, after))
        value = after
    return steps


def _sentence(rng: random.Random, subject: str, *, op: str, amount: int, things: str, other: str) -> str:
    if op == "+":
        return rng.choice((
            f"{subject} {rng.choice(GAINS)} {amount} more.",
            f"{subject} {rng.choice(GAINS)} {amount} {things} in the {rng.choice(PLACES)}.",
            f"{subject} gets {amount} {things} from {other}.",
            f"Then {amount} more come from {other}.",
        ))  # fmt: skip
    return rng.choice((
        f"{subject} {rng.choice(LOSSES)} {amount} of them.",
        f"{subject} gives {amount} {things} to {other}.",
        f"Then {other} takes {amount} of the {things}.",
        f"{subject} leaves {amount} in the {rng.choice(PLACES)}.",
    ))  # fmt: skip


def _question(rng: random.Random, name: str, things: str) -> str:
    return rng.choice((
        f"How many {things} does {name} have now?",
        f"How many {things} are there now?",
        f"How many {things} does {name} have left?" if rng.random() < 0.5 else f"What is the number of {things} now?",
    ))  # fmt: skip


def sample_problem(rng: random.Random, more: tuple[str, ...] = ()) -> Problem:
    """One problem, of either set; a kind is as likely as another, but for those in `more`, each time as much again."""
    kind = rng.choice(("add", "sub", "mul", "add-sub", "sub-add", "add-add", "add-add-sub", *more))
    name, other = rng.sample(NAMES, 2)
    things = rng.choice(OBJECTS)
    if kind == "mul":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        box = rng.choice(CONTAINERS)
        prompt = rng.choice((
            f"{name} has {a} {box} with {b} {things} each. How many {things} does {name} have?",
            f"There are {a} {box} in the {rng.choice(PLACES)}. Each holds {b} {things}. How many {things} are there?",
            f"{name} fills {a} {box} with {b} {things} each. How many {things} are there in all?",
        ))  # fmt: skip
        return Problem(prompt=prompt, answer=worked_answer(_chain(a, [("*", b)])), result=a * b, kind=kind)
    if kind == "add":
        first, moves = rng.randint(2, 30), [("+", rng.randint(2, 30))]
    elif kind == "sub":
        first = rng.randint(6, 40)
        moves = [("-", rng.randint(2, first - 1))]
    elif kind == "add-sub":
        first, gain = rng.randint(2, 15), rng.randint(2, 15)
        moves = [("+", gain), ("-", rng.randint(2, min(9, first + gain)))]
    elif kind == "sub-add":
        first = rng.randint(6, 20)
        moves = [("-", rng.randint(2, min(9, first - 1))), ("+", rng.randint(2, 9))]
    elif kind == "add-add":
        first, moves = rng.randint(2, 15), [("+", rng.randint(2, 9)), ("+", rng.randint(2, 9))]
    else:
        first, gains = rng.randint(2, 9), (rng.randint(2, 9), rng.randint(2, 9))
        moves = [("+", gains[0]), ("+", gains[1]), ("-", rng.randint(2, min(9, first + sum(gains))))]
    opening = rng.choice((
        f"{name} has {first} {things}.",
        f"{name} starts with {first} {things}.",
        f"There are {first} {things} in the {rng.choice(PLACES)} of {name}.",
    ))  # fmt: skip
    if len(moves) == 1 and moves[0][0] == "+" and rng.random() < 0.3:
        opening = f"{name} has {first} {things} and {rng.choice(GAINS)} {moves[0][1]} more."
        told = ""
    else:
        told = " ".join(_sentence(rng, name, op=op, amount=amount, things=things, other=other) for op, amount in moves)
    steps = _chain(first, moves)
    prompt = " ".join(part for part in (opening, told, _question(rng, name, things)) if part)
    return Problem(prompt=prompt, answer=worked_answer(steps), result=steps[-1][3], kind=kind)


def problems(seed: int, *, held_out: bool, more: tuple[str, ...] = ()) -> Iterator[Problem]:
    """An endless stream of problems of the training set or of the test set; `more`: see `sample_problem`."""
    rng = random.Random(seed)
    while True:
        problem = sample_problem(rng, more)
        if problem.held_out == held_out:
            yield problem


def build_tokenizer() -> Tokenizer:
    """Word-level tokenizer; a number is its digits, all but the first marked with JOIN, so that text reads back.

    The vocabulary is padded to VOCABULARY entries with reserved tokens.
    """
    sentences = (
        "has starts with There there are in the of and more . ? How many does have now left What is number gives "
        "to Then come from takes leaves each Each holds fills all + - * = #### them"
    ).split()
    words = [*NAMES, *OBJECTS, *PLACES, *CONTAINERS, *GAINS, *LOSSES, *sentences]
    digits = [str(d) for d in range(10)]
    tokens = list(dict.fromkeys([UNKNOWN, MASK, EOS, *digits, *(f"{JOIN}{d}" for d in digits), *words]))
    tokens += [f"[RESERVED_{i}]" for i in range(VOCABULARY - len(tokens))]
    if len(tokens) != VOCABULARY:
        raise ValueError(f"corpus: {len(tokens)} tokens exceed the vocabulary of {VOCABULARY}")
    model = models.WordPiece(
        {token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN, continuing_subword_prefix=JOIN
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix=JOIN, cleanup=True)
    tokenizer.add_special_tokens([UNKNOWN, MASK, EOS])
    return tokenizer
