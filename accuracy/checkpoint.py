"""Checkpoints in the Hugging Face layout of LLaDA: config.json, safetensors (one file or shards with an index), tokenizer.

Read without pickle. Errors name the tensor and the file.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from tokenizers import Tokenizer

from tripath.errors import TripathError
from tripath.model import ModelSpec

PREFIX = "model.transformer."
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a LLaDA checkpoint, by name."""
    hidden, ffn = spec.hidden, spec.ffn
    shapes: dict[str, tuple[int, ...]] = {
        f"{PREFIX}wte.weight": (spec.vocab, hidden), f"{PREFIX}ln_f.weight": (hidden,),
        f"{PREFIX}ff_out.weight": (spec.vocab, hidden),
    }  # fmt: skip
    for layer in range(spec.layers):
        for name, shape in (
            ("attn_norm", (hidden,)), ("q_proj", (spec.query_width, hidden)), ("k_proj", (spec.kv_width, hidden)),
            ("v_proj", (spec.kv_width, hidden)), ("attn_out", (hidden, spec.query_width)), ("ff_norm", (hidden,)),
            ("ff_proj", (ffn, hidden)), ("up_proj", (ffn, hidden)), ("ff_out", (hidden, ffn)),
        ):  # fmt: skip
            shapes[f"{PREFIX}blocks.{layer}.{name}.weight"] = shape
    return shapes


def load_tensors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """All tensors of the model's checkpoint as float32, by LLaDA's names.

    Raises:
        TripathError: a file or tensor is missing, unreadable, or of another shape than the model says.
    """
    folder = _folder(spec.checkpoint)
    found = {}
    for file in _shards(folder):
        found |= dict(_read(file))
    shapes = expected_shapes(spec)
    for name, shape in shapes.items():
        if name not in found:
            raise TripathError(f"model.checkpoint: tensor {name} is missing in {folder}")
        if found[name].shape != shape:
            raise TripathError(
                f"model.checkpoint: tensor {name} has shape {found[name].shape}, the model says {shape} ({folder})"
            )
    return {name: found[name] for name in shapes}


def load_tokenizer(folder: str) -> "TextTokenizer":
    """Tokenizer of a checkpoint folder.

    Raises:
        TripathError: the folder or its tokenizer.json is missing or unreadable.
    """
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
    return folder


def _shards(folder: Path) -> list[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (KeyError, ValueError):
            raise TripathError(f"model.checkpoint: malformed {index}") from None
        files = [folder / name for name in names]
    else:
        files = [single]
    for file in files:
        if not file.exists():
            raise TripathError(f"model.checkpoint: {file.name} is missing in {folder}")
    return files


def _read(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        entries = deserialize(file.read_bytes())
    except SafetensorError as error:
        raise TripathError(f"model.checkpoint: unreadable {file} ({error})") from None
    for name, entry in entries:
        if entry["dtype"] not in _TYPES:
            raise TripathError(
                f"model.checkpoint: tensor {name} has type {entry['dtype']}, not F32, F16 or BF16 ({file})"
            )
        raw = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            yield name, (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            yield name, raw.astype(np.float32)
