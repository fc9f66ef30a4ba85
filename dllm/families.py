"""Names of weights: ours, and those of each family of checkpoints in one table.

Our name of a part is LLaDA's: `model.transformer.wte.weight`, `model.transformer.blocks.3.q_proj.weight`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dllm.model import ModelSpec

PREFIX = "model.transformer."
BLOCKS = f"{PREFIX}blocks."


def tensor_name(part: str, layer: int | None = None) -> str:
    """Our name of a part of a layer; None: of one outside of all layers."""
    return f"{PREFIX}{part}" if layer is None else f"{BLOCKS}{layer}.{part}"


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the operators of a model read, by our names."""
    return {
        tensor_name(part.name, layer): part.shape
        for stored in spec.network.weights()
        for _, layer in stored.of_layers()
        for part in stored.weight.parts
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A layout of checkpoints: what its files call our parts.

    `marks` begin the names that tell the family by its tensors; `layer` is the prefix of a layer's tensors, `outside` and
    `inside` the modules by ours, outside and inside of layers. Parts of one weight that have one name are one tensor, in which
    their rows follow each other. Modules of an expert stand where those of the layer would, the expert's name in front, or
    `stacked`, those of all experts in one tensor: an expert's below each other in this order, experts behind each other. `whole`
    names single parts, of a layer where `{layer}` does not say that the name is complete. What begins with one of `apart` is no
    part of the language model.
    """

    name: str
    marks: tuple[str, ...]
    layer: str
    outside: Mapping[str, str]
    inside: Mapping[str, str] = field(default_factory=dict)
    stacked: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    def name_of(self, part: str, layer: int | None = None) -> str:
        """The family's name of a part such as `q_proj.weight`."""
        module, _, kind = part.rpartition(".")
        if layer is None:
            return f"{self.outside[module]}.{kind}"
        if (name := self.whole.get(part)) is not None:
            return name.format(layer=layer) if "{layer}" in name else self.layer.format(layer=layer) + name
        expert, _, own = module.rpartition(".")  # empty where the part is none of an expert's
        if expert.startswith("experts.") and own in self.stacked:
            return self.layer.format(layer=layer) + self.stacked[own]
        place, _, leaf = self.inside.get(own, own).rpartition(".")
        return self.layer.format(layer=layer) + ".".join(each for each in (place, expert, leaf, kind) if each)

    def place_in_stack(self, part: str) -> tuple[int, int]:
        """Number of the expert, and of the part in it, by which parts of one tensor follow each other; of others nothing."""
        expert, _, own = part.rpartition(".")[0].rpartition(".")
        if not expert.startswith("experts.") or own not in self.stacked:
            return 0, 0
        return int(expert.removeprefix("experts.")), list(self.stacked).index(own)


LLADA = Family(
    name="LLaDA", marks=(PREFIX,), layer=f"{BLOCKS}{{layer}}.",
    outside={module: f"{PREFIX}{module}" for module in ("wte", "ln_f", "ff_out")},
)  # fmt: skip
_LLAMA_LAYER = {
    "attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
    "attn_out": "self_attn.o_proj", "ff_norm": "post_attention_layernorm", "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj", "router": "mlp.gate",
}  # fmt: skip
QWEN = Family(
    name="Qwen", marks=("model.embed_tokens.", "model.layers."), layer="model.layers.{layer}.",
    outside={"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}, inside=_LLAMA_LAYER,
)  # fmt: skip
NEMOTRON = Family(
    name="Nemotron", marks=("encoder.embed_tokens.", "encoder.layers."), layer="encoder.layers.{layer}.",
    outside={"wte": "encoder.embed_tokens", "ln_f": "encoder.norm", "ff_out": "diffusion_head"}, inside=_LLAMA_LAYER,
)  # fmt: skip
LLADA2 = Family(
    name="LLaDA2", marks=("model.word_embeddings.",), layer="model.layers.{layer}.",
    outside={"wte": "model.word_embeddings", "ln_f": "model.norm", "ff_out": "lm_head"},
    inside={
        **_LLAMA_LAYER, **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention.query_key_value"),
        "q_norm": "attention.query_layernorm", "k_norm": "attention.key_layernorm", "attn_out": "attention.dense",
    },
)  # fmt: skip
GGUF = Family(
    name="llama.cpp", marks=("token_embd.", "blk."), layer="blk.{layer}.",
    outside={"wte": "token_embd", "ln_f": "output_norm", "ff_out": "output"},
    inside={
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "attn_out": "attn_output", "ff_norm": "ffn_norm",
        "ff_proj": "ffn_gate", "up_proj": "ffn_up", "ff_out": "ffn_down",
    },
)  # fmt: skip
_GEMMA = "model.decoder."
GEMMA = Family(
    name="DiffusionGemma", marks=(_GEMMA,), layer=f"{_GEMMA}layers.{{layer}}.",
    outside={
        "wte": f"{_GEMMA}embed_tokens", "ln_f": f"{_GEMMA}norm", "ff_out": "lm_head",
        "self_conditioning.norm": f"{_GEMMA}self_conditioning.pre_norm",
        "self_conditioning.ff_proj": f"{_GEMMA}self_conditioning.gate_proj",
        "self_conditioning.up_proj": f"{_GEMMA}self_conditioning.up_proj",
        "self_conditioning.ff_out": f"{_GEMMA}self_conditioning.down_proj",
    },
    inside={
        **_LLAMA_LAYER, "attn_post_norm": "post_attention_layernorm", "ff_norm": "pre_feedforward_layernorm",
        "ff_post_norm": "post_feedforward_layernorm", "dense_post_norm": "post_feedforward_layernorm_1",
        "experts_norm": "pre_feedforward_layernorm_2", "experts_post_norm": "post_feedforward_layernorm_2",
        "router": "router.proj",
    },
    stacked={"ff_proj": "experts.gate_up_proj", "up_proj": "experts.gate_up_proj", "ff_out": "experts.down_proj"},
    whole={
        "router.norm.weight": "router.scale", "router.factors": "router.per_expert_scale", "layer_scale.weight": "layer_scalar",
        "clean_layer_scale.weight": "model.encoder.language_model.layers.{layer}.layer_scalar",
    },
    apart=("model.encoder.vision_tower.", "model.encoder.embed_vision."),
)  # fmt: skip
FAMILIES = (LLADA, LLADA2, QWEN, NEMOTRON, GEMMA, GGUF)
"""LLaDA's names; LLaDA2's; those of Qwen, Llama and all that descends from them (Dream, SDAR, Fast-dLLM v2, WeDLM, LLaDA-MoE);
Nemotron's; DiffusionGemma's; those of files of llama.cpp."""

DERIVED = ("rotary_emb.inv_freq",)
"""Ends of names of tensors that hold nothing but what the configuration says."""
SWITCHES = {"q_proj.bias": "qkv_bias", "k_proj.bias": "qkv_bias", "v_proj.bias": "qkv_bias", "q_norm.weight": "qk_norm",
            "k_norm.weight": "qk_norm"}  # fmt: skip
"""Parts that a model has where a key of its configuration says so."""
