"""The shape of a diffusion language model, as far as the compiler and the references need it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dllm.experts import Experts
from dllm.network import Group, Network
from dllm.operators import (
    Activation,
    Attention,
    Embedding,
    GatedMlp,
    HeadNorm,
    Heads,
    Linear,
    LmHead,
    Mask,
    Moe,
    Norm,
    Operator,
    Residual,
    Rope,
    SelfConditioning,
    Sum,
)
from dllm.policies import Decoding
from dllm.rotary import Rotation, Scaling
from npu.choices import check_choices, one_of, within
from npu.errors import TripathError


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry(Heads):
    """The attention of some layers: its heads, what RoPE turns of them, and its window; `name` is that of the group of layers."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    turned_channels: int
    rotation: Rotation
    window: int | None
    shared_kv: bool

    @property
    def qkv_width(self) -> int:
        """Elements of one row of Q, K and V."""
        return self.query_width + 2 * self.kv_width

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    def tensor(self, name: str) -> str:
        """The machine's name of a tensor of which each kind of layers has its own."""
        return f"{self.name}.{name}" if self.name else name


@dataclass(frozen=True, kw_only=True, slots=True)
class FullLayers:
    """Layers that attend to all keys, in a model whose other layers have a window; their heads are others.

    Attributes:
        period: The last layer of every so many is one.
        kv_heads: Heads of K and V, a divisor of `model.heads`.
        head_dim: Elements of a head, a multiple of 32.
        rope_theta: Base of RoPE's wavelengths.
        rotary_pairs: Pairs of channels (j and j + head_dim / 2) that RoPE turns, the first ones.
        shared_kv: V is the projection of K, before the norm of K and RoPE.
    """

    period: int = field(metadata=within(2, 4096))
    kv_heads: int = field(metadata=within(1, 4096))
    head_dim: int = field(metadata=within(32, 4096))
    rope_theta: float = field(metadata=within(1.0, 1e12))
    rotary_pairs: int = field(metadata=within(1, 2048))
    shared_kv: bool = False

    def __post_init__(self) -> None:
        check_choices("model.full_layers", self)
        if self.head_dim % 32:
            raise TripathError(f"model.full_layers.head_dim: must be a multiple of 32, got {self.head_dim}")
        if 2 * self.rotary_pairs > self.head_dim:
            raise TripathError(
                f"model.full_layers.rotary_pairs: {self.rotary_pairs} exceed half of head_dim {self.head_dim}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The shape of a transformer: RMSNorm, RoPE, attention (GQA allowed), gated MLP; `network` is it as a list of operators.

    Attributes:
        name: Name in reports.
        layers: Transformer layers.
        hidden: Width of the residual stream in elements, a multiple of 32.
        heads: Query heads.
        kv_heads: Heads of K and V, a divisor of `heads`.
        head_dim: Elements of a head, an even number.
        ffn: Width of the gated MLP of a layer without experts in elements, a multiple of 32.
        vocab: Rows of the embedding and of the LM head.
        rope_theta: Base of RoPE's wavelengths.
        rope_scaling: Stretch of its angles beyond the first context (a mapping of `dllm.rotary.Scaling`); null: none.
        rotary_dim: Channels of a head that RoPE turns, the first ones; null: all.
        rms_eps: Number that RMSNorm adds to the mean square.
        mask_id: Token id of the mask.
        eos_id: Token id of the end of a text.
        other_eos_ids: Further ids that end one.
        max_sequence: Tokens of prompt and generation at most.
        qkv_bias: Q, K and V have biases.
        qk_norm: Each head of Q and of K has an RMS norm before RoPE.
        v_norm: Each head of V has an RMS norm without factors.
        post_norms: Results of attention and of the MLP pass an RMS norm before they are added to the residual stream.
        layer_scales: The residual stream is multiplied by a learned number at the end of each layer.
        clean_layer_scales: Passes over finished tokens, a prompt or a block, have numbers of their own for it.
        self_conditioning: Width of the MLP that adds to each token of a block the embedding that the step before expects there
            (`dllm.operators.SelfConditioning`); null: there is none.
        activation: Activation of the gate of an MLP: silu, or gelu_tanh.
        attention_scale: Factor of the scores of attention; null: 1 / sqrt(head_dim).
        embedding_scale: Factor of the embeddings.
        logit_softcap: Logits become c tanh(logits / c); null: they stay.
        window: A row attends to keys fewer places before it (docs/models.md); null: to any.
        full_layers: Layers that attend to all keys, with heads of their own (a mapping of `dllm.model.FullLayers`); null: none.
        attention_mask: Keys that a row attends to: full, block_causal (up to the end of its block), causal (up to its own).
        shifted_logits: The logits of a position come from the hidden state of the position before it.
        seeded_blocks: The first token of a block is what the clean forward of the token before it says comes next.
        tied_embeddings: The LM head is the embedding.
        experts: Experts in place of the gated MLP (a mapping of `dllm.experts.Experts`); null: none.
        decoding: Settings of decoding for what the workload leaves out.
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
    other_eos_ids: Sequence[int] = ()
    rope_scaling: Scaling | None = None
    rotary_dim: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    v_norm: bool = False
    post_norms: bool = False
    layer_scales: bool = False
    clean_layer_scales: bool = False
    self_conditioning: int | None = field(default=None, metadata=within(32, 1 << 20))
    activation: str = field(default="silu", metadata=one_of([each.value for each in Activation]))
    attention_scale: float | None = field(default=None, metadata=within(1e-4, 1e4))
    embedding_scale: float = field(default=1.0, metadata=within(1e-4, 1e4))
    logit_softcap: float | None = field(default=None, metadata=within(1e-1, 1e4))
    window: int | None = field(default=None, metadata=within(1, 1 << 24))
    full_layers: FullLayers | None = None
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
        if self.experts is not None and self.experts.block_capacity and self.mask is not Mask.BLOCK_CAUSAL:
            raise TripathError(
                "model.experts.block_capacity: needs model.attention_mask block_causal, whose blocks count from the first token, "
                f"got {self.attention_mask}"
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
        if self.clean_layer_scales and not self.layer_scales:
            raise TripathError("model.clean_layer_scales: needs model.layer_scales")
        if self.self_conditioning is not None and self.self_conditioning % 32:
            raise TripathError(
                f"model.self_conditioning: must be a multiple of the MX block of 32, got {self.self_conditioning}"
            )
        if self.v_norm and not self.qk_norm:
            raise TripathError("model.v_norm: needs model.qk_norm")
        if self.full_layers is not None:
            self._check_full_layers(self.full_layers)
        object.__setattr__(self, "other_eos_ids", tuple(self.other_eos_ids))
        ids = {"mask_id": self.mask_id, "eos_id": self.eos_id}
        ids |= {f"other_eos_ids[{number}]": each for number, each in enumerate(self.other_eos_ids)}
        for key, each in ids.items():
            if not 0 <= each < self.vocab:
                raise TripathError(f"model.{key}: {each} is not below model.vocab {self.vocab}")

    def _check_full_layers(self, full: FullLayers) -> None:
        rules = [
            (self.layers % full.period == 0, "period", f"{full.period} does not divide model.layers {self.layers}"),
            (self.heads % full.kv_heads == 0, "kv_heads", f"{full.kv_heads} does not divide model.heads {self.heads}"),
            (self.v_norm or not full.shared_kv, "shared_kv", "needs model.v_norm"),
            (not self.qkv_bias, "period", "model.qkv_bias is not known beside it"),
            (self.head_dim % 32 == 0, "period", f"model.head_dim must be a multiple of 32 beside it, got {self.head_dim}"),
            (self.attention_scale is not None, "head_dim", "needs model.attention_scale, which both kinds of layers share"),
            (self.only_layers is None, "period", "model.only_layers is not known beside it"),
            (self.experts is None or not self.experts.first_layer, "period", "stands beside model.experts.first_layer"),
        ]  # fmt: skip
        for holds, key, rule in rules:
            if not holds:
                raise TripathError(f"model.full_layers.{key}: {rule}")

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (self.eos_id, *self.other_eos_ids)

    @property
    def geometry(self) -> Geometry:
        """The attention of all layers, or of those that have a window."""
        return Geometry(
            name="", heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, window=self.window,
            turned_channels=self.turned_channels, rotation=self.rotation, shared_kv=False,
        )  # fmt: skip

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """The attention of each kind of layers."""
        full = self.full_layers
        if full is None:
            return (self.geometry,)
        return self.geometry, Geometry(
            name="full", heads=self.heads, kv_heads=full.kv_heads, head_dim=full.head_dim, window=None,
            turned_channels=full.head_dim, rotation=Rotation(theta=full.rope_theta, pairs=full.rotary_pairs),
            shared_kv=full.shared_kv,
        )  # fmt: skip

    @property
    def query_width(self) -> int:
        """Elements of one row of Q."""
        return self.geometry.query_width

    @property
    def kv_width(self) -> int:
        """Elements of one row of K (and of V)."""
        return self.geometry.kv_width

    @property
    def qkv_width(self) -> int:
        """Elements of one row of Q, K and V."""
        return self.geometry.qkv_width

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
        """The factor of attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def gating(self) -> Activation:
        """The activation that a gated MLP applies to its gate."""
        return Activation(self.activation)

    @property
    def rotation(self) -> Rotation:
        """The angles of RoPE."""
        return Rotation(theta=self.rope_theta, scaling=self.rope_scaling)

    @property
    def network(self) -> Network:
        """The model as a list of operators: the one place that says how its parts fit together."""
        width, epsilon = self.hidden, self.rms_eps

        def norm(name: str, part: str, *, of_result: bool = False) -> Norm:
            return Norm(name=name, part=part, width=width, epsilon=epsilon, of_result=of_result)

        def attention(of: Geometry) -> tuple[Operator, ...]:
            heads = {"heads": of.heads, "kv_heads": of.kv_heads, "head_dim": of.head_dim}
            projections = (("q_proj", of.query_width), ("k_proj", of.kv_width), ("v_proj", of.kv_width))
            parts = projections[:2] if of.shared_kv else projections
            head_norm = HeadNorm(**heads, epsilon=epsilon, values=self.v_norm, shared=of.shared_kv)
            return (
                norm("attention_norm", "attn_norm"),
                Linear(name="w_qkv", parts=parts, inputs=width, bias="qkv_bias" if self.qkv_bias else ""),
                *((head_norm,) if self.qk_norm else ()),
                Rope(**heads, rotary_dim=of.turned_channels, rotation=of.rotation),
                Attention(**heads, scale=self.scores_scale, mask=self.mask, window=of.window),
                Linear(name="w_out", parts=(("attn_out", width),), inputs=of.query_width),
                *((norm("attention_post_norm", "attn_post_norm", of_result=True),) if self.post_norms else ()),
                Residual(width=width),
            )

        dense = (norm("ffn_norm", "ff_norm"), GatedMlp(width=width, inner=self.ffn, activation=self.gating))
        end = (
            *((norm("ffn_post_norm", "ff_post_norm", of_result=True),) if self.post_norms else ()),
            Residual(width=width, scaled=self.layer_scales, clean_scaled=self.clean_layer_scales),
        )
        ffn: tuple[Operator, ...] = dense
        first, window, *others = 0, *self.geometries
        if self.experts is not None:
            first = self.experts.first_layer
            mixture = Moe(width=width, experts=self.experts, epsilon=epsilon, activation=self.gating)
            ffn = (norm("ffn_norm", "ff_norm"), mixture)
            if self.experts.beside_ffn:
                behind_dense, behind_experts = (
                    norm(name, name, of_result=True) for name in ("dense_post_norm", "experts_post_norm")
                )
                experts = (norm("experts_norm", "experts_norm"), mixture, behind_experts)
                ffn = (Sum(branches=((*dense, behind_dense), experts), width=width),)
        cycles = 1 if self.full_layers is None else self.layers // self.full_layers.period
        groups = [
            *([Group(repeat=first, pattern=(*attention(window), *dense, *end), name="dense")] if first else []),
            Group(repeat=self.layers // cycles - first - len(others), pattern=(*attention(window), *ffn, *end)),
            *(
                Group(repeat=1, pattern=(*attention(each), *ffn, *end), name=each.name, geometry=each.name)
                for each in others
            ),
        ]
        conditioning: tuple[Operator, ...] = ()
        if self.self_conditioning is not None:
            conditioning = (
                SelfConditioning(vocab=self.vocab, width=width, inner=self.self_conditioning, epsilon=epsilon,
                                 scale=self.embedding_scale, activation=self.gating),
            )  # fmt: skip
        return Network(
            stem=(Embedding(vocab=self.vocab, width=width, scale=self.embedding_scale),),
            conditioning=conditioning,
            groups=tuple(groups),
            cycles=cycles,
            head=(
                norm("final_norm", "ln_f"),
                LmHead(vocab=self.vocab, width=width, tied=self.tied_embeddings, softcap=self.logit_softcap),
            ),
        )
