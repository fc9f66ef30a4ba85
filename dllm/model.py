"""The shape of a diffusion language model, as far as the compiler and the references need it."""

from collections.abc import Sequence
from dataclasses import dataclass

from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A LLaDA-style transformer: RMSNorm, RoPE, bidirectional attention (GQA allowed), SwiGLU, untied LM head.

    Dream's differs in `qkv_bias` and `shifted_logits`.

    Attributes:
        name: What reports call it.
        layers: Transformer layers.
        hidden: Width of the residual stream in elements, a multiple of 32.
        heads: Query heads.
        kv_heads: Heads of K and V, a divisor of `heads`.
        head_dim: Elements of a head, a multiple of 32.
        ffn: Width of the SwiGLU in elements, a multiple of 32.
        vocab: Rows of the embedding and of the LM head, a multiple of 32.
        rope_theta: Base of RoPE's wavelengths.
        rms_eps: What RMSNorm adds to the mean square.
        mask_id: Token id of the mask.
        eos_id: Token id of the end of a text.
        max_sequence: Tokens of prompt and generation at most.
        qkv_bias: Q, K and V have biases.
        shifted_logits: The logits of a position come from the hidden state of the position before it.
        checkpoint: A folder with `config.json`, safetensors and `tokenizer.json`; `synthetic`: random weights of the true
            shapes; null: only the shape is known, and the accuracy path has no weights.
        only_layers: The checkpoint's layers that are run; null: all.
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
