"""Our files in timm, Facebook's MAE and flax: run where torch and timm are."""

import json

import flax.traverse_util
import jax
import numpy as np
import published
import pytest
import weights_inputs as inputs

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.formats import torch_vit
from flax_adapt.weights.names import timm as timm_names

pytestmark = pytest.mark.parity

CONFIG = dict(
    kind="vit",
    **inputs.SIZES,
    layer_norm_eps=1e-6,
    qkv_bias=True,
    gelu="erf",
    pooler=False,
    last_block=None,
    adaptor=None,
    traits=None,
    decoder=None,
)
OPTIONS = dict(dtype="float32", dropout=0.0, drop_path=0.0, num_classes=3)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch and timm")


@pytest.fixture(scope="module")
def timm(torch):
    return pytest.importorskip("timm", reason="needs torch and timm")


def build(task, pooling="cls", **changes):
    """A model with parameters far from zero."""
    model = models.build(CONFIG | changes, task, pooling=pooling, **OPTIONS)
    shapes = jax.eval_shape(lambda: models.init_params(model, jax.random.key(0)))
    rng = inputs.random("parity")
    return model, jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


def apply(model, params, *arguments, **options):
    with jax.default_matmul_precision("highest"):
        return model.apply({"params": params}, *arguments, **options)


