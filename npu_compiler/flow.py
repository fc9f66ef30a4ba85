"""Where a value stands while the operators of a chunk are lowered."""

from dataclasses import dataclass, field

from dllm.network import Group
from npu_compiler.rows import Chunk, Local, fixed
from npu_compiler.stages import Level


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The layer of a group that is lowered: `loop` counts the layers of the group, whose first one is number `first` of those
    with the same kind of attention; `cycle` counts how often the groups came before."""

    group: Group
    first: int
    loop: Level
    cycle: Level

    def number(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that moves on by `stride` from layer to layer of a kind of attention."""
        return [(fixed(self.first), stride), *self.of_group(stride)]

    def of_group(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that moves on by `stride` from layer to layer of the group."""
        return [(self.loop, stride), (self.cycle, self.group.repeat * stride)]


@dataclass(kw_only=True)
class Flow:
    """The rows of the chunk that is lowered; the residual stream is in the buffer `x`.

    `norms` says which row of the buffer `norm_weight` holds that of a norm, by its name. `value` is the buffer of the last
    operator's result, `result` the one into which a projection puts its own; the rows of queries that attention takes lie `pitch`
    elements apart. Where `zero_padding`, rows of padding become zero in a norm: they cannot move the scale of an MX block.
    `some` are the rows of the chunk that are lowered (None: all).
    """

    chunk: Chunk
    layer: Layer | None = None
    value: str = "x"
    pitch: int = 0
    result: str = "y"
    zero_padding: bool = False
    norms: dict[str, int] = field(default_factory=dict)
    some: Local | None = None

    @property
    def rows(self) -> Local:
        """The rows that products and the lanes process."""
        return self.some or self.chunk

    def tensor(self, weight: str) -> str:
        """The machine's name of a weight of the operators that are lowered."""
        return weight if self.layer is None else self.layer.group.tensor(weight)

    def layers(self, stride: int) -> list[tuple[Level, int]]:
        """Strides of an address that moves on by `stride` from layer to layer of the group."""
        return [] if self.layer is None else self.layer.of_group(stride)
