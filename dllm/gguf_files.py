"""Files of llama.cpp (GGUF): metadata, where each tensor lies, tensors as float32, and the tokenizer in the metadata.

The package `gguf` reads and de-quantises; it is an extra, asked for where a file needs it. Facts of the format that the package
does not hold are llama.cpp's: rows of Q and K are permuted, and a head that is absent is the embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from npu.errors import NotInstalledError, TripathError

SUFFIX = ".gguf"
_TOKENS = "tokenizer.ggml."
_PIECE = 1
"""A token that is a piece of text; all others are matched whole (`llama_token_type`)."""

_CUTS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}  # fmt: skip
"""Pre-tokenizers, which cut text into words before pieces are merged, by `tokenizer.ggml.pre`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor of a file: its type by llama.cpp's name, its shape (rows first), its first byte and its bytes."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The contents of a file before its tensors' data: keys and values of its metadata, and the location of each tensor."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def find(place: Path, subject: str) -> Path | None:
    """The file, where `place` is one or is a folder that holds one and no config.json; None: there is none.

    Raises:
        TripathError: the folder holds several.
    """
    if place.suffix == SUFFIX and place.is_file():
        return place
    files = [] if not place.is_dir() or (place / "config.json").exists() else sorted(place.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise TripathError(f"{subject}: {place} holds {len(files)} files of llama.cpp, name one of them: {files[0]}")
    return files[0] if files else None


def contents(file: Path, subject: str) -> Contents:
    """The contents of a file before its tensors' data; `subject` is the key of the configuration that an error names.

    Raises:
        NotInstalledError: the package gguf is missing.
        TripathError: the file is unreadable.
    """
    state = file.stat()
    return _contents(file, subject, (state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=4)
def _contents(file: Path, subject: str, _: tuple[int, int]) -> Contents:
    library = _library(file, subject)
    try:
        reader: Any = library.GGUFReader(file)
        values = {key: _plain(field.contents()) for key, field in reader.fields.items()}
        tensors = {
            each.name: Stored(kind=each.tensor_type.name, shape=tuple(int(size) for size in reversed(each.shape)),
                              offset=int(each.data_offset), size_bytes=int(each.n_bytes))
            for each in reader.tensors
        }  # fmt: skip
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise TripathError(f"{subject}: unreadable {file} ({(str(error).splitlines() or ['cut short'])[0]})") from None
    return Contents(values=values, tensors=tensors)


def _library(file: Path, subject: str) -> ModuleType:
    if find_spec("gguf") is None:
        raise NotInstalledError(
            f"{subject}: {file} needs gguf, which is not installed; pip install 'tripath[pretrained]'"
        )
    return import_module("gguf")


def _plain(value: object) -> object:
    """A number of the metadata as the shortest one that rounds to it: files keep float32."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def widen(kind: str, raw: np.ndarray, shape: tuple[int, ...], file: Path, subject: str) -> np.ndarray:
    """The bytes of a tensor as float32.

    Raises:
        TripathError: its type is unknown.
    """
    library = _library(file, subject)
    try:
        found = library.quants.dequantize(_rows(library, kind, raw, shape), library.GGMLQuantizationType[kind])
    except (NotImplementedError, KeyError):
        raise TripathError(f"{subject}: tensors of type {kind} are not read ({file})") from None
    return np.asarray(found, np.float32).reshape(shape)


def _rows(library: ModuleType, kind: str, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as the library takes them: rows of bytes, but for what NumPy has a type for."""
    plain = {"F32": np.float32, "F16": np.float16}
    if kind in plain:
        return raw.view(plain[kind])
    bytes_of_row = library.quants.quant_shape_to_byte_shape(shape, library.GGMLQuantizationType[kind])
    return raw.reshape(bytes_of_row)


def half_rotation(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K, in whose heads channels 2j and 2j + 1 turn together, so that j and j + head_dim / 2 do.

    The inverse of what llama.cpp's conversion does (`LlamaModel.permute`).
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tokenizer(file: Path, subject: str) -> Tokenizer:
    """The tokenizer of a file's metadata: byte pairs, as GPT-2 has them.

    Raises:
        TripathError: it is of another kind.
    """
    values = contents(file, subject).values
    kind, cut = values.get(f"{_TOKENS}model"), values.get(f"{_TOKENS}pre", "gpt-2")
    if kind != "gpt2" or cut not in _CUTS:
        raise TripathError(f"{subject}: a tokenizer of model {kind} with pre {cut} is not understood ({file})")
    texts, kinds, merges = (values[f"{_TOKENS}{key}"] for key in ("tokens", "token_type", "merges"))
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    made = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(texts)}, merges=pairs))
    made.pre_tokenizer, made.decoder = _CUTS[cut](), decoders.ByteLevel()
    made.add_special_tokens([text for text, kind in zip(texts, kinds, strict=True) if kind != _PIECE])
    return made
