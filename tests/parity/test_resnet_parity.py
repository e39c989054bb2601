"""Our ResNets are timm's, torchvision's and Hugging Face's: outputs, a training pass."""

import functools

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet_inputs as inputs
from ml_collections import ConfigDict

from flax_adapt import defaults, models, objectives, weights
from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import CARRY_INPUT
from flax_adapt.models import batch_stats
from flax_adapt.weights import strict
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.formats import torch_resnet
from flax_adapt.weights.names.resnet import TORCHVISION

pytestmark = pytest.mark.parity

FOLDER = inputs.FOLDER / inputs.NAME


@pytest.fixture(scope="module")
def golden():
    return goldens.read(f"weights/{inputs.NAME}.outputs")


@functools.cache
def loaded(task):
    return weights.from_pretrained(FOLDER, task, image_size=inputs.SIZE)


def apply(model, stored, *arguments, **options):
    variables = batch_stats.variables(stored)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda v, x: model.apply(v, x, *arguments, **options))(
            variables, inputs.images()
        )


def assert_close(actual, expected, tolerance=1e-5):
    """Against the largest number of what is expected."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_evaluation_is_timm_s(golden):
    model, stored, report = loaded("classify")
    assert_close(apply(model, stored, None), golden["logits"])
    assert set(report.ignored.values()) == {"a counter of batches"}
    encoder, stored, _ = loaded("encoder")
    features = apply(encoder, stored, "mean", method="embed")
    assert_close(features, golden["features"])


def test_a_training_pass_is_timm_s(golden):
    """Loss, gradients and running statistics of the objective `classify`."""
    model, stored, _ = loaded("classify")
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    params, statistics = batch_stats.split(stored)
    batch = {"image": inputs.images(), "label": inputs.labels()}
    batch["weight"] = np.ones(inputs.BATCH, np.float32)
    key_B = keys.example_keys(jax.random.key(0), jnp.arange(inputs.BATCH))
    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    with jax.default_matmul_precision("highest"):
        (loss, metrics), grads = step(params, {"batch_stats": statistics}, batch, key_B)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    running = goldens.under(golden, "after", TORCHVISION)
    found = strict.flatten({"batch_stats": metrics[CARRY_INPUT]["batch_stats"]})
    assert found.keys() == running.keys()
    for leaf, expected in running.items():
        assert_close(found[leaf], expected)
    grads, expected = strict.flatten(grads), goldens.under(golden, "grad", TORCHVISION)
    assert grads.keys() == expected.keys()
    for leaf, gradient in expected.items():
        assert_close(grads[leaf], gradient, 1e-4)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch")


def pixels(torch):
    return torch.from_numpy(inputs.images().transpose(0, 3, 1, 2).copy())


@pytest.mark.filterwarnings("default")
def test_torchvision_s_resnet50_is_ours_both_ways(tmp_path, torch):
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    from safetensors.torch import load_file

    theirs = inputs.fill(torchvision.models.resnet50(weights=None, num_classes=3))
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model, stored, report = weights.from_pretrained(
        tmp_path / "a.pth", "classify", image_size=inputs.SIZE
    )
    published = models.resnet_config("50", image_size=inputs.SIZE, channels=3)
    assert models.config_of(model) == published
    assert set(report.ignored.values()) == {"a counter of batches"}
    with torch.no_grad():
        logits = theirs.eval()(pixels(torch)).numpy()
    assert_close(apply(model, stored, None), logits)
    file = tmp_path / "b.safetensors"
    weights.save_pretrained(file, model, stored, format="torchvision")
    again = torchvision.models.resnet50(weights=None, num_classes=3)
    again.load_state_dict(load_file(file), strict=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.filterwarnings("default")
def test_transformers_makes_our_folder_the_same_model(tmp_path, torch, golden):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model, stored, _ = loaded("classify")
    weights.save_pretrained(tmp_path / "a", model, stored)
    theirs, info = transformers.ResNetForImageClassification.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    counters = {name.rpartition(".")[2] for name in info.pop("missing_keys")}
    assert counters == {"num_batches_tracked"}
    assert not any(info.values())
    with torch.no_grad():
        logits = theirs.eval()(pixels(torch)).logits.numpy()
    assert_close(logits, golden["logits"])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet18", r"two convolutions \(ResNet-18, ResNet-34\)"),
        ("resnet50d", "a stem of several convolutions"),
        ("resnet50c", "a stem of several convolutions"),
        ("resnet26t", "a stem of several convolutions"),
        ("resnet50_gn", "no running statistics"),
        ("seresnet50", r"attention over channels \(SE, ECA\)"),
        ("skresnet50", "selective or split convolutions"),
        ("resnest14d", "selective or split convolutions"),
        ("resnext50_32x4d", "grouped convolutions"),
        ("wide_resnet50_2", "wide ResNets"),
        ("resnetrs50", "a convolution in the place of the max pool"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(torch, name, text):
    with pytest.raises(UserError, match=text):
        config_of(torch, name)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["resnet26", "resnet50", "resnet101", "resnet152"])
def test_a_published_architecture_of_timm_has_the_published_sizes(torch, name):
    found = config_of(torch, name)
    depth = name.removeprefix("resnet")
    published = models.resnet_config(depth, image_size=224, channels=3)
    assert models.ResNetConfig(**found) == models.ResNetConfig(**published)


def config_of(torch, name):
    """Our model config of an architecture of timm's without numbers."""
    timm = pytest.importorskip("timm", reason="needs timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    tensors = {
        tensor_name: LazyTensor(tensor_name, tuple(tensor.shape), "float32", None)
        for tensor_name, tensor in model.state_dict().items()
    }
    return torch_resnet.model_config(name, tensors, {})
