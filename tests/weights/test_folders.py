"""Model folders: sharded, broken or hostile ones are read safely; written whole."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from support.hf_folders import (
    QUERY,
    assert_same,
    build,
    random_params,
    rewrite,
    tensors_of,
)

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import writing


@pytest.fixture
def model():
    return build("mae")


@pytest.fixture
def params(model):
    return random_params(model)


@pytest.fixture
def folder(tmp_path, model, params):
    weights.save_pretrained(tmp_path / "model", model, params)
    return tmp_path / "model"


def shard(folder):
    """Splits model.safetensors in two shards with an index, as transformers does."""
    tensors = tensors_of(folder)
    halves = {
        "model-00001-of-00002.safetensors": {},
        "model-00002-of-00002.safetensors": {},
    }
    for number, (name, tensor) in enumerate(tensors.items()):
        list(halves.values())[number % 2][name] = tensor
    for file, half in halves.items():
        safetensors.numpy.save_file(half, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, half in halves.items() for name in half}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards_hold_the_same_model(folder, params):
    shard(folder)
    _, loaded, _ = weights.from_pretrained(folder, "mae")
    assert_same(loaded, params)


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing: model-00002-of-00002\.safetensors"):
        weights.load(folder, "mae", pooling=None)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "..\\m.safetensors",
        "m.bin",
        "..",
    ],
)
def test_an_index_cannot_point_out_of_its_folder(folder, name):
    weight_map = shard(folder)
    write_index(folder, weight_map | {QUERY: name})
    rewrite(folder.parent, {QUERY: np.zeros((8, 8), np.float32)})  # it would be found
    with pytest.raises(UserError, match="is not the name of a shard"):
        weights.load(folder, "mae", pooling=None)


def test_an_index_that_disagrees_with_its_shards_is_an_error(folder):
    weight_map = shard(folder)
    del weight_map[QUERY]
    write_index(folder, weight_map)
    with pytest.raises(UserError, match=f"disagrees with the shards on {QUERY}"):
        weights.load(folder, "mae", pooling=None)


@pytest.mark.parametrize("keep", [0, 20, -3])
def test_a_broken_file_is_one_line(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a readable safetensors file") as error:
        weights.load(folder, "mae", pooling=None)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_or_config_is_one_line(tmp_path, folder):
    with pytest.raises(UserError, match=r"no config\.json"):
        weights.model_config(tmp_path / "nothing")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is neither model\.safetensors"):
        weights.load(folder, "mae", pooling=None)


def test_parameters_that_do_not_fit_the_config_are_not_written(tmp_path, model, params):
    del params["encoder"]["norm"]["bias"]
    with pytest.raises(UserError, match="encoder/norm/bias"):
        weights.save_pretrained(tmp_path / "a", model, params)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_previous_export_whole(
    folder, model, params, monkeypatch
):
    before = (folder / "model.safetensors").read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(writing, "save_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        weights.save_pretrained(folder, model, jax.tree.map(np.zeros_like, params))
    assert (folder / "model.safetensors").read_bytes() == before
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


def test_saving_replaces_an_export_but_no_other_folder(folder, model, params):
    zeros = jax.tree.map(np.zeros_like, params)
    weights.save_pretrained(folder, model, zeros, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert not np.any(tensors_of(folder)[QUERY])
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    assert preprocessor["image_mean"] == [0.5] * 3
    assert [file.name for file in folder.parent.iterdir()] == ["model"]
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        weights.save_pretrained(folder, model, params)
    assert (folder / "thesis.tex").exists()
