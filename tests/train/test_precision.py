"""What `precision` means: on which devices, and in a workdir that was begun with another."""

import json
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.train import precision


def device(platform, capability=None):
    return SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
    ("found", "settled"),
    [
        (device("cpu"), "float32"),
        (device("tpu"), "bfloat16"),
        (device("gpu", "7.5"), "float32"),  # Turing has no bfloat16
        (device("gpu", "8.0"), "bfloat16"),
        (device("gpu", "9.0"), "bfloat16"),
        (device("gpu"), "float32"),
    ],
)
def test_auto_is_bfloat16_where_devices_have_it(found, settled, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [found])
    assert precision.settle("auto") == settled
    assert precision.dtype_of("auto") == settled
    for name in precision.PRECISIONS:
        assert precision.settle(name) == name


def test_an_unknown_precision_is_one_line_with_what_there_is():
    with pytest.raises(UserError, match=r"--precision='half' .*auto.*highest"):
        precision.settle("half", field="--precision")


def test_float32_is_multiplied_in_full_only_where_that_is_asked_for():
    before = jax.config.jax_default_matmul_precision
    expected = {"float32": "high", "highest": "highest", "bfloat16": None}
    try:
        for name, products in expected.items():
            precision.set_products(name)
            assert jax.config.jax_default_matmul_precision == products
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def begun_workdir(path, kept):
    (path / "stages" / "a" / "checkpoints" / "1").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"precision": kept}))
    return path


def test_a_run_that_goes_on_keeps_its_precision(tmp_path):
    config = ConfigDict({"precision": "auto", "seed": 0}).lock()
    assert recipe.settle_precision(config, tmp_path).precision == "float32"
    workdir = begun_workdir(tmp_path, "bfloat16")
    assert recipe.settle_precision(config, workdir).precision == "bfloat16"
    asked = ConfigDict({"precision": "float32"}).lock()
    assert recipe.settle_precision(asked, workdir).precision == "float32"
