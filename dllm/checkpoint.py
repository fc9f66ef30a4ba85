"""Checkpoints in the Hugging Face layout: config.json, safetensors (one file or shards with an index), tokenizer.

The tensors that the operators of a model name are read, by the names of the checkpoint's family (`dllm.families`). Headers are
checked first, then tensors are read one by one, without pickle. Errors name the tensor and the file.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from dllm.families import DERIVED, FAMILIES, LLADA, SWITCHES, Family, expected_shapes, tensor_name
from dllm.model import ModelSpec
from dllm.operators import Part
from npu.errors import TripathError

SYNTHETIC = "synthetic"
"""The checkpoint that is no folder."""
KEPT_BYTES = 6 << 30
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
LFS_POINTER = b"version https://git-lfs"
PACKED = (".qweight", ".qzeros", ".g_idx")
_INDEX = "model.safetensors.index.json"

_CONFIG_KEYS = {
    "heads": ("n_heads", "num_attention_heads"), "kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "rope_theta": ("rope_theta",), "rms_eps": ("rms_norm_eps",), "mask_id": ("mask_token_id",),
}  # fmt: skip
"""What no tensor's shape tells, by its names in config.json."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a tensor lies: its name there, type and shape by the header, first byte."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by our names, checked but not read; `open_checkpoint` makes it."""

    places: Mapping[str, _Place]

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor as float32, read when it is asked for."""
        place, raw = self._stored(name)
        wide = (raw.astype(np.uint32) << 16).view(np.float32) if place.kind == "BF16" else raw.astype(np.float32)
        if not np.isfinite(wide).all():  # an MX block would hide it
            raise TripathError(f"model.checkpoint: tensor {place.name} has a value that is not finite ({place.file})")
        return wide.reshape(place.shape)

    def _stored(self, name: str) -> tuple[_Place, np.ndarray]:
        place = self.places[name]
        return place, np.fromfile(place.file, _TYPES[place.kind], math.prod(place.shape), offset=place.offset)

    def identity(self, name: str) -> str:
        """Digest of a tensor's stored bytes, their type and shape."""
        place, raw = self._stored(name)
        return f"{place.kind}{place.shape}{hashlib.sha256(raw.data).hexdigest()}"

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return iter(self.places)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.places)


@dataclass(frozen=True, kw_only=True)
class Synthetic(Mapping[str, np.ndarray]):
    """Random weights of a model's true shapes, the same on every machine; each is made when it is asked for.

    Matrices are normal with the variance 1 / inputs, so that values keep their size from layer to layer; norms are one.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        shape = self.shapes[name]
        if len(shape) == 1 and name.endswith(".weight"):
            return np.ones(shape, np.float32)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)

    def identity(self, name: str) -> str:
        """What the tensor is made from."""
        return f"{SYNTHETIC}{np.__version__}{name}{self.shapes[name]}"

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.shapes)


def open_checkpoint(spec: ModelSpec) -> Checkpoint:
    """The model's checkpoint, every tensor found in a header and its type and shape checked; nothing else is read.

    Raises:
        TripathError: a file or tensor is missing, unreadable, or of another type or shape than the model says.
    """
    folder = _folder(spec.checkpoint)
    index = folder / _INDEX
    listed = _weight_map(index) if index.exists() else {}
    headers: dict[str, _Place] = {}
    for file in [folder / name for name in sorted(set(listed.values()))] or [folder / "model.safetensors"]:
        if not file.is_file():
            raise TripathError(f"model.checkpoint: {file.name} is missing in {folder}")
        headers |= _header(file)
    family = next((each for each in FAMILIES if any(name.startswith(each.marks) for name in headers)), LLADA)
    _check_config(spec, family, folder / "config.json")
    places, read = {}, set()
    for name, (part, layer) in _stored(spec).items():
        known = family.name_of(part.name, layer)
        if known not in headers:
            raise TripathError(f"model.checkpoint: tensor {known} is missing in {folder / listed.get(known, '')}")
        place = headers[known]
        if place.kind not in _TYPES:
            raise TripathError(
                f"model.checkpoint: tensor {known} has type {place.kind}, not F32, F16 or BF16 ({place.file})"
            )
        if place.shape != part.shape:
            raise TripathError(
                f"model.checkpoint: tensor {known} has shape {place.shape}, the model says {part.shape} ({place.file})"
            )
        places[name] = place
        read.add(known)
    _check_unread(spec, family, headers, read)
    return Checkpoint(places=places)


def _stored(spec: ModelSpec) -> dict[str, tuple[Part, int | None]]:
    """By our name of each tensor: its part, and its layer in the checkpoint."""
    return {
        tensor_name(part.name, layer): (
            part,
            layer if layer is None or spec.only_layers is None else spec.only_layers[layer],
        )
        for stored in spec.network.weights()
        for _, layer in stored.of_layers()
        for part in stored.weight.parts
    }


def _check_unread(spec: ModelSpec, family: Family, headers: Mapping[str, _Place], read: set[str]) -> None:
    """Refuse tensors of the layers that run, or outside of all layers, which no operator reads.

    Raises:
        TripathError: naming the tensor, the file, and the key of the model that would read it, if there is one.
    """
    skipped = tuple(family.layer.format(layer=layer) for layer in _layers_left_out(spec, family, headers))
    for name, place in headers.items():
        if name in read or name.startswith(skipped) or name.endswith(DERIVED):
            continue
        layer = next(
            (n for n in spec.only_layers or range(spec.layers) if name.startswith(family.layer.format(layer=n))), None
        )
        keys = [key for part, key in SWITCHES.items() if layer is not None and name == family.name_of(part, layer)]
        if keys:
            raise TripathError(f"model.{keys[0]}: is false, but {place.file} has tensor {name}")
        raise TripathError(
            f"model.checkpoint: no operator of model {spec.name} reads tensor {name} ({place.file}), so it is another model"
        )


def _layers_left_out(spec: ModelSpec, family: Family, headers: Mapping[str, _Place]) -> list[int]:
    """Layers of a checkpoint that `only_layers` does not run."""
    if spec.only_layers is None:
        return []
    before, _, after = family.layer.partition("{layer}")
    found = {name.removeprefix(before).partition(after)[0] for name in headers if name.startswith(before)}
    return sorted(int(layer) for layer in found if layer.isdecimal() and int(layer) not in spec.only_layers)


def load_tensors(spec: ModelSpec) -> Mapping[str, np.ndarray]:
    """All tensors of a checkpoint as float32, by our names: at hand where they take less than KEPT_BYTES, else read
    again whenever one is asked for.

    Raises:
        TripathError: as `open_checkpoint`.
    """
    shapes = expected_shapes(spec)
    tensors = Synthetic(shapes=shapes) if spec.checkpoint == SYNTHETIC else open_checkpoint(spec)
    kept = 4 * sum(map(math.prod, shapes.values())) <= KEPT_BYTES
    return {name: tensors[name] for name in tensors} if kept else tensors


def load_tokenizer(folder: str) -> "TextTokenizer | None":
    """Tokenizer of a checkpoint folder; None for synthetic weights.

    Raises:
        TripathError: the folder or its tokenizer.json is missing or unreadable.
    """
    if folder == SYNTHETIC:
        return None
    path = _folder(folder) / "tokenizer.json"
    if not path.exists():
        raise TripathError(f"model.checkpoint: no tokenizer.json in {folder}")
    try:
        return TextTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # noqa: BLE001  the library raises bare Exception
        raise TripathError(f"model.checkpoint: unreadable {path} ({str(error).splitlines()[0]})") from None


class TextTokenizer:
    """Text to token ids and back, without special tokens in the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the vocabulary lacks (shown to users: the model cannot see them)."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        unknown = self._tokenizer.token_to_id("[UNK]")
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:stop] for token, (start, stop) in spans if unknown is not None and token == unknown]


