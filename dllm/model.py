"""The shape of a diffusion language model, as far as the compiler and the references need it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dllm.operators import (
    Activation,
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
    Sum,
)
from dllm.policies import Decoding
from dllm.rotary import Rotation, Scaling
from npu.choices import check_choices, one_of, within
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The shape of a transformer: RMSNorm, RoPE, attention (GQA allowed), gated MLP; `network` is it as a list of operators.

    Attributes:
        name: What reports call it.
        layers: Transformer layers.
        hidden: Width of the residual stream in elements, a multiple of 32.
        heads: Query heads.
        kv_heads: Heads of K and V, a divisor of `heads`.
        head_dim: Elements of a head, an even number.
        ffn: Width of the gated MLP of a layer without experts in elements, a multiple of 32.
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
        v_norm: Each head of V has an RMS norm without factors.
        post_norms: What attention and the MLP return has an RMS norm before it is added to the residual stream.
        layer_scales: The residual stream is multiplied by a learned number at the end of each layer.
        activation: What a gated MLP does to its gate: silu, or gelu_tanh.
        attention_scale: What scores are multiplied by; null: 1 / sqrt(head_dim).
        embedding_scale: What embeddings are multiplied by.
        logit_softcap: Logits become c tanh(logits / c); null: they stay.
        attention_mask: Keys that a row attends to: full, block_causal (up to the end of its block), causal (up to its own).
        shifted_logits: The logits of a position come from the hidden state of the position before it.
        seeded_blocks: The first token of a block is what the clean forward of the token before it says comes next.
        tied_embeddings: The LM head is the embedding.
        experts: Experts in place of the gated MLP (a mapping of `dllm.operators.Experts`); null: none.
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
    v_norm: bool = False
    post_norms: bool = False
    layer_scales: bool = False
    activation: str = field(default="silu", metadata=one_of([each.value for each in Activation]))
    attention_scale: float | None = field(default=None, metadata=within(1e-4, 1e4))
    embedding_scale: float = field(default=1.0, metadata=within(1e-4, 1e4))
    logit_softcap: float | None = field(default=None, metadata=within(1e-1, 1e4))
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
        if self.v_norm and not self.qk_norm:
            raise TripathError("model.v_norm: needs model.qk_norm")
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
    def scores_scale(self) -> float:
        """What scores of attention are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def gating(self) -> Activation:
        """What a gated MLP does to its gate."""
        return Activation(self.activation)

    @property
    def rotation(self) -> Rotation:
        """The angles of RoPE."""
        return Rotation(theta=self.rope_theta, scaling=self.rope_scaling)

    @property
    def network(self) -> Network:
        """The model as a list of operators: the one place that says how its parts fit together."""
        width, epsilon = self.hidden, self.rms_eps
        heads = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        projections = (("q_proj", self.query_width), ("k_proj", self.kv_width), ("v_proj", self.kv_width))

        def norm(name: str, part: str) -> Norm:
            return Norm(name=name, part=part, width=width, epsilon=epsilon)

        def post_norm(name: str, part: str) -> tuple[Operator, ...]:
            return (replace(norm(name, part), of_result=True),) if self.post_norms else ()

        attention: tuple[Operator, ...] = (
            norm("attention_norm", "attn_norm"),
            Linear(name="w_qkv", parts=projections, inputs=width, bias="qkv_bias" if self.qkv_bias else ""),
            *((HeadNorm(**heads, epsilon=epsilon, values=self.v_norm),) if self.qk_norm else ()),
            Rope(**heads, rotary_dim=self.turned_channels, rotation=self.rotation),
            Attention(**heads, scale=self.scores_scale, mask=self.mask),
            Linear(name="w_out", parts=(("attn_out", width),), inputs=self.query_width),
            *post_norm("attention_post_norm", "attn_post_norm"),
            Residual(width=width),
        )
        dense = (norm("ffn_norm", "ff_norm"), GatedMlp(width=width, inner=self.ffn, activation=self.gating))
        end = (*post_norm("ffn_post_norm", "ff_post_norm"), Residual(width=width, scaled=self.layer_scales))
        groups = [Group(repeat=self.layers, pattern=(*attention, *dense, *end))]
        if self.experts is not None:
            first = self.experts.first_layer
            mixture = Moe(width=width, experts=self.experts, epsilon=epsilon, activation=self.gating)
            mixed: tuple[Operator, ...] = (norm("ffn_norm", "ff_norm"), mixture)
            if self.experts.beside_ffn:
                behind_dense, behind_experts = (
                    replace(norm(name, part), of_result=True)
                    for name, part in (
                        ("dense_post_norm", "dense_post_norm"),
                        ("experts_post_norm", "experts_post_norm"),
                    )
                )
                experts = (norm("experts_norm", "experts_norm"), mixture, behind_experts)
                mixed = (Sum(branches=((*dense, behind_dense), experts), width=width),)
            groups = [
                *([Group(repeat=first, pattern=groups[0].pattern, name="dense")] if first else []),
                Group(repeat=self.layers - first, pattern=(*attention, *mixed, *end)),
            ]
        return Network(
            stem=(Embedding(vocab=self.vocab, width=width, scale=self.embedding_scale),),
            groups=tuple(groups),
            head=(
                norm("final_norm", "ln_f"),
                LmHead(vocab=self.vocab, width=width, tied=self.tied_embeddings, softcap=self.logit_softcap),
            ),
        )
