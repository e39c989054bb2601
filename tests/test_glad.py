"""GLAD: adaptors that start as nothing, two paths on one backbone, and what trains what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from flax_adapt import (
    defaults,
    keys,
    models,
    objectives,
    optim,
    rules,
    sharding,
    weights,
)
from flax_adapt.errors import UserError
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.surgery import adaptors

KINDS = {
    "vector": defaults.adaptor(),
    "keywise": defaults.adaptor(keywise=True),
    "mixing": defaults.adaptor(kind="mixing"),
    "bottleneck": defaults.adaptor(kind="bottleneck", hidden=5),
}
MODELS = {"vit": tiny.MODEL, "bert": tiny.TEXT_MODEL}
REGULARIZERS = ("preserve", "masked", "none")


def build(name, kind, task="classify", **options):
    adaptor = KINDS[kind] if kind else None
    return tiny.build(task, {**MODELS[name], "adaptor": adaptor}, **options)


def inputs(name):
    if name == "vit":
        return tiny.batch_of(8)
    return tiny.text_batch_of(8, packed=False)  # some rows are padded


def at_start(params):
    """Random weights everywhere but in the adaptors, which are as they begin."""
    return rules.map_named(
        lambda name, leaf: (
            leaf * 0
            if adaptors.is_adaptor(name) and not name.endswith("squeeze")
            else leaf
        ),
        params,
    )


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def apply(model, params, batch, **options):
    run = functools.partial(model.apply, **options)
    return jax.jit(lambda p: run({"params": p}, batch[model.modality], None))(params)


def test_at_the_start_the_adapted_path_is_the_other_to_the_bit(name, kind):
    adapted, plain = build(name, kind), build(name, None)
    params, batch = at_start(tiny.params_of(adapted)), inputs(name)
    ours, theirs = (apply(model, params, batch) for model in (adapted, plain))
    np.testing.assert_array_equal(ours, theirs)
    # What the fresh adaptors of a stage are.
    fresh = adaptors.leaves_of(
        rules.names(models.init_params(adapted, jax.random.key(0)))
    )
    assert fresh
    moved = tiny.params_of(adapted)
    assert not np.allclose(apply(adapted, moved, batch), apply(plain, moved, batch))


def test_dropping_the_adaptors_gives_exactly_the_backbone(name, kind):
    adapted, plain = build(name, kind), build(name, None)
    params = tiny.params_of(adapted)
    dropped = adaptors.drop(params)
    assert rules.names(dropped) == rules.names(weights.shapes(plain))
    weights.adopt(weights.shapes(plain), dropped)  # strictly
    kept = {k: v for k, v in zip(rules.names(params), jax.tree.leaves(params), strict=True)
            if not adaptors.is_adaptor(k)}  # fmt: skip
    for leaf, value in zip(rules.names(dropped), jax.tree.leaves(dropped), strict=True):
        assert value is kept[leaf]


def attention_in_numpy(config, kind, leaves, x_BLD, sees_BLM):
    """METHODS S4, a head at a time, in float64."""
    leaves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), leaves)
    adaptor, heads = leaves["adaptor"], config.heads
    q, k, v = (
        (x_BLD @ leaves[part]["kernel"] + leaves[part]["bias"]).reshape(
            *x_BLD.shape[:2], heads, -1
        )
        for part in ("query", "key", "value")
    )
    raw = np.einsum("blhk,bmhk->bhlm", q, k)
    if kind == "mixing":
        raw = np.einsum("gh,bhlm->bglm", np.eye(heads) + adaptor["head_mixing"], raw)
    else:
        factor = np.broadcast_to(1 + adaptor["logit_scale"], (heads, q.shape[-1]))
        if kind == "keywise":
            factor = factor + adaptor["key_scale"]
        raw = np.einsum("blhk,bmhk->bhlm", q, k * factor)
    logits = raw / np.sqrt(q.shape[-1])
    logits = np.where(sees_BLM[:, None], logits, -1e30)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    o = np.einsum("bhlm,bmhk->blhk", p, v).reshape(x_BLD.shape)
    if kind == "mixing":
        o = o + o @ adaptor["channel_mixing"]
    elif kind == "bottleneck":
        h = o @ adaptor["squeeze"] + adaptor["squeeze_shift"]
        h = np.asarray(jax.nn.gelu(h, approximate=False))
        o = o + h @ adaptor["widen"] + adaptor["widen_shift"]
    else:
        o = o * (1 + adaptor["value_scale"]) + adaptor["value_shift"]
    return o @ leaves["out"]["kernel"] + leaves["out"]["bias"]


def test_the_attention_is_the_formula_also_under_a_padding_mask(kind):
    model = build("bert", kind)
    layer = models.layers.Attention(model.config, models.layers.NORMAL, jnp.float32)
    rng = np.random.default_rng(0)
    x_BLD = rng.standard_normal((2, 5, 16)).astype(np.float32)
    sees_BLM = np.ones((2, 5, 5), bool)
    sees_BLM[1, :, 3:] = False
    params = layer.init(jax.random.key(0), x_BLD, sees_BLM)["params"]
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32), params
    )
    found = layer.apply({"params": params}, x_BLD, sees_BLM)
    expected = attention_in_numpy(model.config, kind, params, x_BLD, sees_BLM)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # What is padded has no influence on what is not.
    other = x_BLD.copy()
    other[1, 3:] += 1
    again = layer.apply({"params": params}, other, sees_BLM)
    np.testing.assert_array_equal(again[1, :3], found[1, :3])


def section(regularizer, name="vit", **changes):
    masked = None
    if name != "vit":
        masked = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)
    return ConfigDict(defaults.glad(masked, regularizer=regularizer, **changes))


def parts(regularizer, name="vit", kind="vector", **changes):
    """(loss, parameters, frozen) of objective glad."""
    config, model = section(regularizer, name, **changes), build(name, kind)
    params = tiny.params_of(model)
    task, beside = objectives.beside_of(config), None
    if task is not None:
        beside = build(name, None, task)
        params = {**tiny.params_of(beside, seed=2), **params}
    frozen = {"start": tiny.params_of(build(name, None, "encoder"), seed=1)}
    loss_fn = objectives.build(config, model, beside=beside)
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


def of_backbone(leaf):
    return leaf.startswith("encoder/") and not adaptors.is_adaptor(leaf)


# No gradient in exact arithmetic (key bias), or none with these inputs (fixed, unused).
SILENT = ("attention/key/bias", "position", "embed/token_type")


def noisy(leaf):
    return leaf.endswith(SILENT)


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize("regularizer", ["preserve", "masked"])
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


@pytest.mark.parametrize("name", ["vit", "bert"])
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


def test_both_paths_share_what_comes_before_the_first_adaptor():
    """Patch embedding and the first queries, keys and values: four products once."""
    model, batch = build("vit", "vector"), inputs("vit")
    plain, params = models.without_adaptor(model), tiny.params_of(model)

    def products(same):
        def both(params, other):
            of_plain = {"params": params if same else other}
            solved = model.apply({"params": params}, batch["image"], None)
            return solved, plain.apply(of_plain, batch["image"], None, method="encode")

        text = jax.jit(both).lower(params, params).compile().as_text()
        return text.count(" dot(")

    assert products(same=False) - products(same=True) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_has_one_rule(kind):
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    shapes = weights.shapes(build("vit", kind))
    assert sharding.tree_shardings(shapes, mesh)
    for decay in optim.DECAY:
        table = rules.assign("decay", optim.DECAY[decay], shapes)
        named = zip(rules.names(table), jax.tree.leaves(table), strict=True)
        assert not any(value for leaf, value in named if adaptors.is_adaptor(leaf))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            dict(kind="lora", keywise=False, hidden=0),
            "model.adaptor.kind='lora' is unkn",
        ),
        (
            dict(kind="bottleneck", keywise=False, hidden=0),
            "hidden=0 must be at least 1",
        ),
        (dict(kind="vector", keywise=False, hidden=3), "and 0 for others"),
        (
            dict(kind="mixing", keywise=True, hidden=0),
            "keywise must be False for kind=",
        ),
    ],
)
def test_an_adaptor_that_cannot_be_is_named(fields, text):
    with pytest.raises(UserError, match=text):
        AdaptorConfig(**fields)


def test_glad_needs_adaptors_and_its_masked_model():
    with pytest.raises(UserError, match=r"'glad' needs model\.adaptor"):
        objectives.build(section("none"), build("vit", None))
    with pytest.raises(UserError, match=r"trains the task 'mae' beside"):
        objectives.build(section("masked"), build("vit", "vector"))


def test_a_folder_without_adaptors_is_all_that_others_read(tmp_path):
    model = build("vit", "vector")
    params = tiny.params_of(model)
    for format in ("huggingface", "timm"):
        with pytest.raises(UserError, match="hold"):
            weights.save_pretrained(tmp_path / "a", model, params, format=format)
    weights.save_pretrained(tmp_path / "b", model, params, format="orbax")
    again, loaded, _ = weights.from_pretrained(tmp_path / "b", "classify")
    assert again.config.adaptor == model.config.adaptor
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
