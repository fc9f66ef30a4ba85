"""The shape of a diffusion language model, as far as the compiler and the references need it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dllm.operators import (
    Attention,
    Embedding,
    Experts,
    GatedMlp,
    Group,
    HeadNorm,
    Linear,
    LmHead,
    Mask,
    Moe,
    Network,
    Norm,
    Operator,
    Residual,
    Rope,
)
from dllm.policies import Decoding
from dllm.rotary import Rotation, Scaling
from npu.choices import check_choices, one_of
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The shape of a transformer: RMSNorm, RoPE, attention (GQA allowed), SwiGLU; `network` is it as a list of operators.

    Attributes:
        name: What reports call it.
        layers: Transformer layers.
        hidden: Width of the residual stream in elements, a multiple of 32.
        heads: Query heads.
        kv_heads: Heads of K and V, a divisor of `heads`.
        head_dim: Elements of a head, an even number.
        ffn: Width of the SwiGLU of a layer without experts in elements, a multiple of 32.
        vocab: Rows of the embedding and of the LM head.
        rope_theta: Base of RoPE's wavelengths.
        rope_scaling: How its angles are stretched beyond the first context (a mapping of `dllm.rotary.Scaling`); null: not.
        rotary_dim: Channels of a head that RoPE turns, the first ones; null: all.
        rms_eps: What RMSNorm adds to the mean square.
        mask_id: Token id of the mask.
        eos_id: Token id of the end of a text.
        max_sequence: Tokens of prompt and generation at most.
        qkv_bias: Q, K and V have biases.
        qk_norm: Each head of Q and of K has an RMS norm before RoPE.
        attention_mask: Keys that a row attends to: full, block_causal (up to the end of its block), causal (up to its own).
        shifted_logits: The logits of a position come from the hidden state of the position before it.
        seeded_blocks: The first token of a block is what the clean forward of the token before it says comes next.
        tied_embeddings: The LM head is the embedding.
        experts: Experts in place of the SwiGLU (a mapping of `dllm.operators.Experts`); null: none.
        decoding: How the model is decoded where the workload does not say.
        checkpoint: A folder with `config.json`, safetensors and `tokenizer.json`; `synthetic`: random weights of the true
            shapes; null: only the shape is known, and the accuracy path has no weights.
        adapter: A folder with a low-rank adapter as PEFT writes it, added to the checkpoint's matrices; null: none.
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
    rope_scaling: Scaling | None = None
    rotary_dim: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    attention_mask: str = field(default="full", metadata=one_of([each.value for each in Mask]))
    shifted_logits: bool = False
    seeded_blocks: bool = False
    tied_embeddings: bool = False
    experts: Experts | None = None
    decoding: Decoding = field(default_factory=Decoding)
    checkpoint: str | None = None
    adapter: str | None = None
    only_layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_choices("model", self)
        if self.only_layers is not None and len(self.only_layers) != self.layers:
            raise TripathError(
                f"model.only_layers: names {len(self.only_layers)} layers, model.layers is {self.layers}"
            )
        for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_sequence"):
            if getattr(self, key) < 1:
                raise TripathError(f"model.{key}: must be at least 1, got {getattr(self, key)}")
        if self.heads % self.kv_heads:
            raise TripathError(f"model.kv_heads: {self.kv_heads} does not divide model.heads {self.heads}")
        if self.head_dim % 2:
            raise TripathError(f"model.head_dim: must be even, got {self.head_dim}")
        for key in ("hidden", "ffn"):
            if getattr(self, key) % 32:
                raise TripathError(f"model.{key}: must be a multiple of the MX block of 32, got {getattr(self, key)}")
        if self.experts is not None and self.experts.first_layer >= self.layers:
            raise TripathError(
                f"model.experts.first_layer: {self.experts.first_layer} leaves none of the {self.layers} layers"
            )
        if self.experts is not None and self.experts.first_layer and self.only_layers is not None:
            raise TripathError("model.only_layers: layers of a model whose first ones have no experts are not chosen")
        if self.adapter is not None and self.checkpoint == "synthetic":
            raise TripathError("model.adapter: needs the weights of a checkpoint, model.checkpoint is synthetic")
        if self.adapter is not None and self.only_layers is not None:
            raise TripathError("model.only_layers: layers of a model with an adapter are not chosen")
        if self.rotary_dim is not None and not (0 < self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0):
            raise TripathError(
                f"model.rotary_dim: must be even, at most model.head_dim {self.head_dim}, got {self.rotary_dim}"
            )
        for key in ("mask_id", "eos_id"):
            if not 0 <= getattr(self, key) < self.vocab:
                raise TripathError(f"model.{key}: {getattr(self, key)} is not below model.vocab {self.vocab}")

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
    def mask(self) -> Mask:
        """Keys that a row attends to."""
        return Mask(self.attention_mask)

    @property
    def turned_channels(self) -> int:
        """Channels of a head that RoPE turns."""
        return self.rotary_dim or self.head_dim

    @property
    def rotation(self) -> Rotation:
        """The angles of RoPE."""
        return Rotation(theta=self.rope_theta, scaling=self.rope_scaling)

    @property
    def network(self) -> Network:
        """The model as a list of operators: the one place that says how its parts fit together."""
        heads = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        projections = (("q_proj", self.query_width), ("k_proj", self.kv_width), ("v_proj", self.kv_width))
        attention: tuple[Operator, ...] = (
            Norm(name="attention_norm", part="attn_norm", width=self.hidden, epsilon=self.rms_eps),
            Linear(name="w_qkv", parts=projections, inputs=self.hidden, bias="qkv_bias" if self.qkv_bias else ""),
            *((HeadNorm(**heads, epsilon=self.rms_eps),) if self.qk_norm else ()),
            Rope(**heads, rotary_dim=self.turned_channels, rotation=self.rotation),
            Attention(**heads, mask=self.mask),
            Linear(name="w_out", parts=(("attn_out", self.hidden),), inputs=self.query_width),
            Residual(width=self.hidden),
            Norm(name="ffn_norm", part="ff_norm", width=self.hidden, epsilon=self.rms_eps),
        )
        dense, residual = GatedMlp(width=self.hidden, inner=self.ffn), Residual(width=self.hidden)
        groups = [Group(repeat=self.layers, pattern=(*attention, dense, residual))]
        if self.experts is not None:
            first = self.experts.first_layer
            mixture = Moe(width=self.hidden, experts=self.experts)
            groups = [
                *([Group(repeat=first, pattern=groups[0].pattern, name="dense")] if first else []),
                Group(repeat=self.layers - first, pattern=(*attention, mixture, residual)),
            ]
        return Network(
            stem=(Embedding(vocab=self.vocab, width=self.hidden),),
            groups=tuple(groups),
            head=(
                Norm(name="final_norm", part="ln_f", width=self.hidden, epsilon=self.rms_eps),
                LmHead(vocab=self.vocab, width=self.hidden, tied=self.tied_embeddings),
            ),
        )
