"""The results of each pass as readable text: sizes, buffers with their lifetimes and addresses, stages with tokens."""

from collections.abc import Iterator, Sequence
from typing import assert_never

from npu.isa import BYTES_PER_ADDRESS, Memory
from npu.program import Tensor
from npu.units import format_bytes
from npu_compiler.arrangement import Sampling
from npu_compiler.generation import Compiled
from npu_compiler.knowledge import UNITS
from npu_compiler.lifetimes import Span, lifetimes
from npu_compiler.stages import Advance, Break, Buffer, Count, HandOver, Loop, Node, Op, Place, Stage, Trips, ops_of
from npu_compiler.tokens import Tokens

INDENT = "  "
LOGITS = {
    Sampling.STORED: "stored", Sampling.FUSED: "sampled as they come", Sampling.HOST: "stored, the host samples them",
}  # fmt: skip


def explain(made: Compiled) -> str:
    """The form that each pass left: `# sizes`, `# buffers`, `# semaphores`, `# stages`."""
    tokens = made.tokens
    parts = [
        "# sizes", *_sizes(made), "", "# buffers: memory, name, address, bytes, stages in which it is alive", *_buffers(made), "",
        "# semaphores: number, name, from unit to unit, tokens at the start", *_semaphores(tokens), "",
        "# stages: unit, name, what it waits for, reads, writes and signals", *_stages(made.tree.body, tokens, 0, [0]),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _sizes(made: Compiled) -> Iterator[str]:
    tiling = made.tiling
    yield f"canvas {tiling.canvas} tokens, prompt {tiling.prompt}, batch {tiling.batch}"
    yield f"chunks of {tiling.chunk_rows} rows at most, row tiles of {tiling.row_tile}, key tiles of {tiling.key_tile}"
    kept, rows = (
        tiling.arrangement,
        "rows of one chunk stay" if tiling.arrangement.keeps_rows else "rows pass through HBM",
    )
    yield f"in flight: {kept.heads} query heads of {kept.kv_heads} KV heads, {kept.weight_slots} panels of weights; {rows}"
    yield f"logits {LOGITS[kept.sampling]}"
    if kept.weights_stay:
        yield "weights of projections stay in matrix.staying while the rows of all chunks pass, where fewer bytes move"
    for name, used in made.allocation.used_bytes.items():
        yield f"{name} {format_bytes(used)}"


def _buffers(made: Compiled) -> Iterator[str]:
    alive = lifetimes(made.tree.body)
    for buffer, address in made.allocation.addresses.items():
        if buffer.elements:
            size = buffer.elements * BYTES_PER_ADDRESS[buffer.memory]
            slots = f" in {buffer.stream.slots} slots of {buffer.stream.name}" if buffer.stream else ""
            spans = _spans(alive.get(buffer, []))
            yield f"{buffer.memory.name.lower():7} {buffer.name:14} {address:8} {format_bytes(size):>10}{slots}  {spans}"


def _spans(spans: Sequence[Span]) -> str:
    """Spans without those that another holds, in their order; neighbours are one."""
    merged: list[list[int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in merged) or "unused"


def _semaphores(tokens: Tokens) -> Iterator[str]:
    for each in tokens.semaphores:
        yield f"{each.number:2} {each.name}, {each.giver} to {each.taker}, {each.initial}"


def _stages(body: Sequence[Node], tokens: Tokens, depth: int, count: list[int]) -> Iterator[str]:
    """A line for each node; stages are numbered in program order."""
    for node in body:
        indent = INDENT * depth
        match node:
            case Loop():
                yield f"{indent}loop {node.level}: {_trips(node.trips)}{_of_loop(node, tokens)}"
                yield from _stages(node.body, tokens, depth + 1, count)
            case Stage():
                touched = [f"{verb} {', '.join(names)}" for verb, names in _touched(node.body) if names]
                facts = [*_tokens(tokens.waits(node, node.unit), "waits"), *touched,
                         *_tokens(tokens.signals(node, node.unit), "signals")]  # fmt: skip
                yield f"{indent}{count[0]} {node.unit}: {node.name}{''.join(f'; {fact}' for fact in facts)}"
                count[0] += 1
            case HandOver():
                touched = [f"{verb} {', '.join(names)}" for verb, names in _touched([node.op]) if names]
                facts = [*_tokens(tokens.waits(node, "frontend"), "waits"), *touched]
                yield f"{indent}{count[0]} frontend: hand over to the host{''.join(f'; {fact}' for fact in facts)}"
                count[0] += 1
            case Break():
                waits = "".join(f"; {fact}" for fact in _tokens(tokens.waits(node, "frontend"), "waits"))
                yield f"{indent}{count[0]} frontend: leave loop {node.level} if {_name(node.flag)} is zero{waits}"
                count[0] += 1
            case Count():
                waits = "".join(f"; {fact}" for fact in _tokens(tokens.waits(node, "frontend"), "waits"))
                yield f"{indent}{count[0]} frontend: read {_name(node.flag)}, {node.most} at most{waits}"
                count[0] += 1
            case Advance():
                yield f"{indent}next slot of {node.stream.name}"
            case Op():
                raise AssertionError(f"{node.mnemonic} outside of a stage")
            case _:
                assert_never(node)


def _of_loop(loop: Loop, tokens: Tokens) -> str:
    facts = [f"{unit} {fact}" for unit in UNITS for fact in _tokens(tokens.waits(loop, unit), "waits before")]
    facts += [f"{unit} {fact}" for unit in UNITS for fact in _tokens(tokens.signals(loop, unit), "signals behind")]
    return "".join(f"; {fact}" for fact in facts)


def _tokens(numbers: Sequence[int], verb: str) -> list[str]:
    return [f"{verb} {', '.join(map(str, numbers))}"] if numbers else []


def _trips(trips: Trips) -> str:
    if trips.fixed:
        return f"{trips.base} times"
    if trips.count is not None:
        return f"once for each {trips.unit} of {_name(trips.count.flag)}, {trips.base} at most"
    assert trips.level is not None
    return f"{trips.base} {trips.factor:+d} * index of loop {trips.level.number} times"


def _touched(body: Sequence[Node]) -> Iterator[tuple[str, list[str]]]:
    for verb, written in (("reads", False), ("writes", True)):
        yield verb, list(dict.fromkeys(_name(at) for op in ops_of(body) for at in op.touched(written=written)))


def _name(at: Place) -> str:
    if isinstance(at.target, Tensor):
        return f"hbm.{at.target.name}"
    assert isinstance(at.target, Buffer)
    return at.target.name if at.target.memory is Memory.VECTOR else f"{at.target.memory.name.lower()}.{at.target.name}"
