"""Classifiers that normalise after the pooling (`fc_norm`): read, written, refused."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from support.format_files import (
    GOLDENS,
    apply,
    assert_close,
    inputs,
    outputs,
    tensors_of,
    timm_folder,
)
from support.hf_folders import assert_same

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.formats import table as formats

# File -> (what must be told, format that writes it, what is then written).
POOLED = {
    "timm_pooled": ({}, "timm", "a"),
    "facebook_pooled.pth": (dict(heads=2), "facebook_mae", "a.safetensors"),
}
FACEBOOK = GOLDENS / "facebook_pooled.pth"
HEADS = dict(heads=2)
KEY = dict(key=jax.random.key(0))


@pytest.fixture(scope="module", params=POOLED)
def name(request):
    return request.param


def test_a_norm_after_the_pooling_gives_the_logits_of_its_library(name):
    known = POOLED[name][0]
    model, params, report = weights.from_pretrained(
        GOLDENS / name, "classify", known=known
    )
    assert model.pooling == "mean_norm"
    expected = outputs(name)
    assert_close(apply(model, params, inputs.images(), None), expected["logits"])
    assert report.renamed["fc_norm.weight"] == "encoder/norm/scale"
    assert not report.ignored
    # What they call features has not been normalised.
    states = apply(model, params, inputs.images(), None, method="encode")
    assert_close(states[-2], expected["states"])


def test_the_embedding_of_the_encoder_is_what_the_head_stands_on(name):
    path, known = GOLDENS / name, POOLED[name][0]
    how = dict(pooling="mean_norm", known=known)
    model, params, report = weights.from_pretrained(path, "encoder", **how)
    assert set(report.ignored.values()) == {"head dropped for task encoder"}
    x_BD = np.asarray(
        apply(model, params, inputs.images(), "mean_norm", method="embed")
    )
    _, loaded, _ = weights.load(path, "classify", pooling=None, known=known)
    logits = x_BD @ loaded["head"]["kernel"] + loaded["head"]["bias"]
    assert_close(logits, outputs(name)["logits"])


@pytest.mark.parametrize("target", ["timm", "facebook_mae", "huggingface"])
def test_theirs_ours_theirs_is_bit_identical(tmp_path, name, target):
    """And by way of a third format, which must keep the pooling."""
    _, source, file = POOLED[name]
    beside = dict(preprocessor=None, tokenizer=None, class_names=None)
    between = "b.safetensors" if target == "facebook_mae" else "b"
    path = GOLDENS / name
    for format, written in ((target, between), (source, file)):
        known = HEADS if path.is_file() else {}
        assert formats.find(path, None).pooling(path, {}) == "mean_norm"
        config, params, _ = weights.load(path, "classify", pooling=None, known=known)
        path = tmp_path / written
        options = dict(pooling="mean_norm", format=format, **beside)
        weights.save(path, config, params, "classify", **options)
    before, after = tensors_of(GOLDENS / name), tensors_of(path)
    assert set(after) == set(before)
    assert_same(after, before)


def test_timm_s_folder_says_that_it_has_the_norm(tmp_path):
    model, params, _ = weights.from_pretrained(GOLDENS / "timm_pooled", "classify")
    weights.save_pretrained(tmp_path / "a", model, params, format="timm")
    theirs = json.loads((tmp_path / "a" / "config.json").read_text())
    assert theirs["global_pool"] == "avg"
    assert theirs["model_args"]["fc_norm"] is True


@pytest.mark.parametrize("task", ["encoder", "mae", "classify"])
def test_with_another_pooling_the_norm_does_not_fit_and_the_error_says_which_does(task):
    fresh = dict(fresh=("decoder",), **KEY) if task == "mae" else {}
    with pytest.raises(UserError, match="pooling='mean_norm'") as error:
        weights.from_pretrained(FACEBOOK, task, known=HEADS, pooling="cls", **fresh)
    text = str(error.value)
    assert "missing in the source: encoder/norm/bias, encoder/norm/scale" in text
    assert ("in the source: head/fc_norm/bias" in text) == (task == "classify")
    assert "\n" not in text


def test_a_new_head_and_norm_may_stand_on_another_pooling():
    fresh = dict(fresh=("head", "encoder/norm"), num_classes=5, **KEY)
    model, params, report = weights.from_pretrained(
        FACEBOOK, "classify", known=HEADS, pooling="cls", **fresh
    )
    assert model.pooling == "cls"
    assert params["head"]["bias"].shape == (5,)
    np.testing.assert_array_equal(params["encoder"]["norm"]["scale"], 1)
    assert report.ignored["head/fc_norm/scale"] == "named fresh"


@pytest.mark.parametrize("name", ["facebook_pooled.pth", "facebook_encoder.pth"])
def test_fine_tuning_begins_with_the_norm_of_the_file_and_a_new_head(name):
    """As Facebook does, whose pre-trained files have `norm` and no head."""
    model, params, report = weights.from_pretrained(
        GOLDENS / name, "classify", known=HEADS, pooling="mean_norm", fresh=("head",),
        num_classes=5, **KEY,
    )  # fmt: skip
    assert model.pooling == "mean_norm"
    norm = "fc_norm" if "pooled" in name else "norm"
    scale = tensors_of(GOLDENS / name)[f"{norm}.weight"]
    np.testing.assert_array_equal(params["encoder"]["norm"]["scale"], scale)
    assert set(report.fresh) == {"head/bias", "head/kernel"}


def test_a_norm_after_taking_cls_is_that_of_all_states(tmp_path):
    """timm's global_pool="token" with fc_norm."""
    folder = timm_folder(tmp_path, fc_norm=True)
    tensors = {
        f"fc_{name}" if name.startswith("norm.") else name: tensor
        for name, tensor in tensors_of(folder).items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    model, params, _ = weights.from_pretrained(folder, "classify")
    assert model.pooling == "cls"
    assert_close(
        apply(model, params, inputs.images(), None), outputs("timm_token")["logits"]
    )


def test_two_last_norms_are_refused(tmp_path):
    tensors = tensors_of(FACEBOOK)
    tensors |= {f"norm.{k}": tensors[f"fc_norm.{k}"] for k in ("weight", "bias")}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is encoder/norm/bias, but so is another"):
        weights.load(tmp_path / "a.safetensors", "classify", pooling=None, known=HEADS)


def test_big_vision_has_no_such_classifier(tmp_path):
    model, params, _ = weights.from_pretrained(GOLDENS / "timm_pooled", "classify")
    config = weights.model_config(GOLDENS / "timm_pooled") | dict(gelu="tanh")
    options = dict(preprocessor=None, tokenizer=None, class_names=None)
    with pytest.raises(
        UserError, match="no model with pooling 'mean_norm', only with cls"
    ):
        weights.save(
            tmp_path / "a.npz", config, params, "classify", format="big_vision",
            pooling=model.pooling, **options,
        )  # fmt: skip
