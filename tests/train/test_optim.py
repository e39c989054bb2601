"""Tables of the optimizer: which leaf decays, is frozen, learns how fast, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.train import optim, schedules


def config(kind="pretrain", **changes):
    sections = {
        "pretrain": defaults.pretrain_optim,
        "finetune": defaults.finetune_optim,
    }
    return ConfigDict(sections[kind](**{"warmup_steps": 0, **changes}))


def updated(tx, params, grads, num_steps=1):
    """The named leaves after some steps of the same gradient."""
    state = tx.init(params)
    for _ in range(num_steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return dict(zip(rules.names(params), jax.tree.leaves(params), strict=True))


def decayed(kind, task, **changes):
    """Names of the leaves that move where the gradient is zero: by weight decay alone."""
    params = tiny.params_of(tiny.build(task))
    fields = dict(freeze=(), lr=0.1, clip_norm=0.0, **changes)
    tx = optim.build(config(kind, **fields), 10, params)
    before = dict(zip(rules.names(params), jax.tree.leaves(params), strict=True))
    after = updated(tx, params, jax.tree.map(jnp.zeros_like, params))
    return {name for name in before if np.any(before[name] != after[name])}


def test_pretraining_decays_matrices_and_tokens_but_nothing_1d():
    names = decayed("pretrain", "mae")
    assert {
        "encoder/cls_token",
        "decoder/mask_token",
        "decoder/predict/kernel",
    } <= names
    assert not any(name.endswith(("bias", "scale")) for name in names)


def test_finetuning_decays_norm_scales_but_no_bias_position_or_cls():
    names = decayed("finetune", "classify")
    assert {
        "encoder/norm/scale",
        "encoder/block_00/norm1/scale",
        "head/kernel",
    } <= names
    assert not any(name.endswith(("bias", "position", "cls_token")) for name in names)


def test_frozen_leaves_stay_and_have_no_optimizer_state():
    params = tiny.params_of(tiny.build("classify"))
    tx = optim.build(config("finetune", freeze=("encoder/.*",)), 10, params)
    after = updated(tx, params, jax.tree.map(jnp.ones_like, params))
    np.testing.assert_array_equal(
        after["encoder/norm/scale"], params["encoder"]["norm"]["scale"]
    )
    assert np.all(after["head/bias"] != params["head"]["bias"])
    moments = [name for name in rules.names(tx.init(params)) if "/mu/" in name]
    assert len(moments) == 2
    assert all("head" in name for name in moments)


def test_clipping_sees_trainable_leaves_only():
    params = {
        "encoder": {"a": {"kernel": jnp.zeros(2)}},
        "head": {"kernel": jnp.zeros(1)},
    }
    grads = {
        "encoder": {"a": {"kernel": jnp.full(2, 1e6)}},
        "head": {"kernel": jnp.ones(1)},
    }
    # With eps as large as the gradient Adam's step shows the gradient's size.
    fields = dict(lr=1.0, eps=1.0, weight_decay=0.0, clip_norm=1.0, schedule="constant")
    tx = optim.build(config("finetune", freeze=("encoder/.*",), **fields), 10, params)
    np.testing.assert_allclose(
        updated(tx, params, grads)["head/kernel"], [-0.5], rtol=1e-5
    )


def test_layer_decay_multiplies_the_step_of_every_depth():
    params = tiny.params_of(tiny.build("classify"))
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads = jax.tree.map(jnp.ones_like, params)
    fields = dict(lr=1.0, eps=0.0, weight_decay=0.0, clip_norm=0.0, layer_decay=0.5)
    tx = optim.build(config("finetune", schedule="constant", **fields), 10, zeros)
    after = updated(tx, zeros, grads)
    # Two blocks: embeddings 0.5^3, blocks 0.5^2 and 0.5^1, final norm and head 1.
    for name, size in {
        "encoder/patch_embed/kernel": 0.125,
        "encoder/cls_token": 0.125,
        "encoder/position": 0.125,
        "encoder/block_00/mlp/up/bias": 0.25,
        "encoder/block_01/norm2/scale": 0.5,
        "encoder/norm/scale": 1.0,
        "head/kernel": 1.0,
    }.items():
        np.testing.assert_allclose(after[name], -size, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("linear", 0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 2, [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("cosine", 0, [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0]),
        ("constant", 2, [0.0, 0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_schedule_by_optimizer_step(name, warmup, expected):
    section = config(lr=1.0, schedule=name, warmup_steps=warmup)
    lr = optim.schedule(section, 4)
    np.testing.assert_allclose([lr(step) for step in range(5)], expected, atol=1e-6)


def test_a_warm_up_that_fills_its_stage_is_cut_to_a_tenth_of_it():
    section = config(lr=1.0, schedule="constant", warmup_steps=500)
    assert schedules.warmup_steps(section, 501) == 500
    assert schedules.warmup_steps(section, 500) == 50
    lr = optim.schedule(section, 20)
    np.testing.assert_allclose([lr(step) for step in range(4)], [0, 0.5, 1, 1])


def test_mae_finetuning_decays_kernels_alone():
    """Nothing 1-D, not positions, not CLS (He et al. 2022, lr_decay.py)."""
    names = decayed("finetune", "classify", decay="mae_finetune")
    assert names == {name for name in decayed("finetune", "classify", decay="all")
                     if name.endswith("kernel")}  # fmt: skip


def test_all_parameters_decay_where_the_table_says_all():
    """MoCo-v3's AdamW on a ViT: one group of parameters."""
    params = tiny.params_of(tiny.build("mae"))
    assert decayed("pretrain", "mae", decay="all") == {*rules.names(params)}


def test_a_leaf_without_a_rule_is_named():
    params = {"encoder": {"new": {"weight": jnp.zeros(1)}}}
    with pytest.raises(UserError, match=r"optim.decay='pretrain'.*encoder/new/weight"):
        optim.build(config(freeze=()), 10, params)


def test_a_leaf_with_two_rules_is_named_with_both():
    table = ((r".*/kernel", 1), (r"head/.*", 2))
    with pytest.raises(
        UserError, match=r"head/kernel by \['\.\*/kernel', 'head/\.\*'\]"
    ):
        rules.assign("table", table, {"head": {"kernel": 0}})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(freeze=("encoder/typo.*",)), "optim.freeze: 'encoder/typo.*' matches no"),
        (dict(freeze=(".*",)), "leaves nothing to train"),
        (dict(schedule="step"), "optim.schedule='step'.*cosine"),
        (dict(decay="none"), "optim.decay='none'.*finetune"),
        (dict(warmup_steps=-1), "warmup_steps=-1 must be at least 0"),
        (
            dict(sgd=defaults.sgd(), lars=dict(momentum=0.9, trust=1e-3)),
            "optim.lars and optim.sgd are 2 optimizers",
        ),
        (dict(sgd=defaults.sgd(momentum=1.0)), r"optim.sgd: momentum=1.0 must lie in"),
        (dict(sgd=dict(momentum=0.0, nesterov=True)), "nesterov=True needs a momentum"),
    ],
)
def test_errors_name_the_field(changes, text):
    params = tiny.params_of(tiny.build("mae"))
    with pytest.raises(UserError, match=text):
        optim.build(config(**changes), 10, params)
