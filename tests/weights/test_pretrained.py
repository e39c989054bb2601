"""Weights: strict and exact."""

import json

import jax
import numpy as np
import pytest
from support.hf_folders import (
    CONFIG,
    QUERY,
    assert_same,
    build,
    change_config,
    random_params,
    tensors_of,
)

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.names.vit import VIT


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


@pytest.mark.parametrize(
    ("task", "changes", "kind"),
    [
        ("mae", {}, "ViTMAEForPreTraining"),
        ("encoder", dict(pooler=True), "ViTModel"),
        ("encoder", {}, "ViTModel"),
        ("classify", dict(qkv_bias=False, gelu="tanh"), "ViTForImageClassification"),
    ],
)
def test_what_was_saved_is_loaded_bit_by_bit(tmp_path, task, changes, kind):
    model = build(task, depth=11, **changes)
    params = random_params(model)
    weights.save_pretrained(tmp_path / "a", model, params)
    again, loaded, report = weights.from_pretrained(tmp_path / "a", task)
    assert_same(loaded, params)
    assert again == model
    assert not report.ignored
    assert not report.fresh
    weights.save_pretrained(tmp_path / "b", again, loaded)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["architectures"] == [kind]


def test_an_encoder_with_a_decoder_in_its_config_is_written_as_vit_mae_model(tmp_path):
    config = CONFIG | dict(depth=1)
    params = random_params(build("encoder"))
    others = dict(preprocessor=None, tokenizer=None, class_names=None)
    weights.save(tmp_path / "a", config, params, "encoder", pooling="cls", **others)
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written["architectures"] == ["ViTMAEModel"]
    assert weights.model_config(tmp_path / "a") == config
    assert "encoder.layer.0.layernorm_before.weight" in tensors_of(tmp_path / "a")


def test_a_kernel_is_the_transposed_weight_and_patches_go_row_column_channel(
    folder, params
):
    tensors, encoder = tensors_of(folder), params["encoder"]
    query = encoder["block_00"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(tensors[QUERY], query.T)
    conv = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    assert conv.shape == (8, 3, 4, 4)  # D, channel, row, column
    row, column, channel = 1, 2, 2
    pixel = (row * 4 + column) * 3 + channel
    kernel = encoder["patch_embed"]["kernel"]
    np.testing.assert_array_equal(conv[:, channel, row, column], kernel[pixel])


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        (QUERY, "encoder/block_00/attention/query/kernel"),
        ("encoder.layer.10.output.dense.bias", "encoder/block_10/mlp/down/bias"),
        ("vit.layers.3.attention.o_proj.bias", "encoder/block_03/attention/out/bias"),
        ("layers.3.mlp.fc1.weight", "encoder/block_03/mlp/up/kernel"),
        (
            "decoder.decoder_layers.0.attention.output.dense.weight",
            "decoder/block_00/attention/out/kernel",
        ),
        (
            "decoder.decoder_encoder.layer.0.layernorm_after.weight",
            "decoder/block_00/norm2/scale",
        ),
        ("vit.encoder.layer.0.attention.attention.query.gamma", None),
        ("xvit.layernorm.weight", None),
    ],
)
def test_all_spellings_of_transformers_are_understood(name, leaf):
    assert VIT.leaf_of(name) == leaf


def test_every_leaf_has_a_name_and_the_name_leads_back():
    leaves = strict.flatten(random_params(build("mae", depth=11)))
    leaves |= strict.flatten(random_params(build("classify")))
    leaves |= strict.flatten(random_params(build("encoder", pooler=True)))
    found = {leaf: VIT.leaf_of(VIT.name_of(leaf)) for leaf in leaves}
    assert found == {leaf: leaf for leaf in leaves}
    assert len({VIT.name_of(leaf) for leaf in leaves}) == len(leaves)


def test_what_a_task_has_no_place_for_is_ignored_by_a_named_rule(folder):
    _, loaded, report = weights.load(folder, "classify", pooling=None)
    assert set(loaded) == {"encoder"}
    assert set(report.ignored.values()) == {"decoder dropped for task classify"}
    assert all(name.startswith("decoder.") for name in report.ignored)
    assert "decoder dropped for task classify" in report.table()
    json.dumps(report.to_json())


def test_a_head_is_fresh_only_if_named(folder):
    with pytest.raises(
        UserError, match="missing in the source: head/bias, head/kernel"
    ):
        weights.from_pretrained(folder, "classify", num_classes=5)
    with pytest.raises(UserError, match="needs a key"):
        weights.from_pretrained(folder, "classify", num_classes=5, fresh=("head",))
    _, params, report = weights.from_pretrained(
        folder, "classify", num_classes=5, fresh=("head",), key=jax.random.key(0)
    )
    assert report.fresh == ("head/bias", "head/kernel")
    assert params["head"]["kernel"].shape == (8, 5)
    assert np.any(params["head"]["kernel"])
    assert "2 fresh" in report.summary()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (dict(hidden_act="relu"), "hidden_act='relu'"),
        (dict(model_type="swin"), "model_type='swin'"),
        (dict(image_size=[8, 16]), "only squares"),
        (dict(hidden_size="8"), "hidden_size"),
        (dict(patch_size=0), "patch_size"),
    ],
)
def test_a_config_we_cannot_build_names_the_field(folder, fields, text):
    change_config(folder, **fields)
    with pytest.raises(UserError, match=text):
        weights.model_config(folder)


def test_model_config_reads_what_was_saved_and_the_spellings_of_gelu(folder):
    assert weights.model_config(folder) == CONFIG | dict(depth=1)
    change_config(folder, hidden_act="gelu_new", image_size=[8, 8])
    config = weights.model_config(folder)
    assert config["gelu"] == "tanh"
    assert config["image_size"] == 8


def test_pooling_by_mean_survives_the_folder(tmp_path):
    model = models.Classifier(*vars_of(build("classify")), "mean", 5, None, False)
    weights.save_pretrained(tmp_path / "a", model, random_params(model))
    assert weights.from_pretrained(tmp_path / "a", "classify")[0].pooling == "mean"


def vars_of(model):
    return model.config, model.dtype, model.dropout, model.drop_path
