"""A Hugging Face folder as a model: `config.json` of each family of checkpoints becomes the fields of a ModelSpec.

One adapter a family says which key gives which field, what the family fixes, and which keys change nothing. A key that its
adapter does not name is refused: a checkpoint is the model that it says it is, or it is not read. No code of a folder runs.
"""

import json
import textwrap
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from dllm import gguf_files
from dllm.adapters import ADAPTERS, EVERYWHERE, GGUF_ADAPTER, IGNORED_GGUF, LLAMA, ROTARY_SHARE, Adapter
from dllm.experts import Experts
from dllm.families import GGUF, Family
from dllm.model import FullLayers, ModelSpec
from dllm.policies import Decoding
from dllm.rotary import Scaling
from npu.errors import TripathError

CONFIG = "config.json"
GENERATION = "generation_config.json"
"""Where some families keep the ids that end a text."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""The first bytes of a file that Git LFS left in place of a large one (its specification, version 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A model as its config.json describes it.

    `values` are fields of ModelSpec (`decoding` and `rope_scaling` as mappings), `assumed` those that no key gives, `family` the
    names of its tensors, `ends` all ids that end a text, `keys` the first key of each field that a key may give.
    """

    file: Path
    family: Family
    values: Mapping[str, Any]
    assumed: frozenset[str]
    ends: tuple[object, ...]
    keys: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stretch:
    """A kind of `dllm.rotary.Scaling` in config.json: the key of each field, defaults, and other keys with the values they must
    have."""

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
_TEXT = "text_config"
"""The key that holds the language model of one that sees pictures too."""


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
    if len(ends) > 1:
        values["other_eos_ids"] = ends[1:]
    if scaling := _scaling(config, adapter):
        values["rope_scaling"] = scaling
    share, head_dim = config.values.get(ROTARY_SHARE), values.get("head_dim")
    if isinstance(share, int | float) and isinstance(head_dim, int) and "rotary_dim" in adapter.keys:
        if config.values.get("rotary_dim", share * head_dim) != share * head_dim:
            config.refuse(ROTARY_SHARE, f"of head_dim {head_dim} is not rotary_dim {config.values['rotary_dim']}")
        values["rotary_dim"] = int(share * head_dim)
    if values.get("rotary_dim") == head_dim:  # all channels turn, which needs no number
        values["rotary_dim"] = None
    if values.get("experts.shared"):  # counted in experts
        values["experts.shared"] *= values.get("experts.inner", 0)
    block, derived = config.first([adapter.block_key]), _derived_by(adapter, config)
    own = {key.removeprefix("decoding."): value for key, value in derived.items() if key.startswith("decoding.")}
    values |= {key: value for key, value in derived.items() if not key.startswith("decoding.")}
    values |= {
        **adapter.constants,
        "decoding": {**adapter.decoding, **own, **({} if block is None else {"block_length": block})},
    }
    assumed = {name: value for name, value in adapter.defaults.items() if name not in values}
    assumed |= {name: value for name, value in _derived(values).items() if name not in {**values, **assumed}}
    return Described(
        file=file, family=adapter.family, values=_nested({**assumed, **values}), assumed=frozenset(assumed), ends=tuple(ends),
        keys={name: keys[0] for name, keys in adapter.keys.items()},
    )  # fmt: skip


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field, those whose name has a dot in a mapping of their field."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        field_name, _, inner = name.partition(".")
        if inner:
            found.setdefault(field_name, {})[inner] = value
        else:
            found[name] = value
    return found


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


def model_of(folder: Path) -> ModelSpec:
    """The model of a folder whose config.json says all of it.

    Raises:
        TripathError: as `read_folder`.
    """
    values = read_folder(str(folder), {})
    kinds = {"decoding": Decoding, "rope_scaling": Scaling, "experts": Experts, "full_layers": FullLayers}
    return ModelSpec(
        **{name: kinds[name](**value) if isinstance(value, dict) else value for name, value in values.items()}
    )


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
    """The metadata of a llama.cpp file as a configuration."""
    held = gguf_files.contents(file, subject)
    values = {key: value for key, value in held.values.items() if not key.startswith(IGNORED_GGUF)}
    kept = {key for keys in GGUF_ADAPTER.keys.values() for key in keys} | {"general.architecture"}
    values |= {key: held.values[key] for key in kept if key in held.values}
    values[f"{LLAMA}tied"] = GGUF.name_of("ff_out.weight") not in held.tensors
    config = _Config(file=file, subject=subject, values=values)
    widths = [f"{LLAMA}attention.key_length", f"{LLAMA}attention.value_length", f"{LLAMA}rope.dimension_count"]
    for key in widths:
        if values.get(key) not in (None, config.first(widths)):
            config.refuse(key, f"differs from the width of a head, {config.first(widths)}")
    return config


def _flat(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the angles with a dot, of each kind of layers with two; those of a language model inside of another as its own."""
    flat: dict[str, Any] = {}
    for key, value in whole.items():
        if key == _TEXT and isinstance(value, dict):
            inner = _flat(value)
            flat = {**inner, **flat, f"{_TEXT}.model_type": inner.get("model_type")}
        elif key in _ROPE and isinstance(value, dict):
            for name, each in value.items():
                inside = {f".{inner}": own for inner, own in each.items()} if isinstance(each, dict) else {"": each}
                flat |= {f"{key}.{name}{inner}": own for inner, own in inside.items()}
        else:
            flat[key] = value
    return flat


def _adapter(config: _Config) -> Adapter:
    """The row of a configuration.

    Raises:
        TripathError: there is none, or its weights are in a layout that is not read.
    """
    kind = config.values.get("model_type")
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
    fitting = [row for row in rows if all(_listed(config.values.get(k)) & set(v) for k, v in row.when.items())]
    if not fitting:
        config.refuse("architectures", f"is none that a model_type of {kind} has")
    return fitting[0]


def _listed(value: object) -> set[object]:
    """A value, or those of a list."""
    return {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, Hashable)}


def _check(config: _Config, adapter: Adapter) -> None:
    """Refuse keys that the row does not name, and values that it does not understand."""
    only = {**adapter.only, **dict.fromkeys(_ROPE, ()), "quantization_config": ()}
    known = {key for keys in adapter.keys.values() for key in keys} | only.keys() | adapter.ignored | EVERYWHERE
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
                and key not in adapter.only
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


def _derived_by(adapter: Adapter, config: _Config) -> Mapping[str, Any]:
    """The fields that the row derives from several keys, of generation_config.json too."""
    if adapter.derive is None:
        return {}
    beside = config.file.with_name(GENERATION)
    try:
        return adapter.derive(config.values, _read(beside, config.subject) if beside.is_file() else {})
    except KeyError as error:
        config.refuse(error.args[0])


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
