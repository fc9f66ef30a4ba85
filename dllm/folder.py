"""A Hugging Face folder as a model: `config.json` of each family of checkpoints becomes the fields of a ModelSpec.

One adapter a family says which key gives which field, what the family fixes, and which keys change nothing. A key that its
adapter does not name is refused: a checkpoint is the model that it says it is, or it is not read. No code of a folder runs.
"""

import json
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from dllm import gguf_files
from dllm.families import GGUF, LLADA, NEMOTRON, QWEN, Family
from dllm.model import ModelSpec
from npu.errors import TripathError

CONFIG = "config.json"
GENERATION = "generation_config.json"
"""Where some families keep the ids that end a text."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS left in the place of a large one (its specification, version 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What the keys of a family's config.json mean. Keys of a mapping inside it are written with a dot.

    Attributes:
        model_types: Values of `model_type` that choose the row.
        family: Names of its tensors.
        when: Keys, and the values of them that choose the row among those of a `model_type`.
        keys: Field of ModelSpec by keys; the first that is there and not null gives it.
        defaults: What the family's code takes for a field that no key gives.
        constants: Fields that are the same in the whole family.
        decoding: How the family is decoded, unless a key says otherwise.
        block_key: The key of the block length; empty: there is none.
        only: Keys that are understood with these values (or lists of them) alone, beside null.
        ignored: Keys that change nothing of what the model computes.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What a config.json says of a model.

    `values` are fields of ModelSpec (`decoding` and `rope_scaling` as mappings), `assumed` those that no key gives, `family` the
    names of its tensors, `ends` all ids that end a text, `keys` the first key of each field that a key may give.
    """

    file: Path
    family: Family
    values: Mapping[str, Any]
    assumed: frozenset[str]
    ends: tuple[object, ...]
    keys: Mapping[str, str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EVERYWHERE = _words("""
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path attention_dropout attn_implementation auto_map
    bos_token_id dtype initializer_range model_type pad_token_id torch_dtype transformers.js_config transformers_version
    use_cache""")
"""How a checkpoint was made, stored or started: in any family."""
_OF_SLIDING = _words("max_window_layers sliding_window")
"""What `use_sliding_window: false` makes meaningless."""

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

ADAPTERS = (
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
        decoding={**_APPEND, "block_length": 32, "threshold": 0.95}, block_key="bd_size",
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
        model_types=("llama",), family=QWEN, keys=_HF_KEYS, defaults=_UNTIED,
        constants=_CAUSAL, decoding=_ONE_BY_ONE,
        only={"architectures": ("LlamaForCausalLM",), **_UNBIASED, "rope_interleaved": (False,)},
        ignored=_words("is_llama_config pretraining_tp"),
    ),
)  # fmt: skip
"""Sources of keys and values: the publishers' configurations and code. Nemotron's context ends where its queries begin to be
scaled (`llama_4_scaling_beta`), Dream's where its README ends it. The third row is I-DLM, whose 2N - 1 rows `block_size` counts;
like WeDLM it is decoded one token at a time, which gives the tokens that its own way accepts."""

_G = "llama."
GGUF_ADAPTER = Adapter(
    model_types=("llama",), family=GGUF,
    keys={
        "layers": (f"{_G}block_count",), "hidden": (f"{_G}embedding_length",), "heads": (f"{_G}attention.head_count",),
        "kv_heads": (f"{_G}attention.head_count_kv", f"{_G}attention.head_count"),
        "head_dim": (f"{_G}attention.key_length", f"{_G}rope.dimension_count"), "ffn": (f"{_G}feed_forward_length",),
        "vocab": (f"{_G}vocab_size",), "rope_theta": (f"{_G}rope.freq_base",),
        "rms_eps": (f"{_G}attention.layer_norm_rms_epsilon",), "eos_id": ("tokenizer.ggml.eos_token_id",),
        "max_sequence": (f"{_G}context_length",), "tied_embeddings": (f"{_G}tied",),
    },
    defaults={"rope_theta": 10000.0}, constants=_CAUSAL, decoding=_ONE_BY_ONE,
    only={"general.architecture": ("llama",), f"{_G}rope.scaling.type": ("none",)},
    ignored=frozenset({f"{_G}attention.value_length"}),
)  # fmt: skip
"""The metadata of a file of llama.cpp, with `llama.tied` for the absence of a head."""
_IGNORED_GGUF = ("general.", "tokenizer.", "GGUF.")
"""Beginnings of keys of metadata that say nothing of what a model computes."""

