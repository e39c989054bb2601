"""GLAD: two paths on one backbone, and which of them trains what."""

import itertools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.depth import long_except
from support.tiny_glad import REGULARIZERS, build, inputs

from flax_adapt import defaults, models, objectives
from flax_adapt.base import keys, rules
from flax_adapt.base.errors import UserError
from flax_adapt.stage import check
from flax_adapt.surgery import adaptors


def section(regularizer, name="vit", **changes):
    masked = None
    if name != "vit":
        masked = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)
    return ConfigDict(defaults.glad(masked, regularizer=regularizer, **changes))


def parts(regularizer, name="vit", kind="vector", **changes):
    """(loss, parameters, frozen) of objective glad."""
    config, model = section(regularizer, name, **changes), build(name, kind)
    params = tiny.params_of(model)
    task, beside = objectives.second_task_of(config), None
    if task is not None:
        beside = build(name, None, task)
        params = {**tiny.params_of(beside, seed=2), **params}
    frozen = {"start": tiny.params_of(build(name, None, "encoder"), seed=1)}
    loss_fn = objectives.build(config, model, second_model=beside)
    return loss_fn, params, frozen


def gradient(loss_fn, params, frozen, name, metric=None):
    """{leaf: whether it receives any gradient} of the loss, or of one of its metrics."""
    batch = inputs(name)
    key_B = keys.example_keys(jax.random.key(0), batch["position"])

    def value(params):
        loss, metrics = loss_fn(params, frozen, batch, key_B)
        return loss if metric is None else metrics[metric].value()

    grads = jax.jit(jax.grad(value))(params)
    return {
        leaf: bool(np.any(np.asarray(grad) != 0))
        for leaf, grad in zip(rules.names(grads), jax.tree.leaves(grads), strict=True)
    }


def refuse_config(objective):
    model = defaults.stage_model(fresh=("head",), adaptor=defaults.adaptor())
    fields = dict(objective=objective, model=model, init_from="scratch")
    check.experiment(tiny.experiment(tiny.finetune(**fields)))


def refuse_loss(objective):
    objectives.build(objective, build("vit", "vector"))


def of_backbone(leaf):
    return leaf.startswith("encoder/") and not adaptors.is_adaptor(leaf)


# No gradient in exact arithmetic (key bias), or none with these inputs (fixed, unused).
SILENT = ("attention/key/bias", "position", "embed/token_type")


def noisy(leaf):
    return leaf.endswith(SILENT)


@pytest.mark.parametrize(
    ("regularizer", "name"),
    long_except(
        [("preserve", "vit"), ("masked", "bert")],
        itertools.product(("preserve", "masked"), ("vit", "bert")),
    ),
)
def test_each_term_trains_what_it_should(name, regularizer):
    """The task: all but the decoder. The other path: backbone and decoder alone."""
    loss_fn, params, frozen = parts(regularizer, name)
    beside = ("decoder/", "mlm/")
    of_task = gradient(loss_fn, params, frozen, name, "ce")
    metric = {
        "preserve": "preserve",
        "masked": "reconstruct" if name == "vit" else "mlm",
    }
    of_other = gradient(loss_fn, params, frozen, name, metric[regularizer])
    for leaf in of_task:
        if noisy(leaf):
            continue
        assert of_task[leaf] == (not leaf.startswith(beside)), leaf
        wanted = of_backbone(leaf) or leaf.startswith(beside)
        assert of_other[leaf] == wanted, leaf


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_the_gradient_of_the_task_can_be_kept_from_the_backbone(regularizer):
    loss_fn, params, frozen = parts(regularizer, stop_backbone=True)
    of_task = gradient(loss_fn, params, frozen, "vit", "ce")
    trained = {leaf for leaf, moves in of_task.items() if moves}
    assert {leaf for leaf in trained if of_backbone(leaf)} == set()
    assert any(adaptors.is_adaptor(leaf) for leaf in trained)
    assert "head/kernel" in trained
    whole = gradient(loss_fn, params, frozen, "vit")
    moves = whole["encoder/block_00/mlp/up/kernel"]
    assert moves == (regularizer != "none")


