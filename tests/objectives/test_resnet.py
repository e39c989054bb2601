"""Objectives of a ResNet: which statistics they go by, and which they hand over."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict
from support import tiny_resnet

from flax_adapt import defaults, objectives
from flax_adapt.base import keys
from flax_adapt.base.types import CARRY_INPUT
from flax_adapt.models import batch_stats
from flax_adapt.train import sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

CLASSIFY = ConfigDict(defaults.classify())
BATCH = tiny_resnet.views_of()
WEIGHT_B = BATCH["weight"]


def keys_of():
    return keys.example_keys(jax.random.key(0), BATCH["position"])


def assert_close(actual, expected):
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6),
        *(actual, expected),
    )


@functools.cache
def losses(name, form="", train=True):
    """(model, parameters, what is carried, the compiled loss)"""
    config = tiny_resnet.contrast_section(form) if form else CLASSIFY
    heads = tiny_resnet.HEADS_V2 if form == "moco_v2" else tiny_resnet.HEADS
    options = dict(projector=heads) if form else {}
    model = tiny_resnet.build(name, **options)
    params, statistics = batch_stats.split(tiny_resnet.stored_of(model))
    carry = objectives.build_carry(config, 8, statistics)
    carried = carry.init(params, jax.random.key(1))
    if form:
        other, _ = batch_stats.split(tiny_resnet.stored_of(model, seed=1))
        parts = {part: other[part] for part in carried["key_encoder"]}
        carried |= {"key_encoder": parts}
    loss_fn = objectives.build(config, model, train=train)
    return model, params, carried, jax.jit(loss_fn)


def test_an_image_that_does_not_count_moves_nothing():
    _, params, carried, loss_fn = losses("classify")
    other = {**BATCH, "image": BATCH["image"].copy()}
    other["image"][2] = 9.0
    results = [loss_fn(params, carried, one, keys_of()) for one in (BATCH, other)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    other["image"][3] = 9.0
    (_, first), (_, moved) = results[0], loss_fn(params, carried, other, keys_of())
    moves = jax.tree.map(
        lambda a, b: np.any(a != b), first[CARRY_INPUT], moved[CARRY_INPUT]
    )
    assert all(jax.tree.leaves(moves))


def test_evaluation_goes_by_the_statistics_of_that_moment():
    """By way of the step and the state, as a stage does it."""
    model, params, carried, _ = losses("classify")
    mesh = sharding.one_device()
    state = states.TrainState(
        step=0, params=params, opt_state=None, frozen={}, extra={"seed": 0, **carried}
    )
    eval_step = steps.make_eval_step(
        objectives.build(CLASSIFY, model, train=False), mesh
    )
    later = jax.tree.map(lambda leaf: 1.5 * leaf, carried)
    found = []
    for moment in (state, state.replace(extra={"seed": 0, **later})):
        metrics = eval_step(moment.params, moment.loss_inputs, BATCH, 0)
        assert CARRY_INPUT not in metrics
        stored = batch_stats.join(moment.evaluated, moment.statistics)
        variables = batch_stats.variables(stored)
        logits_BN = jax.jit(model.apply)(variables, BATCH["image"], None)
        nll_B = -jax.nn.log_softmax(logits_BN)[np.arange(8), BATCH["label"]]
        expected = np.sum(nll_B * WEIGHT_B) / np.sum(WEIGHT_B)
        np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-5)
        found.append(float(expected))
    assert abs(found[0] - found[1]) > 1e-3


@functools.cache
def passes(form):
    """Query and key of each view, and the statistics after the queries in order."""
    model, params, carried, _ = losses("contrast", form)
    key_B, key_params = keys_of(), carried["key_encoder"]

    @jax.jit
    def run(params, statistics, key_params):
        variables = {"params": params, batch_stats.NAME: statistics}
        for view in BATCH["views"]:
            _, moved = model.apply(
                variables, view, key_B, WEIGHT_B, mutable=[batch_stats.NAME]
            )
            variables = {**variables, **moved}
        first, second = (
            model.apply({"params": key_params}, view, None, WEIGHT_B, method="project")
            for view in BATCH["views"]
        )
        return variables[batch_stats.NAME], first, second

    return run(params, carried[batch_stats.NAME], key_params)


def test_contrast_keeps_the_statistics_of_its_queries_one_view_after_the_other():
    _, params, carried, loss_fn = losses("contrast", "moco_v3")
    _, metrics = loss_fn(params, carried, BATCH, keys_of())
    handed = metrics[CARRY_INPUT]
    assert set(handed) == {batch_stats.NAME}
    assert_close(handed[batch_stats.NAME], passes("moco_v3")[0])
    # Not those of one view alone.
    _, metrics = losses("classify")[3](
        *losses("classify")[1:3], {**BATCH, "image": BATCH["views"][0]}, keys_of()
    )
    stem = [
        found[batch_stats.NAME]["encoder"]["stem"]["norm"]["mean"]
        for found in (handed, metrics[CARRY_INPUT])
    ]
    assert np.abs(stem[0] - stem[1]).max() > 1e-3


def test_keys_go_by_their_batch_and_are_queued_beside_the_statistics():
    """The queue takes keys of the second view; only the first is a query."""
    _, params, carried, loss_fn = losses("contrast", "moco_v2")
    _, metrics = loss_fn(params, carried, BATCH, keys_of())
    handed = metrics[CARRY_INPUT]
    assert set(handed) == {batch_stats.NAME, "queue"}
    key_BD = np.asarray(passes("moco_v2")[2])
    key_BD = key_BD / np.linalg.norm(key_BD, axis=1, keepdims=True)
    assert_close(handed["queue"]["key_BD"], key_BD)
    carry = objectives.build_carry(
        tiny_resnet.contrast_section("moco_v2"), 8, carried[batch_stats.NAME]
    )
    assert carry.names == ("key_encoder", "queue", batch_stats.NAME)
    updated = carry.update(carried, params, handed, np.int32(1))
    assert set(updated) == set(carry.names)
    assert_close(updated[batch_stats.NAME], handed[batch_stats.NAME])
    assert_close(updated["queue"][:2], key_BD[:2])


def test_evaluation_of_contrast_moves_no_statistics_and_uses_them_for_queries():
    _, params, carried, loss_fn = losses("contrast", "moco_v3", train=False)
    loss, metrics = loss_fn(params, carried, BATCH, keys_of())
    assert CARRY_INPUT not in metrics
    other = jax.tree.map(lambda leaf: 1.5 * leaf, carried[batch_stats.NAME])
    changed = loss_fn(params, {**carried, batch_stats.NAME: other}, BATCH, keys_of())[0]
    assert abs(loss - changed) > 1e-4
