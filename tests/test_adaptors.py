"""Adaptors: nothing at first, the formula after that, dropped to the leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_glad import KINDS, MODELS, at_start, build, inputs

from flax_adapt import anchors, models, optim, rules, sharding, surgery, weights
from flax_adapt.errors import UserError
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.surgery import adaptors


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
    dropped = surgery.drop_adaptors(params)
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_has_one_rule_and_is_neither_decayed_nor_bounded(kind):
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    shapes = weights.shapes(build("vit", kind))
    assert sharding.tree_shardings(shapes, mesh)
    for table in (*optim.DECAY.values(), anchors.BOUNDED):
        found = rules.assign("a table", table, shapes)
        named = zip(rules.names(found), jax.tree.leaves(found), strict=True)
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
