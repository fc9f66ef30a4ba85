"""Checkpoints in the Hugging Face layout (config.json, safetensors in one file or shards with an index, tokenizer), or one
file of llama.cpp.

The tensors that the operators of a model name are read, by the names of the checkpoint's family (`dllm.families`). Headers are
checked first, then tensors are read one by one, without pickle. Errors name the tensor and the file.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dllm import gguf_files
from dllm.experts import Experts
from dllm.families import DERIVED, FAMILIES, LLADA, SWITCHES, Family, expected_shapes, tensor_name
from dllm.folder import CONFIG, POINTER, describe, read_small
from dllm.low_rank import Adapter, read_adapter
from dllm.model import FullLayers, ModelSpec
from dllm.rotary import Scaling
from dllm.weights import Part
from npu.errors import TripathError

SYNTHETIC = "synthetic"
"""The checkpoint that is no folder."""
KEPT_BYTES = 6 << 30
PACKED = (".qweight", ".qzeros", ".g_idx")
"""Ends of names of tensors in quantised layouts."""
_INDEX = "model.safetensors.index.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
SUBJECT = "model.checkpoint"
_FREE = ("name", "checkpoint", "only_layers", "decoding")
"""Fields of a ModelSpec of which config.json says nothing, or only what is done where nothing else is asked for."""
_ADAPTED = ("attention_mask", "mask_id", "shifted_logits", "seeded_blocks")
"""Fields that an adapter may have been trained for, whatever the config.json below it says."""


def _wide_e4m3(raw: np.ndarray) -> np.ndarray:
    """E4M3 as float32: bias 7, subnormals, no infinity, NaN where all bits but the sign are set (arXiv:2209.05433)."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    sizes = np.where(exponent, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    table = np.where(codes & 127 == 127, np.nan, np.where(codes & 128, -sizes, sizes)).astype(np.float32)
    return table[raw]


_TYPES: Mapping[str, tuple[np.dtype[Any], Callable[[np.ndarray], np.ndarray]]] = {
    "F32": (np.dtype("<f4"), lambda raw: raw.astype(np.float32)),
    "F16": (np.dtype("<f2"), lambda raw: raw.astype(np.float32)),
    "BF16": (np.dtype("<u2"), lambda raw: (raw.astype(np.uint32) << 16).view(np.float32)),
    "F8_E4M3": (np.dtype("u1"), _wide_e4m3),
    "F8_E5M2": (np.dtype("u1"), lambda raw: (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)),
}
"""By the name of a type in a header: how it is stored, and as float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a tensor lies: its name there, type and shape by the header, first byte, bytes; in files of llama.cpp, the heads
    whose channels turn in pairs of neighbours (0: they do not)."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    heads: int = 0

    def rows(self, first: int, shape: tuple[int, ...]) -> "_Place":
        """Where a part of this shape lies, from the row `first` of the tensor on."""
        if shape == self.shape:
            return self
        row = self.size_bytes // self.shape[0]
        return replace(self, shape=shape, offset=self.offset + first * row, size_bytes=shape[0] * row)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by our names, checked but not read; `open_checkpoint` makes it."""

    places: Mapping[str, _Place]
    adapter: Adapter | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor as float32, read when it is asked for.

        Raises:
            TripathError: one of its values is not finite.
        """
        place, raw = self._stored(name)
        if place.file.suffix == gguf_files.SUFFIX:
            wide = gguf_files.widen(place.kind, raw, place.shape, place.file, SUBJECT)
            wide = gguf_files.half_rotation(wide, place.heads) if place.heads else wide
        else:
            stored, widen = _TYPES[place.kind]
            wide = widen(raw.view(stored)).reshape(place.shape)
        if not np.isfinite(wide).all():
            raise TripathError(f"{SUBJECT}: tensor {place.name} has a value that is not finite ({place.file})")
        return self.adapter.added(name, wide) if self.adapter else wide

    def _stored(self, name: str) -> tuple[_Place, np.ndarray]:
        place = self.places[name]
        return place, np.fromfile(place.file, np.uint8, place.size_bytes, offset=place.offset)

    def identity(self, name: str) -> str:
        """Digest of a tensor's stored bytes, their type and shape, and of what an adapter adds."""
        place, raw = self._stored(name)
        added = self.adapter.identity(name) if self.adapter else ""
        return f"{place.kind}{place.shape}{hashlib.sha256(raw.data).hexdigest()}{added}"

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
        """The facts that determine the tensor: NumPy's version, its name and its shape."""
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
    folder = _place(spec.checkpoint)
    file = gguf_files.find(folder, SUBJECT)
    headers, listed = _headers(folder) if file is None else (_gguf_header(spec, file), {})
    family = next((each for each in FAMILIES if any(name.startswith(each.marks) for name in headers)), LLADA)
    _check_config(spec, family, file or folder / CONFIG)
    places, read = {}, set()
    for known, parts in _stored(spec, family).items():
        if known not in headers:
            raise TripathError(f"model.checkpoint: tensor {known} is missing in {folder / listed.get(known, '')}")
        place = headers[known]
        if file is None and place.kind not in _TYPES:
            raise TripathError(
                f"model.checkpoint: tensor {known} has type {place.kind}, not one of {', '.join(_TYPES)} ({place.file})"
            )
        whole = (sum(part.shape[0] for part in parts.values()), *next(iter(parts.values())).shape[1:])
        if len(place.shape) == 3 and spec.experts is not None and place.shape[0] == spec.experts.count:
            experts, rows, inputs = place.shape
            place = replace(place, shape=(experts * rows, inputs))  # one below the other
        if place.shape != whole:
            raise TripathError(
                f"model.checkpoint: tensor {known} has shape {place.shape}, the model says {whole} ({place.file})"
            )
        first = 0
        for name, part in parts.items():
            places[name] = place.rows(first, part.shape)
            first += part.shape[0]
        read.add(known)
    _check_unread(spec, family, headers, read)
    return Checkpoint(places=places, adapter=read_adapter(Path(spec.adapter), spec) if spec.adapter else None)


