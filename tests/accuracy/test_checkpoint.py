"""Checkpoints: shards equal one file, BF16 widens exactly, and whatever is wrong is one line that names tensor and file."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from accuracy.checkpoint import expected_shapes, load_tensors, load_tokenizer
from tests.conftest import CHECKPOINT
from tripath.errors import TripathError

LAST = "model.transformer.ff_out.weight"


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(CHECKPOINT / name, tmp_path)
    return tmp_path


def model_in(default_experiment, folder):
    return dataclasses.replace(default_experiment.model, checkpoint=str(folder))


def test_shards_with_an_index_equal_one_file(default_experiment, folder, tensors):
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_tensors(model_in(default_experiment, folder))
    assert loaded.keys() == tensors.keys()
    for name in names:
        np.testing.assert_array_equal(loaded[name], tensors[name])


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16])
def test_narrow_types_widen_exactly(default_experiment, folder, tensors, kind):
    narrow = {name: value.astype(kind) for name, value in tensors.items()}
    save_file(narrow, folder / "model.safetensors")
    loaded = load_tensors(model_in(default_experiment, folder))
    np.testing.assert_array_equal(loaded[LAST], narrow[LAST].astype(np.float32))


def write(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, t: None, r"model\.safetensors is missing"),
        (lambda f, t: write(f, {k: v for k, v in t.items() if k != LAST}), rf"tensor {LAST} is missing in"),
        (
            lambda f, t: write(f, {**t, LAST: t[LAST][:-1]}),
            rf"tensor {LAST} has shape \(511, 128\), the model says \(512, 128\)",
        ),
        (lambda f, t: write(f, {**t, LAST: t[LAST].astype(np.int8)}), rf"tensor {LAST} has type I8"),
        (lambda f, t: (f / "model.safetensors").write_bytes(b"\xff" * 40), r"unreadable .*model\.safetensors"),
        (lambda f, t: (f / "model.safetensors.index.json").write_text("{}"), r"malformed .*index\.json"),
    ],
)
def test_damage_is_named(default_experiment, folder, tensors, damage, message):
    damage(folder, tensors)
    with pytest.raises(TripathError, match=message) as caught:
        load_tensors(model_in(default_experiment, folder))
    assert "\n" not in str(caught.value)


def test_a_missing_folder_or_tokenizer_is_named(folder):
    with pytest.raises(TripathError, match="no such folder"):
        load_tokenizer(str(folder / "nowhere"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TripathError, match="unreadable"):
        load_tokenizer(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TripathError, match=r"no tokenizer\.json"):
        load_tokenizer(str(folder))


def test_the_names_are_those_of_llada(default_experiment, tensors):
    assert set(expected_shapes(default_experiment.model)) == set(tensors)
