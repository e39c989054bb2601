"""The states of a teacher that are computed once per example are those of every step."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny

from flax_adapt import defaults, objectives
from flax_adapt.base import keys, rules
from flax_adapt.objectives import teacher
from flax_adapt.train import sharding

ROWS = 10
CASES = {
    "cls": {},
    "features of all tokens": dict(match="features", state="tokens", layers=(0, -1)),
}


def section_of(**changes):
    return ConfigDict({**defaults.distill(), **changes})


def batch_at(rows):
    """The rows of one small data set, as a training batch has them."""
    whole = tiny.batch_of(ROWS)
    batch = {name: leaf[rows] for name, leaf in whole.items() if name != "position"}
    return {**batch, "position": np.arange(len(rows), dtype=np.int32)}


def compute(objective, model, params):
    """The table, from batches of four examples in order, the last one padded."""
    in_order = np.arange(12).reshape(3, 4).clip(max=ROWS - 1)
    batches = [batch_at(rows) for rows in in_order]
    plan = teacher.plan_table(model, objective, ConfigDict(tiny.digits()), ROWS)
    arguments = (lambda batch: batch["image"], batches, ROWS, sharding.one_device())
    return plan.compute(model, params, *arguments)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_table_gives_the_loss_and_gradient_of_a_teacher_that_runs(changes):
    objective, model = section_of(masked_weight=0.0, **changes), tiny.build("mae")
    params = tiny.params_of(model)
    theirs = tiny.params_of(tiny.build("encoder"), seed=1)
    table = compute(objective, model, theirs)
    assert {leaf.shape[0] for leaf in table.values()} == {ROWS}
    batch = batch_at(np.array([9, 2, 0, 9, 5]))
    key_B = keys.example_keys(jax.random.key(0), batch["position"])
    loss_fn = objectives.build(objective, model)
    value = jax.jit(jax.value_and_grad(lambda p, f: loss_fn(p, f, batch, key_B)[0]))
    loss, gradient = value(params, {teacher.TABLE: table})
    expected, of_teacher = value(params, {"teacher": theirs})
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    of_teacher = rules.name_leaves(of_teacher)
    largest = max(np.abs(leaf).max() for leaf in of_teacher.values())
    for name, leaf in rules.name_leaves(gradient).items():
        np.testing.assert_allclose(leaf, of_teacher[name], rtol=0, atol=1e-6 * largest)


def test_an_evaluation_runs_the_teacher_itself():
    """Its examples are others: rows of a table would be those of training examples."""
    model = tiny.build("mae")
    theirs = tiny.params_of(tiny.build("encoder"), seed=1)
    loss_fn = objectives.build(section_of(masked_weight=0.0), model, train=False)
    batch, params = batch_at(np.arange(2)), tiny.params_of(model)
    wrong = {teacher.TABLE: {"00": np.zeros((2, 1, 16), np.float32)}}
    arguments = (batch, keys.example_keys(jax.random.key(0), batch["position"]))
    expected = loss_fn(params, {"teacher": theirs}, *arguments)[0]
    assert loss_fn(params, {"teacher": theirs, **wrong}, *arguments)[0] == expected
    assert loss_fn(params, {"teacher": params, **wrong}, *arguments)[0] != expected


def plan(objective=None, arch=tiny.MODEL, task="mae", count=100, **changes):
    data = changes.pop("data", None) or tiny.digits(**changes)
    objective, model = section_of(**objective or {}), tiny.build(task, arch)
    return teacher.plan_table(model, objective, ConfigDict(data), count)


def texts(**changes):
    return defaults.text_data("jsonl:none", "train", "none", seq_len=12, **changes)


MIXED = {
    **defaults.reconstruct(),
    "mixing": {**defaults.NO_MIXING, "operator": "mixup"},
}
OF_TEXT = dict(masked=defaults.mlm(tiny.MASK))
TEXT = dict(arch=tiny.TEXT_MODEL, task="mlm", objective=OF_TEXT)


@pytest.mark.parametrize(
    ("changes", "is_there"),
    [
        ({}, True),
        (dict(objective=dict(state="tokens")), True),
        (dict(objective=dict(match="predictions")), False),
        (dict(objective=dict(masked=MIXED)), False),
        (dict(augment={**defaults.NO_AUGMENT, "flip": True}), False),
        (dict(augment={**defaults.NO_AUGMENT, "min_crop_area": 0.5}), False),
        (dict(augment={**defaults.NO_AUGMENT, "erase_probability": 0.1}), False),
        (dict(count=100, objective=dict(teacher_cache_bytes=4 * 100 * 16)), True),
        (dict(count=101, objective=dict(teacher_cache_bytes=4 * 100 * 16)), False),
        (dict(objective=dict(teacher_cache_bytes=0)), False),
        (dict(data=texts(buckets=(8,)), **TEXT), True),  # CLS alone
        (dict(data=texts(layout="packed", buckets=()), **TEXT), True),
        (dict(data=texts(layout="packed", buckets=(8,)), **TEXT), False),
    ],
)
def test_there_is_a_table_where_inputs_stay_the_same_and_it_fits(changes, is_there):
    assert (plan(**changes) is not None) == is_there


def test_every_operation_of_an_augmentation_is_asked_for():
    strengths = {"brightness", "contrast", "saturation", "hue", "blur_sigma"}
    switches = {*defaults.NO_AUGMENT} - strengths - {"randaugment_magnitude"}
    assert {*teacher.OFF} == switches
    assert all(defaults.NO_AUGMENT[name] == off for name, off in teacher.OFF.items())