def _folder(name: str | None) -> Path:
    if name is None:
        raise TripathError(
            "model.checkpoint: the model has no checkpoint; run without accuracy: paths=[analytical,cycle]"
        )
    folder = Path(name)
    if not folder.is_dir():
        raise TripathError(f"model.checkpoint: no such folder {folder}")
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise TripathError(f"model.checkpoint: {file} is no file")  # a pipe would be waited for
    return folder


def _check_config(spec: ModelSpec, family: Family, file: Path) -> None:
    """Compare with config.json what the tensors do not show; keys that it lacks are not compared."""
    if not file.exists():
        return
    try:
        config = json.loads(file.read_text())
        told = {field: config[key] for field, keys in _CONFIG_KEYS.items() for key in keys if key in config}
    except (TypeError, ValueError, OSError):
        raise TripathError(f"model.checkpoint: malformed {file}") from None
    kind = config.get("model_type")
    if kind is not None and kind not in family.model_types:
        known = ", ".join(each for row in FAMILIES for each in row.model_types)
        raise TripathError(
            f"model.checkpoint: model_type {kind!r} is none that is known with these tensors, {known} ({file})"
        )
    for field, value in told.items():
        if value is not None and value != getattr(spec, field):
            raise TripathError(f"model.{field}: is {getattr(spec, field)}, the checkpoint says {value} ({file})")


def _weight_map(index: Path) -> dict[str, str]:
    """File of each tensor by the index; every file lies beside it."""
    try:
        listed = dict(json.loads(index.read_text())["weight_map"])
    except (KeyError, TypeError, ValueError, OSError):
        raise TripathError(f"model.checkpoint: malformed {index}") from None
    for tensor, name in listed.items():
        if not isinstance(name, str) or name in {"", ".", ".."} or set(name) & {"/", "\\", ":", "\0"}:
            raise TripathError(
                f"model.checkpoint: tensor {tensor} lies in {name!r}, which is no file name beside {index}"
            )
    if not listed:
        raise TripathError(f"model.checkpoint: malformed {index}")
    return listed


def _header(file: Path) -> dict[str, _Place]:
    """Every tensor of a file; safetensors itself checks that offsets, types and sizes are consistent."""
    with file.open("rb") as stream:
        pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        raise TripathError(f"model.checkpoint: {file} is a Git LFS pointer in place of the weights; git lfs pull")
    try:
        with safe_open(file, framework="numpy"), file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise TripathError(f"model.checkpoint: unreadable {file} ({str(error).splitlines()[0]})") from None
    entries.pop("__metadata__", None)
    packed = next((name for name in entries if name.endswith(PACKED)), None)
    if packed is not None:
        raise TripathError(
            f"model.checkpoint: tensor {packed} is packed by GPTQ or AWQ; weights must be F32, F16 or BF16 ({file})"
        )
    return {
        name: _Place(file=file, name=name, kind=entry["dtype"], shape=tuple(entry["shape"]),
                     offset=8 + size + entry["data_offsets"][0])
        for name, entry in entries.items()
    }  # fmt: skip