def pixels(torch):
    return torch.from_numpy(inputs.images().transpose(0, 3, 1, 2).copy())


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("pooling", "changes"),
    [
        ("cls", dict(gelu="tanh", qkv_bias=False)),
        ("mean", dict(mlp_dim=37, patch_size=2)),
        ("mean_norm", {}),
        ("cls", dict(channels=1, depth=3, heads=8)),
    ],
)
def test_timm_makes_our_folder_the_same_model(tmp_path, torch, timm, pooling, changes):
    model, params = build("classify", pooling, **changes)
    weights.save_pretrained(tmp_path / "a", model, params, format="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    image = inputs.images()[..., : model.config.channels]
    channels_first = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits = theirs(channels_first).numpy()
    assert_close(apply(model, params, image, None), logits)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("task", ["encoder", "classify"])
def test_timm_loads_our_file_strictly(tmp_path, torch, timm, task):
    from safetensors.torch import load_file

    model, params = build(task)
    weights.save_pretrained(tmp_path / "a", model, params, format="timm")
    arguments = inputs.TIMM_ARGUMENTS | dict(num_classes=3 * (task == "classify"))
    theirs = timm.create_model("vit_base_patch16_224", **arguments).eval()
    theirs.load_state_dict(load_file(tmp_path / "a" / "model.safetensors"), strict=True)
    with torch.no_grad():
        states = theirs.forward_features(pixels(torch)).numpy()
    found = apply(model, params, inputs.images(), None, method="encode")[-1]
    assert_close(found, states)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_a_published_architecture_of_timm_needs_to_be_told_nothing(
    tmp_path, timm, name
):
    model = timm.create_model(name, num_classes=2)
    timm.models.save_for_hf(model, tmp_path / "a", safe_serialization=True)
    file = tmp_path / "a" / "config.json"
    theirs = json.loads(file.read_text())
    theirs.pop("model_args")  # folders of older versions have none
    file.write_text(json.dumps(theirs))
    sizes = models.SIZES["Ti"]
    config = weights.model_config(tmp_path / "a")
    assert {field: config[field] for field in sizes} == sizes
    assert config["image_size"] == 224
    _, params, report = weights.from_pretrained(tmp_path / "a", "classify")
    assert not report.ignored
    assert len(strict.flatten(params)) == 8 + 16 * 12


def config_of(torch, timm, name):
    """The module of an architecture without numbers, and our model config of it."""
    with torch.device("meta"):
        model = timm.create_model(name)
    tensors = {
        tensor_name: LazyTensor(tensor_name, tuple(tensor.shape), "float32", None)
        for tensor_name, tensor in model.state_dict().items()
    }
    found = torch_vit.model_config(name, timm_names.TIMM, tensors, {})
    return model, found


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_384", "vit_small_patch8_224", "vit_base_patch16_224_miil"),
        *("vit_large_patch32_384", "vit_huge_patch14_224", "vit_giant_patch14_224"),
        *("vit_gigantic_patch14_224", "deit_base_patch16_384", "eva_large_patch14_196"),
        *("vit_small_patch14_dinov2", "vit_large_patch14_reg4_dinov2"),
        *("deit3_small_patch16_224", "vit_giant_patch14_reg4_dinov2"),
    ],
)
def test_what_is_assumed_of_a_published_architecture_is_so(torch, timm, name):
    model, found = config_of(torch, timm, name)
    block = model.blocks[0]
    assert found["heads"] == block.attn.num_heads
    assert found["layer_norm_eps"] == block.norm1.eps
    assert found["gelu"] == "erf"
    if found["traits"] is None or not found["traits"]["swiglu"]:
        assert type(block.mlp.act) is torch.nn.GELU
        assert block.mlp.act.approximate == "none"
    has_norm = hasattr(model.fc_norm, "weight")
    assert model.global_pool == ("avg" if has_norm else "token")
    assert found["image_size"] == model.pretrained_cfg["input_size"][1]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vit_base_patch16_clip_224", "a norm before the blocks"),
        ("vit_base_patch16_siglip_224", "attention pooling"),
        ("vit_base_patch16_gap_224", "has no cls_token"),
        ("beit_base_patch16_224", "relative positions"),
        ("eva_giant_patch14_224", "query and value alone"),
        ("vit_base_r26_s32_224", "a stem"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(torch, timm, name, text):
    with pytest.raises(UserError, match=text):
        config_of(torch, timm, name)


@pytest.mark.filterwarnings("default")
def test_facebook_s_module_loads_our_file_strictly(tmp_path, torch, timm):
    from safetensors.torch import load_file

    model, params = build("mae", decoder=inputs.DECODER)
    file = tmp_path / "a.safetensors"
    weights.save_pretrained(file, model, params, format="facebook_mae")
    theirs = published.masked_autoencoder(inputs.SIZES, inputs.DECODER).eval()
    theirs.load_state_dict(load_file(file), strict=True)
    noise, ratio = inputs.noise(), inputs.HIDDEN_RATIO
    with torch.no_grad():
        prediction, mask = theirs(pixels(torch), torch.from_numpy(noise), ratio)
    found, hidden = apply(model, params, inputs.images(), noise, None, ratio)
    np.testing.assert_array_equal(hidden, mask.numpy() == 1)
    assert_close(found, prediction.numpy())


@pytest.mark.filterwarnings("default")
def test_facebook_s_classifier_loads_our_file_strictly(tmp_path, torch, timm):
    """models_vit.py with --global_pool is timm's ViT with global_pool="avg"."""
    from safetensors.torch import load_file

    model, params = build("classify", "mean_norm")
    file = tmp_path / "a.safetensors"
    weights.save_pretrained(file, model, params, format="facebook_mae")
    arguments = dict(global_pool="avg", **inputs.TIMM_ARGUMENTS)
    theirs = timm.create_model("vit_base_patch16_224", **arguments).eval()
    theirs.load_state_dict(load_file(file), strict=True)
    with torch.no_grad():
        logits = theirs(pixels(torch)).numpy()
    assert_close(apply(model, params, inputs.images(), None), logits)


@pytest.mark.filterwarnings("default")
def test_what_timm_reads_from_our_npz_is_the_same_model(tmp_path, torch, timm):
    model, params = build("classify", gelu="tanh")
    weights.save_pretrained(tmp_path / "a.npz", model, params, format="big_vision")
    theirs = timm.create_model(
        "vit_base_patch16_224", act_layer="gelu_tanh", **inputs.TIMM_ARGUMENTS
    )
    theirs.eval().load_pretrained(str(tmp_path / "a.npz"))
    with torch.no_grad():
        logits = theirs(pixels(torch)).numpy()
    assert_close(apply(model, params, inputs.images(), None), logits)


def test_flax_s_published_module_takes_our_npz(tmp_path):
    model, params = build("classify", gelu="tanh")
    weights.save_pretrained(tmp_path / "a.npz", model, params, format="big_vision")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        theirs = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    module = published.vision_transformer(inputs.SIZES, inputs.NUM_CLASSES)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs.images()))
    assert jax.tree.map(np.shape, theirs) == jax.tree.map(np.shape, shapes["params"])
    with jax.numpy_rank_promotion("allow"):
        states, logits = apply(module, theirs, inputs.images())
    found = apply(model, params, inputs.images(), None, method="encode")[-1]
    assert_close(found, states)
    assert_close(apply(model, params, inputs.images(), None), logits)
