"""Files of timm, Facebook and big_vision: found, read, or refused by name."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from support import torch_files
from support.format_files import (
    CLASSIFIERS,
    FILES,
    GOLDENS,
    ONE,
    apply,
    assert_close,
    inputs,
    outputs,
    tensors_of,
    timm_folder,
)
from support.hf_folders import assert_same

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.formats import table as formats


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_libraries_give_their_states(name):
    source, known = FILES[name]
    path = GOLDENS / name
    assert formats.detect(path) == source
    model, params, report = weights.from_pretrained(path, "encoder", known=known)
    states = apply(model, params, inputs.images(), None, method="encode")
    assert_close(states[-1], outputs(name)["states"])
    found = weights.model_config(path, known=known)
    assert {field: found[field] for field in inputs.SIZES} == inputs.SIZES
    assert found["layer_norm_eps"] == 1e-6  # too small to be seen in the states
    assert not report.fresh
    assert not set(report.ignored.values()) - {
        f"{part} dropped for task encoder" for part in ("head", "decoder")
    }


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_other_libraries_give_their_logits(name):
    model, params, report = weights.from_pretrained(
        GOLDENS / name, "classify", known=FILES[name][1]
    )
    assert model.pooling == ("mean" if name == "timm_avg" else "cls")
    logits = apply(model, params, inputs.images(), None)
    assert_close(logits, outputs(name)["logits"])
    assert not report.ignored


def test_facebook_s_file_with_the_decoder_gives_its_prediction():
    path = GOLDENS / "facebook_full.pth"
    model, params, report = weights.from_pretrained(path, "mae", known=inputs.KNOWN)
    arguments = inputs.images(), inputs.noise(), None, inputs.HIDDEN_RATIO
    prediction, hidden = apply(model, params, *arguments)
    expected = outputs("facebook_full")
    np.testing.assert_array_equal(hidden, expected["mask"] == 1)
    assert_close(prediction, expected["prediction"])
    assert not report.ignored
    assert "blocks.0.attn.qkv.weight" in report.renamed
    _, loaded, report = weights.load(path, "classify", pooling=None, known=inputs.KNOWN)
    assert set(loaded) == {"encoder"}
    assert set(report.ignored.values()) == {"decoder dropped for task classify"}


def test_the_encoder_alone_is_no_start_for_further_pre_training():
    path, known = GOLDENS / "facebook_encoder.pth", dict(heads=2)
    config, loaded, _ = weights.load(path, "mae", pooling=None, known=known)
    assert config["decoder"] is None
    assert set(loaded) == {"encoder"}
    _, same, _ = weights.load(
        path, "mae", pooling=None, known=known, format="facebook_mae"
    )
    assert_same(loaded, same)


def test_heads_that_weights_do_not_tell_must_be_given():
    with pytest.raises(UserError, match=r"give known=\{'heads': NUMBER\}"):
        weights.model_config(GOLDENS / "deit.pth")
    with pytest.raises(UserError, match=r"give known=\{'decoder_heads': NUMBER\}"):
        weights.model_config(GOLDENS / "facebook_full.pth", known=dict(heads=2))
    for known in (dict(heads=0), dict(heads="4"), dict(gelu="relu"), dict(depth=2)):
        with pytest.raises(UserError, match=r"known"):
            weights.model_config(GOLDENS / "deit.pth", known=known)
    with pytest.raises(UserError, match="'heads' cannot be given here"):
        weights.model_config(GOLDENS / "big_vision.npz", known=dict(heads=2))


# deit3_medium_patch16_224
PUBLISHED = {**models.SIZES, "M": dict(width=512, depth=12, heads=8, mlp_dim=2048)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_heads_of_published_sizes_are_known(tmp_path, size):
    sizes = PUBLISHED[size]
    width, depth, mlp_dim = sizes["width"], sizes["depth"], sizes["mlp_dim"]
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.mlp.fc1.weight": (mlp_dim, width),
        **{f"blocks.{n}.norm1.weight": (width,) for n in range(depth)},
    }
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    config = weights.model_config(tmp_path / "a.safetensors")
    assert {field: config[field] for field in sizes} == sizes
    assert config["image_size"] == 32


def timm_file(path, **tensors):
    """The stored DeiT with other tensors; None takes one away."""
    found = tensors_of(GOLDENS / "deit.pth") | {
        name.replace("__", "."): value for name, value in tensors.items()
    }
    found = {name: value for name, value in found.items() if value is not None}
    safetensors.numpy.save_file(found, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (dict(blocks__0__gamma_1=ONE), r"LayerScale of BEiT \(blocks\.0\.gamma_1\)"),
        (dict(blocks__1__attn__q_norm__weight=ONE), "qk-norm"),
        (dict(blocks__1__attn__q_bias=ONE), r"query and value alone \(BEiT, EVA\)"),
        (dict(blocks__1__mlp__fc1_g__weight=ONE), "SwiGLU"),
        (dict(norm_pre__weight=ONE), "a norm before the blocks .*CLIPVisionModel"),
        (dict(attn_pool__latent=ONE), "global_pool='map'"),
        (dict(cls_token=None), "has no cls_token"),
        (dict(pos_embed=np.zeros((1, 7, 16), np.float32)), "nor 1 \\+ a square"),
        (dict(patch_embed__proj__weight=None), r"has no patch_embed\.proj\.weight"),
    ],
)
@pytest.mark.parametrize("task", ["encoder", "classify"])
def test_what_our_models_cannot_do_is_refused_by_name(tmp_path, task, tensors, text):
    path = timm_file(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(UserError, match=text) as error:
        weights.load(path, task, pooling=None, known=dict(heads=2))
    assert "\n" not in str(error.value)


def test_a_tanh_layer_of_old_files_goes_with_the_head(tmp_path):
    layer = dict(pre_logits__fc__weight=np.eye(16, dtype=np.float32))
    layer |= dict(pre_logits__fc__bias=np.zeros(16, np.float32))
    path, known = timm_file(tmp_path / "a.safetensors", **layer), dict(heads=2)
    _, _, report = weights.load(path, "encoder", pooling=None, known=known)
    assert report.ignored["pre_logits.fc.bias"] == "head dropped for task encoder"
    with pytest.raises(UserError, match=r"tanh layer \(pre_logits\)"):
        weights.from_pretrained(path, "classify", known=known)
    fresh = dict(fresh=("head",), num_classes=5, key=jax.random.key(0))
    _, _, report = weights.from_pretrained(path, "classify", known=known, **fresh)
    assert report.ignored["head/pre_logits/bias"] == "named fresh"


def test_an_unknown_tensor_and_a_wrong_qkv_are_named(tmp_path):
    qkv = np.zeros((47, 16), np.float32)
    path = timm_file(
        tmp_path / "a.safetensors", extra=ONE, blocks__0__attn__qkv__weight=qkv
    )
    with pytest.raises(UserError) as error:
        weights.from_pretrained(path, "encoder", known=dict(heads=2))
    text = str(error.value)
    assert "extra" in text
    assert "missing in the source: encoder/block_00/attention/key/kernel" in text
    assert "encoder/block_00/attention/qkv/kernel" in text


@pytest.mark.parametrize(
    ("model_args", "text"),
    [
        (dict(norm_layer="rmsnorm"), "norm_layer='rmsnorm' is not supported"),
        (dict(act_layer="silu"), "act_layer='silu'"),
        (dict(global_pool="max"), "global_pool='max'"),
        (dict(num_heads=3.5), "heads"),
    ],
)
def test_arguments_of_timm_that_leave_no_trace_in_tensors_are_refused(
    tmp_path, model_args, text
):
    with pytest.raises(UserError, match=text):
        weights.from_pretrained(timm_folder(tmp_path, **model_args), "classify")


def test_an_architecture_with_quick_gelu_is_read_with_it(tmp_path):
    folder = timm_folder(tmp_path)
    theirs = json.loads((folder / "config.json").read_text())
    theirs["architecture"] = "vit_base_patch16_quickgelu_224"
    (folder / "config.json").write_text(json.dumps(theirs))
    assert weights.model_config(folder)["gelu"] == "quick"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is none of"),
        (lambda path: (path / "stages").mkdir(parents=True), "workdir of a run"),
        (lambda path: path.write_text("x"), "is none of"),
    ],
)
def test_what_is_no_model_is_one_line(tmp_path, make, text):
    make(tmp_path / "a")
    with pytest.raises(UserError, match=text) as error:
        weights.load(tmp_path / "a", "mae", pooling=None)
    assert "\n" not in str(error.value)


def test_a_file_of_other_names_and_two_formats_at_once_are_one_line(tmp_path):
    torch_files.write(tmp_path / "a.pth", {"weight": ONE}, "zip")
    with pytest.raises(UserError, match="is none of"):
        weights.model_config(tmp_path / "a.pth")
    folder = timm_folder(tmp_path)
    (folder / "7" / "state").mkdir(parents=True)
    with pytest.raises(UserError, match=r"could be any of \['timm', 'orbax'\]"):
        weights.model_config(folder)
    assert weights.model_config(folder, format="timm")["depth"] == 2
    with pytest.raises(UserError, match="format='tf' is unknown"):
        weights.model_config(folder, format="tf")
