"""Resized weights are those of torch, timm and transformers."""

import goldens
import numpy as np
import pytest
import resize_inputs
from goldens import VIT

from flax_adapt import models, weights
from flax_adapt.weights import reshape

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def golden():
    return goldens.read("resize")


@pytest.mark.parametrize(("old", "new"), resize_inputs.GRIDS)
def test_positions_are_resized_as_torch_does(golden, old, new):
    table = resize_inputs.table(old)
    resized = reshape.resize_positions(table, new)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])
    expected = golden[f"position_{old}_{new}"]
    np.testing.assert_allclose(resized[:, 1:], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), resize_inputs.GRIDS)
def test_positions_are_resized_as_torch_does_live(old, new):
    torch = pytest.importorskip("torch", reason="needs torch")
    table = resize_inputs.table(old)
    grid = torch.from_numpy(table[:, 1:].copy()).reshape(1, old, old, -1)
    expected = torch.nn.functional.interpolate(
        grid.permute(0, 3, 1, 2), size=(new, new), mode="bicubic", align_corners=False
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, new * new, -1).numpy()
    resized = reshape.resize_positions(table, new)
    np.testing.assert_allclose(resized[:, 1:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("old", "new"), resize_inputs.PATCHES)
def test_patches_are_resized_as_timm_does(golden, old, new, channels):
    leaf = reshape.KERNEL
    kernel = VIT.style.to_ours(leaf, resize_inputs.kernel(old, channels))
    resized = reshape.resize_patches(kernel, old, new, channels)
    expected = VIT.style.to_ours(leaf, golden[f"kernel_{old}_{new}_{channels}"])
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", resize_inputs.SIZES)
def test_a_model_of_another_image_size_is_the_one_of_transformers(golden, size):
    """transformers resizes the positions in its forward pass."""
    small = goldens.build("A", "encoder", pooler=True)
    found = models.config_of(small)
    wanted = reshape.resized_config(found, dict(image_size=size), "encoder", None)
    loaded = goldens.params(golden, goldens.inputs.STUDENT)
    params, report = weights.fit(found, loaded, wanted, ("position",))
    assert list(report.reshaped) == ["encoder/position"]
    options = dict(pooling="cls", num_classes=1, **goldens.OPTIONS)
    model = models.build(wanted, "encoder", **options)
    x_BLD, _ = model.apply({"params": params}, resize_inputs.images(size), None)
    np.testing.assert_allclose(x_BLD, golden[f"states_{size}"], rtol=0, atol=1e-5)
