"""Where a value stands while the operators of a chunk are lowered."""

from dataclasses import dataclass

from npu_compiler.rows import Chunk, Span
from npu_compiler.stages import Level


@dataclass(kw_only=True)
class Flow:
    """The rows of a pass, and of the chunk in it that is being lowered; the residual stream is in the buffer `x`.

    `value` is the buffer of the last operator's result, `result` the one into which a projection puts its own; where
    `zero_padding`, rows of padding become zero in a norm, so that they cannot move the scale of an MX block.
    """

    span: Span
    block: Level
    chunk: Chunk
    layer: Level | None = None
    value: str = "x"
    result: str = "y"
    zero_padding: bool = False
