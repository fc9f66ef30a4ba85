"""The shape of a diffusion language model, as far as the compiler and the references need it."""

from collections.abc import Sequence
from dataclasses import dataclass

from tripath.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A LLaDA-style transformer: RMSNorm, RoPE, bidirectional attention (GQA allowed), SwiGLU, untied LM head.

    Dream's differs in two things: `qkv_bias`, Q, K and V have biases; `shifted_logits`, the logits of a position come from
    the hidden state of the position before it.
    `hidden`, `ffn` and `vocab` are widths in elements; `checkpoint` is a folder with `config.json`, safetensors and
    `tokenizer.json`, `synthetic` for random weights of the true shapes, or None for a model of which only the shape is
    known (the accuracy path then has no weights). `only_layers` are the checkpoint's layers that are run where it
    has more than `layers`.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float
    rms_eps: float
    mask_id: int
    eos_id: int
    max_sequence: int
    qkv_bias: bool = False
    shifted_logits: bool = False
    checkpoint: str | None = None
    only_layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.only_layers is not None and len(self.only_layers) != self.layers:
            raise TripathError(
                f"model.only_layers: names {len(self.only_layers)} layers, model.layers is {self.layers}"
            )
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_sequence"):
            if getattr(self, field) < 1:
                raise TripathError(f"model.{field}: must be at least 1, got {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise TripathError(f"model.kv_heads: {self.kv_heads} does not divide model.heads {self.heads}")
        if self.head_dim % 32:
            raise TripathError(f"model.head_dim: must be a multiple of the MX block of 32, got {self.head_dim}")
        for field in ("hidden", "ffn", "vocab"):
            if getattr(self, field) % 32:
                raise TripathError(
                    f"model.{field}: must be a multiple of the MX block of 32, got {getattr(self, field)}"
                )
        for field in ("mask_id", "eos_id"):
            if not 0 <= getattr(self, field) < self.vocab:
                raise TripathError(f"model.{field}: {getattr(self, field)} is not below model.vocab {self.vocab}")

    @property
    def query_width(self) -> int:
        """Elements of one row of Q."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one row of K (and of V)."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Elements of one row of Q, K and V."""
        return self.query_width + 2 * self.kv_width

    @property
    def layer_macs_per_row(self) -> int:
        """Multiply-accumulates of the projections of one layer for one row, attention products excluded."""
        attention = self.hidden * (2 * self.query_width + 2 * self.kv_width)
        return attention + 3 * self.hidden * self.ffn