@pytest.mark.parametrize("name", long_except(["vit"], ["vit", "bert"]))
def test_the_loss_is_the_sum_of_its_terms(name):
    values, batch = {}, inputs(name)
    key_B = keys.example_keys(jax.random.key(0), batch["position"])
    for regularizer in REGULARIZERS:
        loss_fn, params, frozen = parts(regularizer, name, weight=2.0)
        loss, metrics = jax.jit(loss_fn)(params, frozen, batch, key_B)
        values[regularizer] = float(loss), metrics
    ce = values["none"][0]
    for regularizer, metric in (
        ("preserve", "preserve"),
        ("masked", "reconstruct" if name == "vit" else "mlm"),
    ):
        loss, metrics = values[regularizer]
        np.testing.assert_allclose(metrics["ce"].value(), ce, rtol=1e-5)
        more = metrics[metric].value()
        assert more > 0.01
        np.testing.assert_allclose(loss, ce + 2 * more, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_masked_model_is_run_without_the_dropout_of_the_classifier(name):
    """The reference: masked modelling by itself, with no dropout anywhere."""
    config, batch = section("masked", name), inputs(name)
    key_B = keys.example_keys(jax.random.key(0), batch["position"])
    task, metric = ("mae", "reconstruct") if name == "vit" else ("mlm", "mlm")
    rates, values = dict(dropout=0.5, drop_path=0.5), []
    for options in ({}, rates):
        beside = build(name, None, task, **options)
        model = build(name, "vector", **options)
        params = {**tiny.params_of(beside, seed=2), **tiny.params_of(model)}
        loss_fn = objectives.build(config, model, second_model=beside)
        _, metrics = jax.jit(loss_fn)(params, {}, batch, key_B)
        values.append((float(metrics[metric].value()), float(metrics["ce"].value())))
    (plain, ce), (found, dropped) = values
    np.testing.assert_allclose(found, plain, rtol=1e-6)
    assert abs(dropped - ce) > 1e-3  # that of the classifier is there


@pytest.mark.parametrize("preserve", ["features", "attention"])
def test_the_start_is_at_distance_zero_whatever_the_adaptors(preserve):
    loss_fn, params, _ = parts("preserve", preserve=preserve)
    frozen = {"start": adaptors.drop({"encoder": params["encoder"]})}
    batch = inputs("vit")
    key_B = keys.example_keys(jax.random.key(0), batch["position"])
    _, metrics = jax.jit(loss_fn)(params, frozen, batch, key_B)
    assert float(metrics["preserve"].value()) == 0
    moved = jax.tree.map(lambda leaf: leaf * 1.1, frozen)
    _, metrics = jax.jit(loss_fn)(params, moved, batch, key_B)
    assert float(metrics["preserve"].value()) > 1e-4


def test_the_distance_of_attention_is_by_hand():
    """The mean over blocks, tokens and channels of the squared difference."""
    loss_fn, params, frozen = parts("preserve", preserve="attention")
    plain, batch = build("vit", None, "encoder"), inputs("vit")
    key_B = keys.example_keys(jax.random.key(0), batch["position"])
    _, metrics = jax.jit(loss_fn)(params, frozen, batch, key_B)

    def added(params):
        _, found = plain.apply(
            {"params": params},
            batch["image"],
            None,
            method="encode",
            mutable=[models.ATTENTIONS],
        )
        blocks = found[models.ATTENTIONS]["encoder"]
        return np.stack([blocks[b]["attention"]["added"][0] for b in sorted(blocks)])

    expected = np.mean((added(params) - added(frozen["start"])) ** 2)
    np.testing.assert_allclose(metrics["preserve"].value(), expected, rtol=1e-5)


def products(loss_fn, params, frozen, of):
    """How many matrix products XLA leaves of `of(loss, metrics)`."""
    batch = inputs("vit")
    key_B = keys.example_keys(jax.random.key(0), batch["position"])

    def value(params, frozen):
        return of(*loss_fn(params, frozen, batch, key_B))

    text = jax.jit(value).lower(params, frozen).compile().as_text()
    return text.count(" dot(")


@pytest.mark.parametrize(
    ("regularizer", "metric", "shared"),
    [("preserve", "preserve", 4), ("masked", "reconstruct", 0)],
)
def test_the_paths_share_what_is_the_same_in_both(regularizer, metric, shared):
    """Of "preserve" patch embedding and the first queries, keys and values: four products."""
    given = parts(regularizer)
    alone = [
        products(*given, lambda loss, metrics, name=name: metrics[name].value())
        for name in ("ce", metric)
    ]
    both = products(*given, lambda loss, metrics: loss)
    assert sum(alone) - both == shared


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(weight=-1.0), r"objective\.weight=-1\.0 must be at least 0, and finite"),
        (dict(weight=float("nan")), r"objective\.weight=nan must be at least 0"),
        (dict(weight=float("inf")), r"objective\.weight=inf must be at least 0"),
        (dict(layers=(99,)), r"objective\.layers=\(99,\) must name states 0 to 2"),
        (dict(layers=(-4,)), r"objective\.layers=\(-4,\) must name states 0 to 2"),
        (dict(layers=()), r"objective\.layers=\(\) must name states 0 to 2"),
        (dict(state="foo"), r"objective\.state='foo' is unknown; .*'cls', 'mean'"),
        (dict(preserve="foo"), r"objective\.preserve='foo' is unknown; .*'attention'"),
        (dict(masked=dict(name="foo")), r"objective\.masked\.name='foo' is unknown"),
        (dict(regularizer="foo"), r"objective\.regularizer='foo' is .*'masked'"),
    ],
)
@pytest.mark.parametrize("refuses", [refuse_config, refuse_loss])
def test_a_wrong_field_is_named_before_anything_runs(refuses, changes, text):
    with pytest.raises(UserError, match=text) as error:
        refuses(ConfigDict({**section("preserve"), **changes}))
    assert "\n" not in str(error.value)


def test_glad_needs_adaptors_and_its_masked_model():
    with pytest.raises(UserError, match=r"'glad' needs model\.adaptor"):
        objectives.build(section("none"), build("vit", None))
    with pytest.raises(UserError, match=r"trains a second task, 'mae'"):
        objectives.build(section("masked"), build("vit", "vector"))
