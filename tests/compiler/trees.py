"""Random trees of stages over a few buffers and tensors, small enough to be run element by element."""

import random

from npu.isa import Memory
from npu.program import Program, Tensor, words_of
from npu_compiler.emission import emit
from npu_compiler.stages import Buffer, Stream, Tree, place
from npu_compiler.tokens import place_tokens

LANES = 32
BF16, BLOCK = 1, 5
ROWS = 5
"""Rows of a buffer or tensor, of LANES elements each: a loop of three trips moves by one or two."""


def tensors():
    """Two tensors that the program writes, one that it only reads."""
    size = ROWS * 2 * LANES
    return [
        Tensor(name=name, address=number * size, shape=(ROWS, LANES), format="bf16", block=LANES, writable=name != "c")
        for number, name in enumerate("abc")
    ]


def buffers():
    """Four buffers of Vector SRAM, and one in the two slots of a stream."""
    plain = [Buffer(name=name, memory=Memory.VECTOR, elements=ROWS * LANES, phase="p") for name in "pqrs"]
    stream = Stream(name="slots", slots=2)
    return plain, Buffer(name="t", memory=Memory.VECTOR, elements=2 * ROWS * LANES, phase="p", stream=stream)


def random_tree(seed):
    """A tree, its buffers and its tensors."""
    rng, tree = random.Random(seed), Tree()
    plain, turning = buffers()
    known = tensors()

    def steps(levels):
        return [
            (level, rng.choice([LANES, 2 * LANES])) for level in rng.sample(levels, min(len(levels), rng.randint(0, 1)))
        ]

    def at(target, levels, unit=1):
        moves = [(level, stride * unit) for level, stride in steps(levels)]
        slot = ROWS * LANES if target is turning else 0
        return place(target, 0, moves, rows=LANES * unit, slot_stride=slot)

    def outside(levels, *, written):
        return at(rng.choice(known[:2] if written else known), levels, 2)

    def move(mnemonic, inside, levels):
        away = outside(levels, written=mnemonic == "H_STORE_V")
        dst, src = (inside, away) if mnemonic == "H_LOAD_V" else (away, inside)
        tree.emit(mnemonic, dst=dst, src=src, rows=1, cols=LANES, format=BF16, block=BLOCK)

    def stage(levels, *, fill=None, drain=None):
        kind = "load" if fill else rng.choice(["load", "store", "add", "add", "product"])
        with tree.stage(f"{kind}"):
            if kind == "load":
                move("H_LOAD_V", at(fill or rng.choice(plain), levels), levels)
            elif kind == "store":
                move("H_STORE_V", at(rng.choice(plain), levels), levels)
            elif kind == "product":
                tree.emit("M_OUT", dst=at(rng.choice(plain), levels), rows=1, cols=8)
            else:
                a, b = at(rng.choice(plain), levels), at(drain or rng.choice(plain), levels)
                tree.emit("V_ADD_VV", dst=at(rng.choice(plain), levels), a=a, b=b, n=LANES)

    def drain(levels):
        with tree.stage("drain"):
            tree.emit("V_ADD_VV", dst=at(plain[0], levels), a=at(turning, levels), b=at(plain[1], levels), n=LANES)

    def body(levels, depth):
        for _ in range(rng.randint(1, 4)):
            if depth < 3 and rng.random() < 0.4:
                with tree.loop(rng.choice([1, 2, 3])) as level:
                    body([*levels, level] if level.number is not None else levels, depth + 1)
            elif rng.random() < 0.15:
                stage(levels, fill=turning)
                drain(levels)
                tree.advance(turning.stream)
            else:
                stage(levels)

    body([], 0)
    return tree, [*plain, turning], known


def random_addresses(seed, members):
    """Addresses at which some buffers share bytes."""
    rng = random.Random(seed)
    size = ROWS * LANES
    return {each: rng.randrange(4 if each.stream is None else 3) * size for each in members}


def program_of(tree, members, known, addresses):
    """The program of a tree, and its semaphores."""

    def shared(a, b):
        return addresses[a] < addresses[b] + b.elements and addresses[b] < addresses[a] + a.elements

    tokens = place_tokens(tree.body, shared)
    code, phases = emit(tree.body, tokens, addresses)
    end = max(addresses[each] + each.elements for each in members)
    geometry = {
        "blen": 8,
        "mlen": 64,
        "vlen": 64,
        "matrix_bytes": 0,
        "vector_bytes": 2 * end,
        "fp_bytes": 4,
        "int_bytes": 4,
    }
    return Program(words=words_of(code), hbm=tuple(known), geometry=geometry, layout={}, phases=phases), tokens