MIXTURE = "mixture of experts"
LACKING = {
    "llada2_moe": MIXTURE, "llada2_moe_veomni": MIXTURE, "lladamoe": MIXTURE, "sdar_moe": MIXTURE, "qwen3_moe": MIXTURE,
    "LLaDAMoEModelLM": MIXTURE, "LLaDA2MoeModelLM": MIXTURE, "SDARMoeForCausalLM": MIXTURE,
    "diffusion_gemma": f"{MIXTURE}, self-conditioning and sliding windows",
}  # fmt: skip
"""What keeps a `model_type`, or one of `architectures`, from being run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stretch:
    """How config.json writes a kind of `dllm.operators.Scaling`: its fields by keys, defaults, and what else must stand there."""

    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    needed: Mapping[str, object] = field(default_factory=dict)


_CONTEXT = {"factor": "factor", "original_context": "original_max_position_embeddings"}
_STRETCHES = {
    "default": _Stretch(),
    "linear": _Stretch(keys={"factor": "factor"}),
    "llama3": _Stretch(keys={**_CONTEXT, "low": "low_freq_factor", "high": "high_freq_factor"}),
    "yarn": _Stretch(
        keys={**_CONTEXT, "low": "beta_slow", "high": "beta_fast"}, defaults={"low": 1.0, "high": 32.0},
        needed={"mscale": 1.0, "mscale_all_dim": 1.0},  # else attention is scaled by the factor's logarithm
    ),
}  # fmt: skip
_ROPE = ("rope_scaling", "rope_parameters")
"""The key that holds the angles, as older and newer files call it; inside, the kind has one of two names."""
_ROPE_KIND = ("rope_type", "type")


def describe(file: Path, subject: str = "model.folder") -> Described:
    """The model of a config.json or a file of llama.cpp; `subject` is the key of the configuration that an error names.

    Raises:
        TripathError: it cannot be read, or holds a family, key or value that is not understood; in one line.
    """
    if file.suffix == gguf_files.SUFFIX:
        config, adapter = _metadata(file, subject), GGUF_ADAPTER
    else:
        config = _Config(file=file, subject=subject, values=_flat(_read(file, subject)))
        adapter = _adapter(config)
    _check(config, adapter)
    values = {name: found for name, keys in adapter.keys.items() if (found := config.first(keys)) is not None}
    ends = values.get("eos_id")
    if ends is None and (other := file.with_name(GENERATION)).is_file():
        ends = _read(other, subject).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if ends[:1] not in ([], [None]):
        values["eos_id"] = ends[0]
    if scaling := _scaling(config, adapter):
        values["rope_scaling"] = scaling
    block = config.first([adapter.block_key])
    values |= {
        **adapter.constants,
        "decoding": {**adapter.decoding, **({} if block is None else {"block_length": block})},
    }
    assumed = {name: value for name, value in adapter.defaults.items() if name not in values}
    assumed |= {name: value for name, value in _derived(values).items() if name not in {**values, **assumed}}
    return Described(
        file=file, family=adapter.family, values={**assumed, **values}, assumed=frozenset(assumed), ends=tuple(ends),
        keys={name: keys[0] for name, keys in adapter.keys.items()},
    )  # fmt: skip


def read_folder(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the ModelSpec of a folder; those that are `given` and not null take the place of what it says.

    The checkpoint is the folder where it holds safetensors, or the file of llama.cpp that it is or holds, else null.

    Raises:
        TripathError: no such folder, or as `describe`, or it lacks a field that is not given either.
    """
    root = Path(folder)
    if not root.exists():
        raise TripathError(f"model.folder: no such folder {root}")
    file = gguf_files.find(root, "model.folder")
    found = describe(file or root / CONFIG)
    weights = file or (root if any(root.glob("*.safetensors")) else None)
    values = {"name": root.resolve().stem, "checkpoint": weights and str(weights), **found.values}
    decoding = {**found.values["decoding"], **given.get("decoding", {})}
    values |= {name: value for name, value in given.items() if value is not None} | {"decoding": decoding}
    for name in (each.name for each in fields(ModelSpec)):
        if name in found.keys and name not in values:
            raise TripathError(
                f"model.folder: {found.file.name} lacks {found.keys[name]}, give model.{name} ({found.file})"
            )
    return values


