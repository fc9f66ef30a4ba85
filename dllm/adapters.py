"""The keys of each family's `config.json`: which gives which field of a ModelSpec, and which change nothing."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dllm.families import GEMMA, GGUF, LLADA, LLADA2, NEMOTRON, QWEN, Family


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """The meaning of the keys in a family's config.json. Keys of a mapping inside it are written with a dot.

    Attributes:
        model_types: Values of `model_type` that choose the row.
        family: Names of its tensors.
        when: Keys, and the values of them that choose the row among those of a `model_type`.
        keys: Keys of each field of ModelSpec; the first that is present and not null gives its value. Fields of its experts are
            written with a dot, here and in the next two.
        defaults: Values that the family's code takes for fields that no key gives.
        constants: Fields that are the same in the whole family.
        decoding: Decoding of the family, unless a key says otherwise.
        block_key: The key of the block length; empty: there is none.
        only: Keys that are understood only with these values (or lists of them), or with null.
        ignored: Keys that change nothing of what the model computes.
        derive: Fields that follow from several keys, of config.json and of generation_config.json; those of `decoding` are
            written with a dot. It raises KeyError of a key whose value contradicts another.
    """

    model_types: tuple[str, ...]
    family: Family
    when: Mapping[str, Collection[object]] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, object] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    decoding: Mapping[str, object] = field(default_factory=dict)
    block_key: str = ""
    only: Mapping[str, Collection[object]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    derive: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] | None = None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EVERYWHERE = _words("""
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path attention_dropout attn_implementation auto_map
    bos_token_id dtype initializer_range model_type pad_token_id torch_dtype transformers.js_config transformers_version
    use_cache""")
"""Keys, in any family, about how a checkpoint was made, stored or started."""
_OF_SLIDING = _words("max_window_layers sliding_window")
"""Keys that `use_sliding_window: false` makes meaningless."""

_HF_KEYS: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers",), "hidden": ("hidden_size",), "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads", "num_attention_heads"), "head_dim": ("head_dim",), "ffn": ("intermediate_size",),
    "vocab": ("vocab_size",), "rope_theta": ("rope_theta", "rope_parameters.rope_theta"), "rms_eps": ("rms_norm_eps",),
    "mask_id": ("mask_token_id",), "eos_id": ("eos_token_id",), "max_sequence": ("max_position_embeddings",),
    "tied_embeddings": ("tie_word_embeddings",),
}  # fmt: skip
_HF_ONLY: Mapping[str, Collection[object]] = {
    "hidden_act": ("silu",), "use_sliding_window": (False,), "layer_types": ("full_attention",),
}  # fmt: skip
_UNBIASED = {**_HF_ONLY, "attention_bias": (False,), "mlp_bias": (False,)}
_APPEND = {"cache": "append", "commit": "threshold"}
_ONE_BY_ONE = {"block_length": 1, "cache": "append"}
_CAUSAL = {"attention_mask": "causal", "shifted_logits": True, "seeded_blocks": True}
_PLAIN = {"shifted_logits": False, "seeded_blocks": False}
_UNTIED = {"tied_embeddings": False}
_SDAR_IGNORED = _OF_SLIDING | _words("""
    debug ep_size fuse_cross_entropy micro_forward skip_checkpoint use_deepep use_regular_causal""")
"""Of SDAR's training code; `use_regular_causal` stands in its configuration alone."""

ROTARY_SHARE = "partial_rotary_factor"
_MOE_KEYS: Mapping[str, tuple[str, ...]] = {
    "experts.count": ("num_experts",), "experts.chosen": ("num_experts_per_tok",), "experts.inner": ("moe_intermediate_size",),
}  # fmt: skip
_OF_TRAINING = _words("""
    aux_loss_alpha norm_softmax output_dropout output_router_logits router_aux_loss_coef router_dtype seq_aux""")
"""Keys about the training of a router, and other names of dropout."""
_OF_EDITING = _words("delete_token_id split_token_id")
"""Tokens by which LLaDA2.2's own loop edits a block; the network computes them like all others."""

