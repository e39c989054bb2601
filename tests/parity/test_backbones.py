"""Backbones of other families: the states and gradients of the libraries that wrote them."""

import json

import backbone_inputs as inputs
import goldens
import jax
import numpy as np
import pytest
import safetensors.numpy

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.files import reading
from flax_adapt.weights.formats import dinov3, huggingface, table, torch_vit
from flax_adapt.weights.names import translate

FOLDER = inputs.FOLDER
KNOWN = dict(heads=inputs.HEADS)
# Source in the folder -> (its format, the golden, `known`).
SOURCES = {
    "dinov2": ("huggingface", "dinov2", {}),
    "dinov2_registers": ("huggingface", "dinov2_registers", {}),
    "timm_dinov2": ("timm", "timm_dinov2", {}),
    "timm_reg4_dinov2": ("timm", "timm_reg4_dinov2", {}),
    "facebook_dinov2.pth": ("facebook_dinov2", "dinov2", KNOWN),
    "facebook_dinov2_registers.pth": (
        "facebook_dinov2",
        "dinov2_registers",
        KNOWN | dict(layer_norm_eps=1e-5),
    ),
    "deit_distilled": ("huggingface", "deit_distilled", {}),
    "timm_deit_distilled": ("timm", "timm_deit_distilled", {}),
    "timm_deit3": ("timm", "timm_deit3", {}),
    "clip": ("huggingface", "clip", {}),
    "dinov3": ("huggingface", "dinov3", {}),
    "dinov3_gated": ("huggingface", "dinov3_gated", {}),
    "timm_dinov3": ("timm_dinov3", "timm_dinov3", {}),
    "timm_dinov3_plus": ("timm_dinov3", "timm_dinov3_plus", {}),
    "facebook_dinov3.pth": ("facebook_dinov3", "dinov3", KNOWN),
    "facebook_dinov3_gated.pth": ("facebook_dinov3", "dinov3_gated", KNOWN),
}
# Goldens whose states of another size are those of our rule for the source.
RESIZED = [name for name in SOURCES if not name.startswith("facebook_dinov2")]
ENCODERS = ("clip", "dinov3", "dinov3_gated")
HAVE_A_HEAD = [n for n in RESIZED if n not in ENCODERS and "facebook" not in n]
# Those with the logits of their library.
CLASSIFIERS = ("deit_distilled", "timm_deit_distilled", "timm_dinov3")
# Tensors that we leave out or write as zeros, since no state depends on them.
UNUSED = ("mask_token", "rope_embed.periods", "attn.qkv.bias_mask")


def golden(name):
    with np.load(FOLDER / f"{SOURCES[name][1]}.outputs.npz") as arrays:
        return dict(arrays)


def load(name, **options):
    known = SOURCES[name][2]
    return weights.from_pretrained(FOLDER / name, "encoder", known=known, **options)


def states(model, params, size):
    with jax.default_matmul_precision("highest"):
        image = inputs.images(size)
        return model.apply({"params": params}, image, None, method="encode")[-1]


def names_of(name):
    """The table of names of a source."""
    config = weights.model_config(FOLDER / name, known=SOURCES[name][2])
    kind = SOURCES[name][0]
    if kind == "huggingface":
        return huggingface.family_of(config).names(config, "encoder")
    fit = dinov3.table_of if kind.endswith("dinov3") else torch_vit.fit_table
    with reading.open_tensors(FOLDER / name, {}) as tensors:
        return fit(table.FORMATS[kind].TABLE, tensors)


@pytest.mark.parity
@pytest.mark.parametrize("name", SOURCES)
def test_a_backbone_has_the_states_and_gradients_of_its_own_library(name):
    # Facebook's files of DINOv3 have no image size.
    size = dict(image_size=inputs.IMAGE_SIZE) if "facebook_dinov3" in name else {}
    model, params, _ = load(name, **size)
    expected = golden(name)
    weight = inputs.weight(expected["states"].shape)

    def total(params):
        found = states(model, params, inputs.IMAGE_SIZE)
        return (found * weight).sum(), found

    grads, found = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(found, expected["states"], atol=1e-5, rtol=1e-5)
    if name.startswith("facebook"):
        return  # the same tensors as those of transformers, whose names the golden has
    head = "grad/"
    theirs = {k[len(head) :]: v for k, v in expected.items() if k.startswith(head)}
    named = names_of(name)
    leaves = {}
    for tensor, value in theirs.items():
        leaves |= translate.split(named, named.leaf_of(tensor), value)
    distances = goldens.distances(grads, leaves, 0.1)
    assert len(distances) == len(strict.flatten(grads))
    assert max(distances.values()) < 1e-4, distances