_INSTEAD = {
    "pytorch_model.bin": "; pytorch_model.bin is a pickle, which may run code: convert it to safetensors",
    "pytorch_model.bin.index.json": "; pytorch_model-*.bin are pickles, which may run code: convert them to safetensors",
    "adapter_model.safetensors": "; it holds an adapter: name it by model.adapter, and the checkpoint that it adapts here",
}
"""Hints for a folder without safetensors, by a file that it holds."""


def _headers(folder: Path) -> tuple[dict[str, _Place], dict[str, str]]:
    """Every tensor of the safetensors of a folder, and the file of each by the index, if there is one."""
    index = folder / _INDEX
    listed = _weight_map(index) if index.exists() else {}
    headers: dict[str, _Place] = {}
    for file in [folder / name for name in sorted(set(listed.values()))] or [folder / "model.safetensors"]:
        if not file.is_file():
            there = next((said for name, said in _INSTEAD.items() if (folder / name).exists()), "")
            raise TripathError(f"model.checkpoint: {file.name} is missing in {folder}{there}")
        headers |= _header(file)
    return headers, listed


def _gguf_header(spec: ModelSpec, file: Path) -> dict[str, _Place]:
    """Every tensor of a file of llama.cpp."""
    turned = {"attn_q.weight": spec.heads, "attn_k.weight": spec.kv_heads}
    return {
        name: _Place(file=file, name=name, kind=each.kind, shape=each.shape, offset=each.offset, size_bytes=each.size_bytes,
                     heads=turned.get(name.split(".", 2)[-1], 0))
        for name, each in gguf_files.contents(file, SUBJECT).tensors.items()
    }  # fmt: skip


def check_checkpoint(spec: ModelSpec) -> None:
    """Refuse a checkpoint that is not the model, before anything runs; synthetic weights always are.

    Raises:
        TripathError: as `open_checkpoint`.
    """
    if spec.checkpoint != SYNTHETIC:
        open_checkpoint(spec)