_SLIDING, _FULL = (f"rope_parameters.{kind}_attention" for kind in ("sliding", "full"))


def _of_gemma(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every so many layers one attends to all keys; embeddings are multiplied by the root of their width, in BF16; the loop's
    numbers are those of the published generation_config.json where there is none."""
    kinds, hidden = config.get("layer_types") or [], config.get("hidden_size")
    period = config.get("sliding_window_pattern") or (
        kinds.index("full_attention") + 1 if "full_attention" in kinds else 6
    )
    if kinds and kinds != [
        f"{'sliding' if layer % period else 'full'}_attention" for layer in range(1, len(kinds) + 1)
    ]:
        raise KeyError("layer_types")
    found: dict[str, Any] = {"full_layers.period": period, "self_conditioning": config.get("intermediate_size")}
    if isinstance(hidden, int):
        from npu.formats.rounding import round_bf16  # compiled, which no other family waits for

        found["embedding_scale"] = float(round_bf16(np.float32(hidden**0.5)))
    if isinstance(width := config.get("global_head_dim"), int):
        found["full_layers.rotary_pairs"] = int(config.get(f"{_FULL}.partial_rotary_factor", 0.25) * width) // 2
    if generation.get("stability_threshold", 1) != 1:
        raise KeyError("stability_threshold")
    published = {
        "steps_per_block": ("max_denoising_steps", 48), "entropy_bound": ("entropy_bound", 0.1), "temperature": ("t_max", 0.8),
        "last_temperature": ("t_min", 0.4), "stop_entropy": ("confidence_threshold", 0.005),
    }  # fmt: skip
    return found | {f"decoding.{name}": generation.get(key, value) for name, (key, value) in published.items()}


def _of_llada2(config: Mapping[str, Any], _: Mapping[str, Any]) -> Mapping[str, Any]:
    """Under block routing (LLaDA2.2) the keys of groups remain, and change nothing."""
    return {"experts.groups": 1, "experts.kept_groups": 1} if config.get("expert_capacity") else {}


ADAPTERS = (
    Adapter(
        model_types=("llada", "lladamoe"), family=QWEN, when={"architectures": ("LLaDAMoEModelLM", "LLaDAMoEModel")},
        keys={
            **_HF_KEYS, "ffn": ("dense_intermediate_size", "expert_intermediate_size"), "qk_norm": ("qk_layernorm",),
            "experts.count": ("num_experts",), "experts.chosen": ("num_experts_per_tok",),
            "experts.inner": ("expert_intermediate_size",), "experts.score": ("moe_router_score_function",),
            "experts.scale": ("routed_scaling_factor",),
        },
        defaults={**_UNTIED, "mask_id": 156895, "qk_norm": True, "experts.score": "softmax", "experts.scale": 1.0},
        constants={"attention_mask": "full", **_PLAIN, "experts.normalised": False},
        only={
            **_UNBIASED, "moe_layer_freq": (1,), "moe_router_enable_expert_bias": (False,), "partial_rotary_factor": (1, 1.0),
            "shared_expert_intermediate_size": (0,), "clip_qkv": (),
            "use_moe": (True,),
        },
        ignored=_OF_SLIDING | _OF_TRAINING | _words("intermediate_size norm_topk_prob moe_router_topk_scaling_factor"),
    ),
    Adapter(
        model_types=("llada2_moe", "llada2_moe_veomni"), family=LLADA2,
        keys={
            **_HF_KEYS, **_MOE_KEYS, "rotary_dim": ("rotary_dim", ROTARY_SHARE), "qk_norm": ("use_qk_norm",),
            "experts.score": ("score_function",), "experts.bias": ("moe_router_enable_expert_bias",),
            "experts.groups": ("n_group",), "experts.kept_groups": ("topk_group",), "experts.normalised": ("norm_topk_prob",),
            "experts.scale": ("routed_scaling_factor",), "experts.shared": ("num_shared_experts",),
            "experts.first_layer": ("first_k_dense_replace",), "experts.block_capacity": ("expert_capacity",),
            "experts.block_tokens": ("block_size",),
        },
        defaults={**_UNTIED, "mask_id": 156895, "eos_id": 156892, "qk_norm": True},
        constants={"attention_mask": "block_causal", **_PLAIN},
        decoding={**_APPEND, "block_length": 32, "threshold": 0.95}, block_key="block_size",
        only={
            "architectures": ("LLaDA2MoeModelLM",), **_HF_ONLY, "norm_head": (False,), "use_bias": (False,),
            "use_qkv_bias": (False,), "use_rmsnorm": (True,), "using_split_qkv_in_self_attention": (False,),
        },
        ignored=_OF_SLIDING | _OF_TRAINING | _OF_EDITING
        | _words("embedding_dropout moe_shared_expert_intermediate_size"),
        derive=_of_llada2,
    ),
    Adapter(
        model_types=("sdar_moe",), family=QWEN, keys={**_HF_KEYS, **_MOE_KEYS, "experts.normalised": ("norm_topk_prob",)},
        defaults={**_UNTIED, "head_dim": 128, "mask_id": 151669, "experts.normalised": True},
        constants={"qk_norm": True, "attention_mask": "block_causal", **_PLAIN, "experts.score": "softmax"},
        decoding={**_APPEND, "block_length": 4, "threshold": 0.85}, block_key="block_size",
        only={
            "architectures": ("SDARMoeForCausalLM",), **_UNBIASED, "block_size": (4, 8, 16, 32, 64),
            "decoder_sparse_step": (1,), "mlp_only_layers": (),
        },
        ignored=_SDAR_IGNORED | _OF_TRAINING,
    ),
    Adapter(
        model_types=("llada",), family=LLADA,
        keys={
            "layers": ("n_layers",), "hidden": ("d_model",), "heads": ("n_heads",), "kv_heads": ("n_kv_heads", "n_heads"),
            "ffn": ("mlp_hidden_size",), "vocab": ("embedding_size", "vocab_size"), "rope_theta": ("rope_theta",),
            "rms_eps": ("rms_norm_eps",), "mask_id": ("mask_token_id",), "eos_id": ("eos_token_id",),
            "max_sequence": ("max_sequence_length",), "tied_embeddings": ("weight_tying",), "qkv_bias": ("include_qkv_bias",),
        },
        defaults={**_UNTIED, "qkv_bias": False}, constants={"attention_mask": "full", **_PLAIN},
        only={
            "architectures": ("LLaDAModelLM",), "activation_type": ("silu",), "alibi": (False,), "attention_layer_norm": (False,),
            "bias_for_layer_norm": (False,), "block_group_size": (1,), "block_type": ("llama",), "clip_qkv": (),
            "include_bias": (False,), "input_emb_norm": (False,), "layer_norm_type": ("rms",), "layer_norm_with_affine": (True,),
            "multi_query_attention": (False,), "rope": (True,), "scale_logits": (False,),
        },
        ignored=_words("""
            alibi_bias_max attention_layer_norm_with_affine embedding_dropout flash_attention init_cutoff_factor init_device
            init_fn init_std mlp_ratio precision residual_dropout rope_full_precision"""),
    ),
    Adapter(
        model_types=("Dream", "dream"), family=QWEN,
        keys={name: keys for name, keys in _HF_KEYS.items() if name != "max_sequence"},
        defaults={**_UNTIED, "mask_id": 151666},
        constants={
            "attention_mask": "full", "qkv_bias": True, "shifted_logits": True, "seeded_blocks": False, "max_sequence": 2048,
        },
        only={"architectures": ("DreamModel",), **_HF_ONLY, "use_mrope": (False,)},
        ignored=_OF_SLIDING | {"max_position_embeddings"},
    ),
    Adapter(
        model_types=("sdar",), family=QWEN, when={"block_size": (3, 5, 7, 9, 11, 13, 15)},
        keys=_HF_KEYS, defaults={**_UNTIED, "head_dim": 128, "mask_id": 151669}, constants={"qk_norm": True, **_CAUSAL},
        decoding=_ONE_BY_ONE, only={"architectures": ("SDARForCausalLM",), **_UNBIASED}, ignored=_SDAR_IGNORED,
    ),
    Adapter(
        model_types=("sdar",), family=QWEN, keys=_HF_KEYS,
        defaults={**_UNTIED, "head_dim": 128, "mask_id": 151669},
        constants={"qk_norm": True, "attention_mask": "block_causal", **_PLAIN},
        decoding={**_APPEND, "block_length": 4, "threshold": 0.85}, block_key="block_size",
        only={"architectures": ("SDARForCausalLM",), **_UNBIASED, "block_size": (4, 8, 16, 32, 64)}, ignored=_SDAR_IGNORED,
    ),
    Adapter(
        model_types=("Fast_dLLM_Qwen",), family=QWEN, keys=_HF_KEYS,
        defaults={**_UNTIED, "mask_id": 151665},
        constants={"qkv_bias": True, "attention_mask": "block_causal", "shifted_logits": True, "seeded_blocks": True},
        decoding={**_APPEND, "block_length": 32, "threshold": 0.95, "sub_block_length": 8}, block_key="bd_size",
        only={"architectures": ("Fast_dLLM_QwenForCausalLM",), **_HF_ONLY}, ignored=_OF_SLIDING,
    ),
    Adapter(
        model_types=("nemotron_labs_diffusion",), family=NEMOTRON,
        keys={**_HF_KEYS, "max_sequence": ("rope_parameters.original_max_position_embeddings",)}, defaults=_UNTIED,
        constants={"attention_mask": "causal", "shifted_logits": False, "seeded_blocks": True},
        decoding={**_APPEND, "block_length": 32, "threshold": 0.9}, block_key="block_size",
        only={
            "architectures": ("NemotronLabsDiffusionModel",), **_UNBIASED, "dlm_paradigm": ("bidirectional",),
            "sliding_window": (),
        },
        ignored=_words("""
            ar_loss_weight dlm_loss_weight dp_varying_mask_ratio max_position_embeddings
            rope_parameters.llama_4_scaling_beta"""),
    ),
    Adapter(
        model_types=("wedlm",), family=QWEN, keys={**_HF_KEYS, "qk_norm": ("qk_norm",)},
        defaults={**_UNTIED, "head_dim": 128, "mask_id": 151665, "qk_norm": True}, constants=_CAUSAL, decoding=_ONE_BY_ONE,
        only={"architectures": ("WeDLMForCausalLM",), **_UNBIASED}, ignored=_OF_SLIDING,
    ),
    Adapter(
        model_types=("qwen2",), family=QWEN, keys=_HF_KEYS, defaults=_UNTIED,
        constants={"qkv_bias": True, **_CAUSAL}, decoding=_ONE_BY_ONE,
        only={"architectures": ("Qwen2ForCausalLM",), **_HF_ONLY, "use_mrope": (False,)}, ignored=_OF_SLIDING,
    ),
    Adapter(
        model_types=("qwen3",), family=QWEN, keys=_HF_KEYS,
        defaults={**_UNTIED, "head_dim": 128}, constants={"qk_norm": True, **_CAUSAL}, decoding=_ONE_BY_ONE,
        only={"architectures": ("Qwen3ForCausalLM",), **_UNBIASED}, ignored=_OF_SLIDING,
    ),
    Adapter(
        model_types=("diffusion_gemma",), family=GEMMA,
        keys={
            **_HF_KEYS, "rope_theta": (f"{_SLIDING}.rope_theta",), "window": ("sliding_window",),
            "logit_softcap": ("final_logit_softcapping",), "full_layers.kv_heads": ("num_global_key_value_heads",),
            "full_layers.head_dim": ("global_head_dim",), "full_layers.rope_theta": (f"{_FULL}.rope_theta",),
            "experts.count": ("num_experts",), "experts.chosen": ("top_k_experts",),
            "experts.inner": ("moe_intermediate_size",),
        },
        defaults={"mask_id": 0, "tied_embeddings": True},
        constants={
            "attention_mask": "causal", **_PLAIN, "qk_norm": True, "v_norm": True, "post_norms": True, "layer_scales": True,
            "clean_layer_scales": True, "activation": "gelu_tanh", "attention_scale": 1.0, "full_layers.shared_kv": True,
            "experts.score": "softmax", "experts.normalised": True, "experts.factors": True, "experts.router_norm": True,
            "experts.beside_ffn": True,
        },
        decoding={"cache": "append", "commit": "entropy_bound", "diffusion": "uniform"}, block_key="canvas_length",
        only={
            "architectures": ("DiffusionGemmaForBlockDiffusion",), "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": (False,), "attention_k_eq_v": (True,), "enable_moe_block": (True,), "use_double_wide_mlp": (False,),
            "num_kv_shared_layers": (0,), "hidden_size_per_layer_input": (0,), "use_bidirectional_attention": ("vision",),
            "layer_types": ("sliding_attention", "full_attention"), f"{_SLIDING}.rope_type": ("default",),
            f"{_FULL}.rope_type": ("proportional",), "text_config.model_type": ("diffusion_gemma_text",),
        },
        ignored=_words("""
            boi_token_id eoi_token_id image_token_id sliding_window_pattern vision_config vision_soft_tokens_per_image
            vocab_size_per_layer_input""") | {f"{_FULL}.partial_rotary_factor"},
        derive=_of_gemma,
    ),
    Adapter(
        model_types=("llama",), family=QWEN, keys=_HF_KEYS, defaults=_UNTIED,
        constants=_CAUSAL, decoding=_ONE_BY_ONE,
        only={"architectures": ("LlamaForCausalLM",), **_UNBIASED, "rope_interleaved": (False,)},
        ignored=_words("is_llama_config pretraining_tp"),
    ),
)  # fmt: skip
"""Sources of keys and values: the publishers' configurations and code. Nemotron's context ends where its queries begin to be
scaled (`llama_4_scaling_beta`), Dream's where its README ends it. The third row is I-DLM, whose 2N - 1 rows `block_size` counts;
like WeDLM it is decoded one token at a time, which gives the tokens that its own way accepts."""

LLAMA = "llama."
GGUF_ADAPTER = Adapter(
    model_types=("llama",), family=GGUF,
    keys={
        "layers": (f"{LLAMA}block_count",), "hidden": (f"{LLAMA}embedding_length",), "heads": (f"{LLAMA}attention.head_count",),
        "kv_heads": (f"{LLAMA}attention.head_count_kv", f"{LLAMA}attention.head_count"),
        "head_dim": (f"{LLAMA}attention.key_length", f"{LLAMA}rope.dimension_count"), "ffn": (f"{LLAMA}feed_forward_length",),
        "vocab": (f"{LLAMA}vocab_size",), "rope_theta": (f"{LLAMA}rope.freq_base",),
        "rms_eps": (f"{LLAMA}attention.layer_norm_rms_epsilon",), "eos_id": ("tokenizer.ggml.eos_token_id",),
        "max_sequence": (f"{LLAMA}context_length",), "tied_embeddings": (f"{LLAMA}tied",),
    },
    defaults={"rope_theta": 10000.0}, constants=_CAUSAL, decoding=_ONE_BY_ONE,
    only={"general.architecture": ("llama",), f"{LLAMA}rope.scaling.type": ("none",)},
    ignored=frozenset({f"{LLAMA}attention.value_length"}),
)  # fmt: skip
"""The metadata of a file of llama.cpp, with `llama.tied` for the absence of a head."""
IGNORED_GGUF = ("general.", "tokenizer.", "GGUF.")
"""Beginnings of keys of metadata that say nothing of what a model computes."""
