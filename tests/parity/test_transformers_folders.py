"""Folders go to transformers and come back: run where torch and transformers are."""

import json

import inputs
import numpy as np
import pytest

from flax_adapt import weights

pytestmark = pytest.mark.parity

KINDS = {
    "ViTMAEForPreTraining": "mae",
    "ViTMAEModel": "encoder",
    "ViTModel": "encoder",
    "ViTForImageClassification": "classify",
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs torch and transformers")


def make(transformers, kind, name):
    """A transformers model with parameters from `inputs`."""
    torch = pytest.importorskip("torch")
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**inputs.hugging_face_config(name), num_labels=5)
    model = model_class(config)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(torch.from_numpy(inputs.tensor(key, value.shape, 0)))
    return model


def as_numpy(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", sorted(inputs.SHAPES))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_size", ["5GB", "30KB"])
def test_transformers_ours_transformers_is_bit_identical(
    tmp_path, transformers, kind, name, shard_size
):
    theirs = make(transformers, kind, name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (shard_size == "5GB")

    task = KINDS[kind]
    config, params, report = weights.load(tmp_path / "theirs", task, pooling="cls")
    assert not report.ignored
    others = dict(preprocessor=None, tokenizer=None, class_names=None)
    weights.save(tmp_path / "ours", config, params, task, pooling="cls", **others)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [kind]
    again, info = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    expected, found = as_numpy(theirs), as_numpy(again)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    for field, value in inputs.hugging_face_config(name).items():
        if field in written and field != "hidden_act":
            assert getattr(again.config, field) == value