def _stored(spec: ModelSpec, family: Family) -> dict[str, dict[str, Part]]:
    """By the family's name of each tensor: the parts of it, one below the other, by ours."""
    found: dict[str, dict[str, Part]] = {}
    for stored in spec.network.weights():
        for _, layer in stored.of_layers():
            there = layer if layer is None or spec.only_layers is None else spec.only_layers[layer]
            for part in stored.weight.parts:
                known = family.name_of(part.name, there)
                found.setdefault(known, {})[tensor_name(part.name, layer)] = part
    return {
        known: dict(sorted(parts.items(), key=lambda each: family.place_in_stack(each[1].name)))
        for known, parts in found.items()
    }


def _check_unread(spec: ModelSpec, family: Family, headers: Mapping[str, _Place], read: set[str]) -> None:
    """Refuse tensors of the layers that run, or outside of all layers, which no operator reads.

    Raises:
        TripathError: naming the tensor, the file, and the key of the model that would read it, if there is one.
    """
    twin = _twin(spec, family, headers)
    left_out = (family.layer.format(layer=layer) for layer in _layers_left_out(spec, family, headers))
    skipped = (*left_out, *family.apart)
    for name, place in headers.items():
        if name in read or name.startswith(skipped) or name.endswith(DERIVED) or name == twin:
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


def _twin(spec: ModelSpec, family: Family, headers: Mapping[str, _Place]) -> str | None:
    """The name of a head that is stored beside the embedding although the two are tied; None: there is none, or it differs."""
    names = family.name_of("ff_out.weight"), family.name_of("wte.weight")
    if not spec.tied_embeddings or not all(name in headers for name in names):
        return None
    both = Checkpoint(places={name: headers[name] for name in names})
    return names[0] if both.identity(names[0]) == both.identity(names[1]) else None


def _layers_left_out(spec: ModelSpec, family: Family, headers: Mapping[str, _Place]) -> list[int]:
    """Layers of a checkpoint that `only_layers` does not run."""
    if spec.only_layers is None:
        return []
    before, _, after = family.layer.partition("{layer}")
    found = {name.removeprefix(before).partition(after)[0] for name in headers if name.startswith(before)}
    return sorted(int(layer) for layer in found if layer.isdecimal() and int(layer) not in spec.only_layers)


def open_tensors(spec: ModelSpec) -> Checkpoint | Synthetic:
    """The tensors of a checkpoint by our names, each read when it is asked for, or of synthetic weights made.

    Raises:
        TripathError: as `open_checkpoint`.
    """
    return Synthetic(shapes=expected_shapes(spec)) if spec.checkpoint == SYNTHETIC else open_checkpoint(spec)


def load_tensors(spec: ModelSpec) -> Mapping[str, np.ndarray]:
    """All tensors of a checkpoint as float32, by our names: at hand where they take less than KEPT_BYTES, else read
    again whenever one is asked for.

    Raises:
        TripathError: as `open_checkpoint`.
    """
    tensors = open_tensors(spec)
    kept = 4 * sum(map(math.prod, expected_shapes(spec).values())) <= KEPT_BYTES
    return {name: tensors[name] for name in tensors} if kept else tensors


def load_tokenizer(folder: str, *, needed: bool = True) -> "TextTokenizer | None":
    """Tokenizer of a checkpoint folder (`tokenizer.json`, or `vocab.json` and `merges.txt`); None for synthetic weights, and
    where a folder has none and none is `needed`.

    Raises:
        TripathError: the folder is missing, or its tokenizer is, or is unreadable.
    """
    if folder == SYNTHETIC:
        return None
    root = _place(folder)
    if file := gguf_files.find(root, SUBJECT):
        return _tokenizer(file, lambda: gguf_files.tokenizer(file, SUBJECT))
    whole, parts = root / "tokenizer.json", (root / _VOCABULARY, root / _MERGES)
    if whole.exists():
        return _tokenizer(whole, lambda: Tokenizer.from_str(read_small(whole, SUBJECT).decode()))
    if all(part.exists() for part in parts):
        return _tokenizer(root / _VOCABULARY, lambda: _byte_level(*parts))
    if not needed:
        return None
    raise TripathError(f"model.checkpoint: no tokenizer.json in {folder}, nor {_VOCABULARY} with {_MERGES}")


