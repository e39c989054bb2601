"""Penalties with every objective, on any devices, in parts; and what a stage needs."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.depth import long_except
from support.tiny_meshes import WAYS, mesh_of
from support.tiny_penalties import (
    FRESH,
    OBJECTIVES,
    RECONSTRUCT,
    SECTIONS,
    batch_of,
    given,
    is_text,
    keys_of,
    model_of,
    section,
)

from flax_adapt import defaults, models, objectives
from flax_adapt.base import checks, rules
from flax_adapt.base.errors import UserError
from flax_adapt.objectives import classify, penalties
from flax_adapt.surgery import adaptors
from flax_adapt.train import sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

pytestmark = pytest.mark.usefixtures("compile_fast")
ANY = ("weight_distance", "l2_sp", "ewc")


def test_with_replay_of_labels_the_objective_is_of_the_target_alone():
    model, batch = model_of("classify"), batch_of("classify")
    params = tiny.params_of(model)
    frozen = given(params)
    batch["weight"][[1, 5]] = 0  # of the target and of the source
    plain = objectives.build(ConfigDict(defaults.classify()), model)
    loss_fn = penalties.add(plain, [section("er"), section("der")], model)
    _, metrics = loss_fn(params, frozen, batch, keys_of(batch))
    assert metrics["accuracy"].count == np.sum(batch["weight"] * (batch["domain"] == 0))
    target = {**batch, "weight": batch["weight"] * (batch["domain"] == 0)}
    own = plain(params, frozen, target, keys_of(batch))[0]
    expected = own + 0.8 * metrics["er"].value() + 0.9 * metrics["der"].value()
    np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "passes"),
    [
        (["er", "der"], ["ours"]),
        (["lwf"], ["ours", "old"]),
        (["r3f"], ["ours", "noised"]),
        (["l2_sp", "ewc"], ["ours"]),
    ],
)
def test_the_model_runs_once_for_the_objective_and_all_penalties(names, passes):
    model, batch, seen = model_of("classify"), batch_of("classify"), []
    params = tiny.params_of(model)
    plain = objectives.build(ConfigDict(defaults.classify()), model)
    loss_fn = penalties.add(plain, [section(name) for name in names], model, FRESH)

    def record(call, arguments, options, context):
        if isinstance(context.module, models.Classifier):
            seen.append(context.method_name)
        return call(*arguments, **options)

    with nn.intercept_methods(record):
        jax.eval_shape(loss_fn, params, given(params), batch, keys_of(batch))
    assert seen.count("__call__") == len(passes)


def names_for(name):
    tells_classes = OBJECTIVES[name]["name"] in classify.OF_CLASSES
    return [*SECTIONS] if tells_classes else ANY


@functools.cache
def composed(name):
    """(loss, loss without penalties, parameters, frozen, batch) with all that fit."""
    model = model_of(name, dropout=0.1)
    params = tiny.params_of(model)
    frozen = given(params)
    if is_text(name):
        frozen["teacher"] = {}
    plain = objectives.build(ConfigDict(OBJECTIVES[name]), model)
    sections = [section(each) for each in names_for(name)]
    loss_fn = penalties.add(plain, sections, model, FRESH)
    return loss_fn, plain, params, frozen, batch_of(name)


# A loss of pixels, one of labels, one of texts, one that has adaptors.
USUAL = ("reconstruct", "classify", "classify_text", "glad")


@pytest.mark.parametrize("name", long_except(USUAL, OBJECTIVES))
def test_penalties_add_up_with_every_objective_and_leave_its_metrics(name):
    loss_fn, plain, params, frozen, batch = composed(name)
    if "er" in names_for(name):
        own = {**batch, "weight": batch["weight"] * (batch["domain"] == 0)}
    else:
        own = batch
    loss, metrics = jax.jit(loss_fn)(params, frozen, batch, keys_of(batch))
    alone, measured = jax.jit(plain)(params, frozen, own, keys_of(batch))
    added = sum(SECTIONS[n]["weight"] * metrics[n].value() for n in names_for(name))
    np.testing.assert_allclose(loss, alone + added, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].value(), loss, rtol=1e-6)
    assert {*metrics} == {*measured, *names_for(name)}
    assert all(metrics[n].value() > 1e-5 for n in names_for(name))


@pytest.mark.parametrize("stops", [True, False])
def test_what_glad_keeps_from_the_backbone_no_penalty_lets_through(stops):
    """The logits that penalties look at have a gradient of their own."""
    config = ConfigDict(defaults.glad(stop_backbone=stops))
    model, batch = model_of("glad"), batch_of("glad")
    params = tiny.params_of(model)
    plain = objectives.build(config, model)
    loss_fn = penalties.add(plain, [section("er"), section("r3f")], model)

    def ce(params):
        return loss_fn(params, given(params), batch, keys_of(batch))[1]["ce"].value()

    found = rules.name_leaves(jax.jit(jax.grad(ce))(params))
    assert np.any(found["encoder/block_00/mlp/up/kernel"]) == (not stops)
    learnt = [*adaptors.leaves_of(found), "head/kernel"]
    assert all(np.any(found[leaf]) for leaf in learnt)


def test_no_gradient_reaches_what_is_frozen():
    loss_fn, _, params, frozen, batch = composed("classify")
    floats = {k: v for k, v in frozen.items() if k not in ("start", "ewc", "der")}

    def loss(params, floats):
        return loss_fn(params, {**frozen, **floats}, batch, keys_of(batch))[0]

    grads, frozen_grads = jax.jit(jax.grad(loss, (0, 1)))(params, floats)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen_grads))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


TX = optax.sgd(0.02)


@functools.cache
def train(mesh_name="one", accum_steps=1):
    """Metrics and parameters of two steps; rows that count differ from part to part."""
    mesh = mesh_of(mesh_name)
    loss_fn, _, params, frozen, _ = composed("classify")
    state = states.create(params, TX, mesh, seed=0, frozen=frozen)
    step = steps.make_train_step(loss_fn, TX, mesh, accum_steps)
    measured = []
    for number in range(2):
        batch = batch_of("classify", 16, number)
        batch["weight"][[0, 2, 4]] = 0
        state, metrics = step(state, sharding.put_batch(batch, mesh))
        measured.append({k: float(m.value()) for k, m in metrics.items()})
    return measured, jax.device_get(state.params)


@pytest.mark.parametrize(("mesh", "accum_steps"), WAYS)
def test_neither_devices_nor_parts_change_anything(mesh, accum_steps):
    """With all penalties: those on parameters are the same in every part."""
    ours, theirs = train(mesh, accum_steps), train()
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert one == pytest.approx(other, rel=2e-5, abs=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, ours[1], theirs[1])


def stage(name, /, **changes):
    """A section of a stage with this penalty."""
    more = {
        k: changes.pop(k) for k in ("objective", "replay", "init_from") if k in changes
    }
    fields = dict(
        objective=defaults.classify(), replay=dict(data=({},)), init_from="pretrained"
    )
    return ConfigDict({**fields, **more, "penalties": (section(name, **changes),)})


def check_penalties(section):
    found = checks.first_mistake(penalties.CHECKS, checks.Context(None, section, {}))
    if found is not None:
        raise UserError(found.text)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_stage_with_all_that_it_needs_is_right(name):
    right = stage(name)
    check_penalties(right)
    found = penalties.references_of(right)
    assert found == ({name: ("stage:a",)} if "of" in right.penalties[0] else {})


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("l2_sp", dict(name="l2"), "penalties.name='l2' is unknown.*'l2_sp'"),
        ("l2_sp", dict(weight=-1.0), "'l2_sp' weight=-1.0 must be at least 0"),
        ("l2_sp", dict(beta=-1.0), "'l2_sp' alpha=0.4 and beta=-1.0 must be"),
        ("r3f", dict(noise="pink"), r"'r3f' noise='pink' must be one of \['normal'"),
        ("r3f", dict(eps=0.0), "'r3f' eps=0.0 must be above 0"),
        ("lwf", dict(temperature=0.0), "'lwf' temperature=0.0 must be above 0"),
        ("l2_sp", dict(init_from="scratch"), "'l2_sp' needs weights to stay near"),
        ("er", dict(replay=None), "'er' is of examples of earlier tasks.*`replay`"),
        (
            "er",
            dict(objective=defaults.regress()),
            "'er' compares classes: .* not 'regress'",
        ),
        (
            "r3f",
            dict(objective=RECONSTRUCT),
            "'r3f' compares classes: .* one of \\('classify', 'glad'\\), not 'recon",
        ),
    ],
)
def test_errors_name_the_penalty_and_the_field(name, changes, text):
    with pytest.raises(UserError, match=text):
        check_penalties(stage(name, **changes))


def test_a_penalty_is_there_once():
    twice = stage("er")
    twice.penalties = (section("er"), section("er"))
    with pytest.raises(UserError, match=r"penalties=\['er', 'er'\]: each .* once"):
        check_penalties(twice)