@pytest.mark.parity
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_has_the_logits_of_its_own_library(name):
    """DeiT's two heads are averaged; timm's DINOv3 pools the mean of the patches."""
    model, params, _ = weights.from_pretrained(FOLDER / name, "classify")
    image = inputs.images()

    @jax.jit
    def run(params):
        with jax.default_matmul_precision("highest"):
            return model.apply({"params": params}, image, None)

    expected = golden(name)["logits"]
    np.testing.assert_allclose(run(params), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("name", RESIZED)
def test_images_of_another_size_get_the_states_of_the_backbone_s_own_library(name):
    size = inputs.OTHER_SIZE
    model, params, report = load(name, reshape=("position",), image_size=size)
    assert ("encoder/position" in report.reshaped) == ("dinov3" not in name)
    found = jax.jit(states, static_argnums=(0, 2))(model, params, size)
    np.testing.assert_allclose(found, golden(name)["other"], atol=2e-5, rtol=1e-5)


def tensors_of(path):
    with reading.open_tensors(path, {}) as tensors:
        return {name: np.asarray(tensor.get()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", SOURCES)
def test_a_backbone_comes_back_bit_for_bit(tmp_path, name):
    """All tensors but UNUSED, which no state depends on; the mask token is zeros or left out."""
    format, _, known = SOURCES[name]
    task = "classify" if name in HAVE_A_HEAD else "encoder"
    model, params, report = weights.from_pretrained(FOLDER / name, task, known=known)
    if format == "facebook_dinov2" and known != KNOWN:
        model = models.build(
            {**models.config_of(model), "layer_norm_eps": 1e-6},
            "encoder",
            **goldens.OPTIONS,
            pooling="cls",
            num_classes=0,
        )
    suffix = ".safetensors" if format.startswith("facebook") else ""
    path = tmp_path / f"a{suffix}"
    weights.save_pretrained(path, model, params, format=format)
    old, new = tensors_of(FOLDER / name), tensors_of(path)
    if name == "clip":  # transformers 5 writes the names of 4 without their prefix
        new = {tensor.removeprefix("vision_model."): new[tensor] for tensor in new}
    unused = {tensor for tensor in old if tensor.endswith(UNUSED)}
    assert unused == {*report.ignored}
    assert {*old} - unused == {*new} - unused
    for tensor in {*new} - ({*report.ignored} - {*old}):
        if tensor.endswith("mask_token"):
            assert not new[tensor].any()
        else:
            np.testing.assert_array_equal(new[tensor], old[tensor], err_msg=tensor)
    again = weights.model_config(
        path, known={k: known[k] for k in known if k == "heads"}
    )
    assert again == models.config_of(model)


def test_a_dinov3_without_registers_comes_back_with_its_empty_tensor(tmp_path):
    """As transformers writes it: its config has no registers by default."""
    theirs = tensors_of(FOLDER / "dinov3")
    none = theirs["embeddings.register_tokens"][:, :0]
    theirs["embeddings.register_tokens"] = none
    config = json.loads((FOLDER / "dinov3/config.json").read_text())
    del config["num_register_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(theirs, tmp_path / "model.safetensors")
    model, params, report = weights.from_pretrained(tmp_path, "encoder")
    ours = models.config_of(model)
    assert ours["traits"]["registers"] == 0
    assert "register_token" not in params["encoder"]
    assert "embeddings.register_tokens" in report.ignored
    patches = (inputs.IMAGE_SIZE // ours["patch_size"]) ** 2
    assert states(model, params, inputs.IMAGE_SIZE).shape[1] == 1 + patches
    weights.save_pretrained(tmp_path / "again", model, params)
    again = tensors_of(tmp_path / "again")
    assert {*again} == {*theirs}
    for name in {*theirs} - {"embeddings.mask_token"}:
        np.testing.assert_array_equal(again[name], theirs[name], err_msg=name)
    theirs["embeddings.register_tokens"] = np.zeros((1, 2, none.shape[2]), np.float32)
    safetensors.numpy.save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="register_token"):
        weights.from_pretrained(tmp_path, "encoder")
