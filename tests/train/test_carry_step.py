"""What the step carries along: key encoder and queue after real steps, against NumPy."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from support import tiny
from support.tiny_contrast import (
    HEADS,
    QUEUE,
    SIZE,
    WEIGHT_B,
    batch_of,
    keys_of,
    model_of,
    section,
)

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import CARRY_INPUT, NOTHING_CARRIED
from flax_adapt.objectives import contrast
from flax_adapt.train import sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

TOTAL, DONE = 8, 2  # steps of the schedule, steps that are made
MOMENTUM = 0.9
SCHEDULES = {"moco_v3": "cosine", "moco_v2": "constant"}
MESHES = {
    "one": dict(data=1, fsdp=1, tensor=1),
    "eight": dict(data=4, fsdp=2, tensor=1),
}
# Every batch norm makes rounding larger: one in the projector, one in the predictor.
SHALLOW = {"moco_v3": dict(layers=1, predictor_layers=1), "moco_v2": {}}
# Adam would make whole steps of the rounding where a batch norm follows a bias.
TX = optax.sgd(0.1)


def mesh_of(name):
    sizes = MESHES[name]
    return sharding.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])


def objective(form):
    return section(form, momentum=MOMENTUM, momentum_schedule=SCHEDULES[form])


@functools.cache
def made(form):
    """(model, loss, what is carried, parameters)"""
    model = model_of(form, projector=HEADS[form] | SHALLOW[form])
    loss_fn = contrast.make_loss(objective(form), model, train=True)
    carry = contrast.make_carry(objective(form), TOTAL)
    return model, loss_fn, carry, tiny.params_of(model)


def views_of(number):
    """The batch of step `number`; some of its rows do not count."""
    views = tuple(tiny.batch_of(SIZE, 10 * number + seed)["image"] for seed in range(2))
    return batch_of() | {"views": views}


@functools.cache
def train(form, mesh_name):
    """[(parameters, extra)] before the first and after every step, and their metrics."""
    mesh, (_, loss_fn, carry, params) = mesh_of(mesh_name), made(form)
    state = states.create(params, TX, mesh, seed=3, carry=carry)
    train_step = steps.make_train_step(loss_fn, TX, mesh, carry=carry)
    history, measured = [], []
    for number in range(DONE + 1):
        # Copies: the step consumes the state it is given.
        history.append(jax.tree.map(np.array, (state.params, state.extra)))
        if number < DONE:
            batch = sharding.put_batch(views_of(number), mesh)
            state, metrics = train_step(state, batch)
            measured.append(metrics)
    return history, measured


def momentum_at(form, step):
    if SCHEDULES[form] == "constant":
        return MOMENTUM
    return 1 - (1 - MOMENTUM) * (1 + np.cos(np.pi * step / TOTAL)) / 2


@pytest.mark.parametrize("form", HEADS)
def test_the_key_encoder_averages_the_parameters_after_each_step(form):
    history, _ = train(form, "one")
    expected = {part: history[0][0][part] for part in ("encoder", "projector")}
    for step, (params, extra) in enumerate(history):
        if step > 0:
            m = momentum_at(form, step)
            expected = jax.tree.map(
                lambda known, new, m=m: m * known.astype(float) + (1 - m) * new,
                *(expected, {part: params[part] for part in expected}),
            )
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, extra["key_encoder"], expected)


@pytest.mark.parametrize("form", HEADS)
def test_every_step_moves_the_parameters_and_the_key_encoder(form):
    """By more than the tests around this one allow."""
    history, _ = train(form, "one")
    for before, after in itertools.pairwise(history):
        for one, other in zip(before, after, strict=True):
            moved = jax.tree.map(
                lambda old, new: np.abs(new - old).max(),
                *(tree.get("key_encoder", tree) for tree in (one, other)),
            )
            for part, distances in moved.items():
                assert max(jax.tree.leaves(distances)) > 1e-4, part


def test_the_queue_holds_the_keys_of_the_steps_at_their_places():
    """Of the key encoder as it was before the step; rows of weight 0 leave the old."""
    (model, *_), (history, _) = made("moco_v2"), train("moco_v2", "one")
    expected = np.array(history[0][1]["queue"])
    assert len(expected) == QUEUE == 3 * SIZE
    for number in range(DONE):
        key_BD = model.apply(
            {"params": history[number][1]["key_encoder"]},
            views_of(number)["views"][1],
            None,
            WEIGHT_B,
            method="project",
        )
        key_BD = key_BD / np.linalg.norm(key_BD, axis=1, keepdims=True)
        rows = np.flatnonzero(WEIGHT_B)
        expected[SIZE * number + rows] = key_BD[rows]
        queue_KD = history[number + 1][1]["queue"]
        np.testing.assert_allclose(queue_KD, expected, rtol=0, atol=1e-6)
    assert "queue" not in train("moco_v3", "one")[0][-1][1]


@pytest.mark.parametrize("form", HEADS)
def test_the_loss_of_a_step_sees_what_the_step_before_carried(form):
    (_, loss_fn, *_), (history, measured) = made(form), train(form, "one")
    losses = []
    for number, metrics in enumerate(measured):
        for _, extra in history[: number + 1]:
            given = (history[number][0], extra, views_of(number), keys_of())
            losses.append(float(jax.jit(loss_fn)(*given)[0]))
        np.testing.assert_allclose(metrics["loss"].value(), losses[-1], rtol=1e-6)
    # The second step would have had another loss with what was there at first.
    assert abs(losses[1] / losses[2] - 1) > 1e-5


@pytest.mark.parametrize("form", HEADS)
def test_what_a_loss_hands_over_is_no_metric(form):
    (_, loss_fn, *_), (history, measured) = made(form), train(form, "one")
    found = jax.eval_shape(loss_fn, *history[0], views_of(0), keys_of())[1]
    assert (CARRY_INPUT in found) == (form == "moco_v2")
    for metrics in measured:
        assert {*metrics} == {*found} - {CARRY_INPUT} | {"grad_norm", steps.BAD_LEAF}


@pytest.mark.parametrize("form", HEADS)
def test_what_is_carried_does_not_depend_on_the_devices(form):
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(close, train(form, "eight")[0], train(form, "one")[0])


@pytest.mark.parametrize(
    ("created", "stepped"),
    [(None, "moco_v3"), ("moco_v3", None), ("moco_v2", "moco_v3")],
)
def test_a_state_made_with_another_carry_than_the_step_is_refused(created, stepped):
    carries = [
        made(form)[2] if form else NOTHING_CARRIED for form in (created, stepped)
    ]
    mesh, (_, loss_fn, _, params) = mesh_of("one"), made("moco_v3")
    state = states.create(params, TX, mesh, seed=3, carry=carries[0])
    train_step = steps.make_train_step(loss_fn, TX, mesh, carry=carries[1])
    with pytest.raises(UserError, match="carry"):
        train_step(state, sharding.put_batch(views_of(0), mesh))


def test_a_step_that_carries_refuses_parts_of_a_batch():
    _, loss_fn, carry, _ = made("moco_v3")
    with pytest.raises(UserError, match=r"optim.accum_steps=2 must be 1"):
        steps.make_train_step(loss_fn, TX, mesh_of("one"), 2, carry)
