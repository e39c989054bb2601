"""Adaptors: nothing at first, the formula after that, dropped to the leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from support import tiny
from support.tiny_glad import KINDS, MODELS, at_start, build, inputs
from support.tiny_meshes import mesh_of

from flax_adapt import defaults, models, objectives, surgery, weights
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.surgery import adaptors
from flax_adapt.train import anchors, optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adaptors_as_they_are_drawn_change_no_bit(name, kind, dtype):
    adapted, plain = build(name, kind, dtype=dtype), build(name, None, dtype=dtype)
    params, batch = models.init_params(adapted, jax.random.key(3)), inputs(name)
    # The head starts at zero: states, of all layers.
    ours = apply(adapted, params, batch, method="encode")
    theirs = apply(plain, surgery.drop_adaptors(params), batch, method="encode")
    for ours_BLD, theirs_BLD in zip(ours, theirs, strict=True):
        assert np.std(theirs_BLD) > 0.01
        np.testing.assert_array_equal(ours_BLD, theirs_BLD)


SMALL = [
    ("vector", "logit_scale"),
    ("keywise", "key_scale"),
    ("mixing", "head_mixing"),
    ("vector", "value_scale"),
    ("vector", "value_shift"),
    ("mixing", "channel_mixing"),
    ("bottleneck", "widen"),
    ("bottleneck", "widen_shift"),
]


@pytest.mark.parametrize(("kind", "leaf"), SMALL)
def test_a_thousandth_counts_in_bfloat16(kind, leaf):
    """What it changes is what it changes in float32, but for noise of the rounding."""
    config = build("bert", kind).config.adaptor
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 32, 32, 2, 16), np.float32).astype(jnp.bfloat16)
    sees_BLM = np.tile(np.arange(32) < 20, (32, 32, 1))

    def change(dtype):
        adaptor = models.layers.Adaptor(config, dtype)
        queries, keys, values = (x.astype(dtype) for x in (q * 8, k, v))

        def attend(queries, mix):
            return models.attention.attend(queries, keys, values, sees_BLM, mix)

        params = adaptor.init(jax.random.key(0), queries, attend)["params"]
        moved = {**params, leaf: params[leaf] + 1e-3}
        run = jax.jit(lambda params: adaptor.apply({"params": params}, queries, attend))
        return np.subtract(run(moved), run(params), dtype=np.float32)

    exact, found = change(jnp.float32), change(jnp.bfloat16)
    assert np.abs(exact).max() > 1e-4
    np.testing.assert_allclose(
        np.vdot(found, exact) / np.vdot(exact, exact), 1, atol=0.2
    )


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
    """S4, a head at a time, in float64."""
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
    tables = [table for name, table in optim.DECAY.items() if name != "all"]
    for table in (*tables, anchors.BOUNDED):
        found = rules.assign("a table", table, shapes)
        named = zip(rules.names(found), jax.tree.leaves(found), strict=True)
        of_adaptors = {value for leaf, value in named if adaptors.is_adaptor(leaf)}
        assert of_adaptors <= {False, anchors.FREE}


@pytest.mark.parametrize(
    ("kind", "leaf", "spec"),
    [
        ("mixing", "channel_mixing", ("tensor", None)),
        ("mixing", "head_mixing", (None, None)),
        ("bottleneck", "squeeze", ("tensor", None)),
        ("bottleneck", "widen", (None, "tensor")),
        ("bottleneck", "widen_shift", (None,)),
    ],
)
def test_large_adaptors_and_their_moments_are_split_as_heads_are(kind, leaf, spec):
    shapes = weights.shapes(build("vit", kind))
    laid = sharding.tree_shardings({"mu": shapes}, mesh_of("eight"))
    found = rules.name_leaves(laid)[f"mu/encoder/block_00/attention/adaptor/{leaf}"]
    assert found.is_equivalent_to(
        NamedSharding(found.mesh, PartitionSpec(*spec)), len(spec)
    )


@functools.cache
def step_of(kind, mesh_name, accum_steps):
    """(loss, parameters after a step along the gradient)"""
    mesh, model, tx = mesh_of(mesh_name), build("vit", kind), optax.sgd(1.0)
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    state = states.create(tiny.params_of(model), tx, mesh, seed=0)
    step = steps.make_train_step(loss_fn, tx, mesh, accum_steps)
    state, metrics = step(state, sharding.put_batch(tiny.batch_of(8), mesh))
    return jax.device_get((metrics["loss"].value(), state.params))


@pytest.fixture
def compiled_here():
    """No program from the cache: jaxlib 0.10 aborts in one of these if it is read back."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("compiled_here")
@pytest.mark.parametrize("kind", ["mixing", "bottleneck"])
@pytest.mark.parametrize("accum_steps", [1, 2])
def test_loss_and_gradients_depend_neither_on_devices_nor_on_parts(kind, accum_steps):
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    found, expected = step_of(kind, "eight", accum_steps), step_of(kind, "one", 1)
    jax.tree.map(close, found, expected)


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
