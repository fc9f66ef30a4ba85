"""One operation of a device, and the shape of a phase."""

from dataclasses import dataclass

from dllm.devices.products import Product


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """`work` in units of its engine's rate (floating operations, elements or bytes), `moved_bytes` to and from memory.

    `launches`: kernels or library calls; `resident_bytes`: the data that is touched again and again (0: `moved_bytes`),
    which decides in which cache it is found; `own_bytes`: those that one call touches several times; `product`: the shape
    of a matrix product.
    """

    engine: str
    work: float
    moved_bytes: float = 0.0
    launches: int = 1
    resident_bytes: float = 0.0
    own_bytes: float = 0.0
    product: Product | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sequences, tokens of a canvas and of a block; `rows`: those that a refine step forwards (0: the block)."""

    batch: int
    canvas: int
    block: int
    rows: int = 0