def read_small(file: Path, subject: str) -> bytes:
    """The bytes of a small file; `subject` is the key of the configuration that an error names.

    Raises:
        TripathError: it cannot be read, or Git LFS has not fetched it.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise TripathError(f"{subject}: cannot read {file} ({error.strerror})") from None
    if raw.startswith(POINTER):
        raise TripathError(f"{subject}: {file} is a pointer of Git LFS; `git lfs pull` fetches the file itself")
    return raw


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    """Keys and values of a config.json; those of a mapping that holds the angles have its name and a dot in front."""

    file: Path
    subject: str
    values: Mapping[str, Any]

    def first(self, keys: Collection[str]) -> Any:  # noqa: ANN401  what JSON holds
        """The value of the first of these keys that is there and not null; None: of none."""
        return next((value for key in keys if (value := self.values.get(key)) is not None), None)

    def refuse(self, key: str, why: str = "is not understood") -> NoReturn:
        """Refuse a key and its value."""
        value = textwrap.shorten(json.dumps(self.values.get(key)), 80)
        raise TripathError(f"{self.subject}: {self.file.name} key {key} = {value} {why} ({self.file})")


def _read(file: Path, subject: str) -> dict[str, Any]:
    raw = read_small(file, subject)
    try:
        found = json.loads(raw)
    except ValueError:
        raise TripathError(f"{subject}: malformed {file}") from None
    if not isinstance(found, dict):
        raise TripathError(f"{subject}: malformed {file}")
    return found


def _metadata(file: Path, subject: str) -> _Config:
    """What a file of llama.cpp says of its model."""
    held = gguf_files.contents(file, subject)
    values = {key: value for key, value in held.values.items() if not key.startswith(_IGNORED_GGUF)}
    kept = {key for keys in GGUF_ADAPTER.keys.values() for key in keys} | {"general.architecture"}
    values |= {key: held.values[key] for key in kept if key in held.values}
    values[f"{_G}tied"] = GGUF.name_of("ff_out.weight") not in held.tensors
    config = _Config(file=file, subject=subject, values=values)
    widths = [f"{_G}attention.key_length", f"{_G}attention.value_length", f"{_G}rope.dimension_count"]
    for key in widths:
        if values.get(key) not in (None, config.first(widths)):
            config.refuse(key, f"differs from the width of a head, {config.first(widths)}")
    return config


def _flat(whole: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in whole.items():
        inside = key in _ROPE and isinstance(value, dict)
        flat |= {f"{key}.{name}": each for name, each in value.items()} if inside else {key: value}
    return flat


def _adapter(config: _Config) -> Adapter:
    """The row of a configuration.

    Raises:
        TripathError: there is none, or its weights are in a layout that is not read.
    """
    kind, listed = config.values.get("model_type"), config.values.get("architectures")
    for key, names in (("model_type", [kind]), ("architectures", listed if isinstance(listed, list) else [])):
        for name in names:
            if isinstance(name, str) and name in LACKING:
                config.refuse(key, f"is a model that tripath cannot run yet, which lacks {LACKING[name]}")
    rows = [row for row in ADAPTERS if kind in row.model_types]
    if not rows:
        known = ", ".join(dict.fromkeys(row.model_types[0] for row in ADAPTERS))
        config.refuse("model_type", f"is none of {known}")
    if (layout := config.values.get("quantization_config")) is not None:
        method = layout.get("quant_method") if isinstance(layout, dict) else layout
        raise TripathError(
            f"{config.subject}: {CONFIG} key quantization_config = {method} is a quantised layout, which is not read; take the "
            f"checkpoint in BF16 ({config.file})"
        )
    return next(row for row in rows if all(config.values.get(key) in values for key, values in row.when.items()))


def _check(config: _Config, adapter: Adapter) -> None:
    """Refuse keys that the row does not name, and values that it does not understand."""
    only = {**adapter.only, **dict.fromkeys(_ROPE, ()), "quantization_config": ()}
    known = {key for keys in adapter.keys.values() for key in keys} | only.keys() | adapter.ignored | _EVERYWHERE
    known |= {adapter.block_key, *adapter.when} - {""}
    for key, value in config.values.items():
        if key not in known and not key.startswith(tuple(f"{each}." for each in _ROPE)):
            config.refuse(key)
        each = value if isinstance(value, list) else [value]
        if key in only and any(item is not None and item not in only[key] for item in each):
            config.refuse(key)


def _scaling(config: _Config, adapter: Adapter) -> dict[str, Any]:
    """The fields of a Scaling; empty: angles are not stretched."""
    found: dict[str, Any] = {}
    for whole in _ROPE:
        inside = {
            key.removeprefix(f"{whole}."): value for key, value in config.values.items() if key.startswith(f"{whole}.")
        }
        named = next((name for name in _ROPE_KIND if name in inside), "")
        kind = inside.get(named, "default")
        if kind not in _STRETCHES:
            config.refuse(f"{whole}.{named}")
        row = _STRETCHES[kind]
        understood = {*_ROPE_KIND, *row.keys.values(), *row.needed}
        for name in inside:
            key = f"{whole}.{name}"
            if (
                name not in understood
                and key not in adapter.ignored
                and not any(key in keys for keys in adapter.keys.values())
            ):
                config.refuse(key)
        stretched = {name: inside.get(key, row.defaults.get(name)) for name, key in row.keys.items()}
        lacking = [row.keys[name] for name, value in stretched.items() if value is None]
        wrong = [name for name, value in row.needed.items() if inside.get(name) != value]
        for name in (*lacking, *wrong):
            config.refuse(f"{whole}.{name}")
        if stretched:
            found = {"kind": kind, **stretched}
    return found


def _derived(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that follow from others where neither a key nor the family gives them.

    The mask of an autoregressive model only stands for what is not generated yet: the last id of its vocabulary.
    """
    hidden, heads, vocab = (values.get(name) for name in ("hidden", "heads", "vocab"))
    found: dict[str, Any] = {}
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        found["head_dim"] = hidden // heads
    if isinstance(vocab, int) and values.get("attention_mask") == "causal":
        found["mask_id"] = vocab - 1
    return found