def _tokenizer(file: Path, make: Callable[[], Tokenizer]) -> "TextTokenizer":
    try:
        return TextTokenizer(make())
    except TripathError:
        raise
    except Exception as error:  # noqa: BLE001  the library raises bare Exception
        raise TripathError(f"model.checkpoint: unreadable {file} ({str(error).splitlines()[0]})") from None


def _byte_level(vocabulary: Path, merges: Path) -> Tokenizer:
    """The tokenizer of GPT-2 and its descendants, as its two files say; added_tokens.json, where it is there, has the tokens
    that are no pieces of text."""
    known = json.loads(read_small(vocabulary, SUBJECT))
    lines = read_small(merges, SUBJECT).decode().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    made = Tokenizer(models.BPE(vocab=known, merges=cast("list[tuple[str, str]]", pairs)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if (added := vocabulary.with_name("added_tokens.json")).exists():
        texts = sorted(json.loads(read_small(added, SUBJECT)).items(), key=lambda pair: pair[1])
        made.add_special_tokens([text for text, _ in texts])
    return made


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


def _place(name: str | None) -> Path:
    """The folder of a checkpoint, or the file of llama.cpp.

    Raises:
        TripathError: there is none.
    """
    if name is None:
        raise TripathError(
            "model.checkpoint: the model has no checkpoint; run without accuracy: paths=[analytical,cycle]"
        )
    place = Path(name)
    if not place.is_dir() and gguf_files.find(place, SUBJECT) is None:
        raise TripathError(f"model.checkpoint: no such folder {place}")
    for file in place.iterdir() if place.is_dir() else ():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise TripathError(f"model.checkpoint: {file} is no file")  # a pipe would be waited for
    return place


def _check_config(spec: ModelSpec, family: Family, file: Path) -> None:
    """Compare the model with what config.json says of it; fields that none of its keys gives are not compared.

    Raises:
        TripathError: they differ, or as `dllm.folder.describe`.
    """
    if not file.exists():
        return
    told = describe(file, SUBJECT)
    if told.family is not family:
        raise TripathError(
            f"{SUBJECT}: the names of the tensors are {family.name}'s, not those of a {told.family.name} ({file})"
        )
    free = {*told.assumed, *_FREE, *(_ADAPTED if spec.adapter else ())}
    known = {name: value for name, value in told.values.items() if name not in free}
    if spec.only_layers is not None:
        known.pop("layers", None)
    known.pop("other_eos_ids", None)  # which of them end a text is a choice
    if set(spec.end_ids) <= set(told.ends):
        known.pop("eos_id", None)
    if spec.max_sequence <= known.get("max_sequence", 0):  # a shorter context is a choice
        known.pop("max_sequence", None)
    for name, kind in {"rope_scaling": Scaling, "experts": Experts, "full_layers": FullLayers}.items():
        if isinstance(known.get(name), Mapping):
            known[name] = kind(**known[name])
    for field, value in {"rope_scaling": None, "experts": None, **known}.items():
        if value != getattr(spec, field):
            raise TripathError(f"model.{field}: is {getattr(spec, field)}, the checkpoint says {value} ({file})")


def _weight_map(index: Path) -> dict[str, str]:
    """File of each tensor by the index; every file lies beside it."""
    raw = read_small(index, SUBJECT)
    try:
        listed = dict(json.loads(raw)["weight_map"])
    except (KeyError, TypeError, ValueError):
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
        if stream.read(len(POINTER)) == POINTER:
            raise TripathError(f"{SUBJECT}: {file} is a pointer of Git LFS; `git lfs pull` fetches the weights")
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
                     offset=8 + size + entry["data_offsets"][0],
                     size_bytes=entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
    }  # fmt: skip
