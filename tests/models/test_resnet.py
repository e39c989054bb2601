"""Laws of the ResNets; that they equal the references is tests/parity's business."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny, tiny_resnet
from support.tiny_resnet import MODEL, RESIZED, build, shapes, stored_of

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.models import batch_stats
from flax_adapt.weights import strict

PUBLISHED = models.resnet_config("50", image_size=224, channels=3)
TASKS = sorted(models.TASKS["resnet"])


def number_of_parameters(config):
    """Of the encoder; running statistics are none."""
    params, _ = batch_stats.split(shapes(tiny.build("encoder", config)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["encoder"]))


@pytest.mark.parametrize("width", [2048, 8192, 32_768])
def test_a_resized_resnet50_has_the_parameters_of_the_paper(width):
    config = {**PUBLISHED, "last_block": {**RESIZED, "width": width}}
    assert number_of_parameters(config) == 22_455_360 + 2_564 * width


def test_an_ordinary_resnet50_has_those_of_torchvision():
    assert number_of_parameters(PUBLISHED) == 23_508_032


def test_only_the_last_block_is_of_another_shape():
    config = {**PUBLISHED, "last_block": {**RESIZED, "width": 8192}}
    old, new = (
        strict.flatten(shapes(tiny.build("encoder", one)))
        for one in (PUBLISHED, config)
    )
    changed = {
        leaf.removesuffix(leaf.rpartition("/")[2])
        for leaf in {*old, *new}
        if leaf not in old or old[leaf].shape != new[leaf].shape
    }
    block = "encoder/stage_4/block_02"
    names = ("norm3", "shortcut/norm")
    assert changed == {
        f"{block}/conv3/",
        f"{block}/shortcut/conv/",
        *(
            f"{start}{block}/{name}/"
            for name in names
            for start in ("", "batch_stats/")
        ),
    }
    assert new[f"{block}/conv3/kernel"].shape == (1, 1, 512, 8192)
    assert new[f"{block}/shortcut/conv/kernel"].shape == (1, 1, 2048, 8192)
    # At D = 2048 there is a shortcut, too.
    config = {**PUBLISHED, "last_block": {**RESIZED, "width": 2048}}
    same = strict.flatten(shapes(tiny.build("encoder", config)))
    assert {*same} == {*new}


def test_the_maps_of_a_resnet50_have_the_published_sizes():
    model = tiny.build("encoder", PUBLISHED)
    image = jnp.zeros((2, 224, 224, 3))
    states = jax.eval_shape(
        lambda stored: model.apply(
            batch_stats.variables(stored), image, None, method="encode"
        ),
        shapes(model),
    )
    stages = [(56, 256, 3), (28, 512, 4), (14, 1024, 6), (7, 2048, 3)]
    assert [state.shape for state in states] == [
        (2, size, size, width) for size, width, depth in stages for _ in range(depth)
    ]


@pytest.mark.parametrize("task", TASKS)
def test_a_model_tells_the_config_and_the_task_it_was_built_from(task):
    model = build(task, last_block=RESIZED)
    assert models.task_of(model) == task
    again = tiny.build(
        task,
        models.config_of(model),
        pooling="mean",
        projector=tiny_resnet.HEADS if task == "contrast" else None,
    )
    assert again == model
    assert hash(again) == hash(model)  # or nothing could be compiled for it


@pytest.mark.usefixtures("strict_dtypes")
def test_features_are_the_mean_of_the_last_map_wide_and_not_negative():
    exact = build("encoder", last_block=RESIZED)
    coarse = build("encoder", last_block=RESIZED, dtype="bfloat16")
    variables = batch_stats.variables(stored_of(exact))
    image = tiny.batch_of()["image"]

    @jax.jit
    def run(variables, image):
        embedded = exact.apply(variables, image, "mean", method="embed")
        states = exact.apply(variables, image, None, method="encode")
        return embedded, states, exact.apply(variables, image, None)

    embedded, states, (last, pooled) = run(variables, image)
    assert embedded.shape == (8, RESIZED["width"])
    np.testing.assert_array_equal(last, states[-1])
    np.testing.assert_allclose(embedded, np.mean(last, axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(embedded, pooled)
    assert np.min(embedded) == 0 < np.max(embedded)
    found = jax.jit(lambda *a: coarse.apply(*a, "mean", method="embed"))(
        variables, image
    )
    assert found.dtype == jnp.float32
    assert not np.array_equal(found, embedded)
    np.testing.assert_allclose(found, embedded, atol=0.1 * np.max(embedded))


def test_eps_and_momentum_are_those_of_the_config():
    """eps is as good as added to every variance; statistics move in proportion."""
    small = dict(planes=[2], depths=[1])
    models_of = [
        build("encoder", batch_norm_eps=eps, batch_norm_momentum=momentum, **small)
        for eps, momentum in ((0.25, 0.5), (1.25, 0.125))
    ]
    stored = stored_of(models_of[0])
    more = jax.tree.map_with_path(
        lambda path, leaf: leaf + (path[-1].key == "var"), stored
    )
    image, key_B = tiny.batch_of()["image"], jax.random.split(jax.random.key(0), 8)

    def run(model, stored):
        variables, options = (
            batch_stats.variables(stored),
            dict(mutable=["batch_stats"]),
        )
        evaluated = model.apply(variables, image, "mean", method="embed")
        _, moved = model.apply(variables, image, key_B, **options)
        old, new = (strict.flatten(one["batch_stats"]) for one in (variables, moved))
        return evaluated, {leaf: new[leaf] - old[leaf] for leaf in old}

    run = jax.jit(run, static_argnums=0)
    (one, moves), (two, moves_less) = run(models_of[0], more), run(models_of[1], stored)
    np.testing.assert_allclose(one, two, rtol=1e-4)
    # Of the first norm alone: the others stand on what it gives.
    leaf = "encoder/stem/norm/mean"
    np.testing.assert_allclose(moves[leaf], 4 * moves_less[leaf], rtol=1e-4)


def test_a_stored_tree_is_taken_apart_and_put_together():
    stored = {
        "encoder": {"a": 1},
        "head": {"b": 2},
        "batch_stats": {"encoder": {"c": 3}},
    }
    params, statistics = batch_stats.split(stored)
    assert params == {"encoder": {"a": 1}, "head": {"b": 2}}
    assert statistics == {"encoder": {"c": 3}}
    assert batch_stats.join(params, statistics) == stored
    variables = batch_stats.variables(stored)
    assert variables == {"params": params, "batch_stats": statistics}
    assert batch_stats.stored_tree({**variables, "sums": {}}) == stored
    # Of a transformer nothing changes.
    assert batch_stats.split(params) == (params, {})
    assert batch_stats.join(params, {}) is params
    assert batch_stats.variables(params) == {"params": params}


@pytest.mark.parametrize(
    ("task", "changes", "text"),
    [
        ("mae", {}, r"task of a resnet model.*'classify', 'contrast', 'encoder'"),
        ("classify", dict(pooling="cls"), r"pooling='cls' is unknown.*\['mean'\]"),
        ("contrast", dict(pooling="cls"), r"pooling='cls' is unknown.*\['mean'\]"),
        ("encoder", dict(dropout=0.1), "model.dropout=0.1 must be 0: a resnet"),
        ("encoder", dict(drop_path=0.1), "model.drop_path=0.1 must be 0: a resnet"),
        ("encoder", dict(planes=[2]), r"planes=\(2,\) and model.depths=\(1, 2\)"),
        ("encoder", dict(depths=[1, 0]), r"depths=\(1, 0\) must have a number"),
        ("encoder", dict(planes=[1] * 5, depths=[1] * 5), "of 1 to 4 stages"),
        ("encoder", dict(batch_norm_momentum=0.0), "batch_norm_momentum=0.0 must lie"),
        (
            "encoder",
            dict(last_block={**RESIZED, "kind": "linear"}),
            "last_block.kind='linear' must be 'resized' for a resnet",
        ),
        (
            "encoder",
            dict(last_block={**RESIZED, "relu": False}),
            "last_block.relu=False must be True for a resnet",
        ),
        (
            "encoder",
            dict(last_block={**RESIZED, "norm_width": 2}),
            "last_block.norm_width=2 must be 0 for a resnet",
        ),
    ],
)
def test_a_wrong_config_names_the_field(task, changes, text):
    with pytest.raises(UserError, match=text):
        build(task, **changes)


def test_other_fields_and_wrong_inputs_are_named():
    config = {**MODEL, "pooler": False}
    del config["stem_width"]
    with pytest.raises(
        UserError, match=r"missing \['stem_width'\], unknown \['pooler'\]"
    ):
        tiny.build("encoder", config)
    model = build("encoder")
    variables = batch_stats.variables(shapes(model))
    with pytest.raises(UserError, match=r"\(9, 9, 1\).*\(8, 8, 1\)"):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, 9, 9, 1)), None)
    with pytest.raises(UserError, match="pooling of a resnet: pooling='cls'"):
        model.apply(variables, jnp.zeros((1, 8, 8, 1)), "cls", method="embed")
