"""Registers, LayerScale and SwiGLU: what a model with them must hold to."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from flax_adapt import models, weights
from flax_adapt.base import config as configs
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.models.visual.traits import make_fields
from flax_adapt.surgery import lora
from flax_adapt.train import optim, sharding
from flax_adapt.weights import interpolate, reshape, strict

TRAITS = make_fields(
    registers=2, layer_scale=True, swiglu=True, position_resize="antialias"
)
ARCH = {**tiny.MODEL, "traits": TRAITS}


def test_the_mean_counts_no_register_and_both_poolings_stand_side_by_side():
    x_BLD = jnp.asarray([[[9.0], [100.0], [200.0], [1.0], [3.0]]])
    pooled = {name: models.pool(x_BLD, name, 3) for name in ("cls", "mean", "cls_mean")}
    np.testing.assert_array_equal(pooled["mean"], [[2]])
    np.testing.assert_array_equal(pooled["cls_mean"], [[9, 2]])


def test_the_layout_calls_patches_alone_pooled():
    layout = tiny.build("encoder", ARCH).layout(jnp.zeros((1, 8, 8, 1)))
    assert layout.pooled_BL.tolist() == [[False] * 3 + [True] * 4]
    assert layout.first_BL.tolist() == [[True] + [False] * 6]


def test_a_masked_objective_hides_no_register():
    """All patches but one are hidden: the encoder still sees CLS and both registers."""
    model = tiny.build("mae", ARCH)
    params = tiny.params_of(model)
    image, noise = jnp.ones((1, 8, 8, 1)), jnp.arange(4.0)[None]

    def run(params):
        (prediction, hidden), kept = model.apply(
            {"params": params}, image, noise, None, 0.75, mutable=["sums"]
        )
        return prediction, (hidden, kept["sums"]["encoder"]["block_00"]["sum"][0])

    prediction, (hidden, states) = run(params)
    assert states.shape[1] == 3 + 1
    assert prediction.shape[1] == 4
    assert hidden.sum() == 3
    token = params["encoder"]["register_token"]
    moved = {**params, "encoder": {**params["encoder"], "register_token": -9 * token}}
    assert np.abs(run(moved)[0] - prediction).max() > 1e-4


def check_rules(shapes):
    """Exactly one rule of each table is of a leaf."""
    tables = dict(optim.DECAY, layers=optim.layer_rules(0.5, 2), split=sharding.RULES)
    for name, table in tables.items():
        rules.check(name, table, shapes)


def test_every_rule_about_parameters_knows_the_new_leaves():
    shapes = weights.shapes(tiny.build("mae", ARCH))
    leaves = strict.flatten(shapes)
    check_rules(shapes)
    assert "encoder/register_token" in leaves
    decayed = {
        name: next(value for pattern, value in optim.DECAY["finetune"]
                   if _matches(pattern, name))
        for name in leaves
    }  # fmt: skip
    assert not decayed["encoder/block_00/layer_scale1/scale"]
    assert decayed["encoder/block_00/norm1/scale"]
    assert not decayed["encoder/register_token"]
    for name in leaves:
        assert any(_matches(pattern, name) for pattern, _ in sharding.RULES), name


def _matches(pattern, name):
    return re.fullmatch(pattern, name) is not None


def test_lora_adapts_the_gate():
    params = tiny.params_of(tiny.build("encoder", ARCH))
    section = configs.build(dict(rank=1, alpha=1.0, targets=("gate",)))
    found = strict.flatten(lora.add(params, section, jax.random.key(0)))
    assert sum("gate" in name for name in found if name.startswith("lora/")) == 4


def test_tokens_and_norms_of_other_families_have_rules():
    traits = make_fields(distilled=True, pre_norm=True, patch_bias=False)
    options = dict(pooling="cls_dist", num_classes=3)
    model = tiny.build("classify", {**tiny.MODEL, "traits": traits}, **options)
    leaves = strict.flatten(weights.shapes(model))
    assert leaves["encoder/position"].shape == (1, 6, 16)
    assert "encoder/patch_embed/bias" not in leaves
    check_rules(weights.shapes(model))


def test_the_pooling_of_two_heads_needs_a_distillation_token():
    with pytest.raises(UserError, match=r"cls_dist.* with a distillation token"):
        weights.shapes(tiny.build("classify", ARCH, pooling="cls_dist"))


def test_a_config_with_the_traits_of_an_older_version_is_complete():
    names = ("registers", "cls_position", "layer_scale", "swiglu", "position_resize")
    old = {**ARCH, "traits": {name: TRAITS[name] for name in names}}
    assert models.config_of(tiny.build("mae", old)) == ARCH
    assert not configs.difference(dict(model=old), dict(model=ARCH))


def test_a_config_without_the_field_is_the_plain_vit():
    old = {name: value for name, value in tiny.MODEL.items() if name != "traits"}
    assert models.config_of(tiny.build("mae", old)) == tiny.MODEL


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(registers=-1), "registers=-1 must lie in 0 to 1024"),
        (dict(position_resize="nearest"), "position_resize='nearest' is unknown"),
    ],
)
def test_traits_that_no_model_has_are_refused(change, text):
    with pytest.raises(UserError, match=text):
        tiny.build("encoder", {**ARCH, "traits": {**TRAITS, **change}})


@pytest.mark.parametrize("how", interpolate.HOW)
@pytest.mark.parametrize("grid", [2, 5, 9])
def test_every_way_to_resize_keeps_constants_and_the_row_of_cls(how, grid):
    table = np.concatenate([np.full((1, 1, 2), 7.0), np.full((1, 25, 2), 3.0)], axis=1)
    found = reshape.resize_positions(table, grid, how)
    assert found.shape == (1, 1 + grid**2, 2)
    np.testing.assert_allclose(found[0, 1:], 3.0, rtol=1e-6)
    np.testing.assert_array_equal(found[0, 0], 7.0)
    without = reshape.resize_positions(table[:, 1:], grid, how)
    np.testing.assert_array_equal(without, found[:, 1:])
