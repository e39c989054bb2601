"""Attention: one formula in two ways, chosen by platform, and what it costs."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_glad import build

from flax_adapt import models
from flax_adapt.models import attention, layers
from flax_adapt.models.attention import splash

WIDTH = 16
# JAX writes the choice as a case of one branch, which every compiler inlines.
CHOICE = ("case", "constant", "return")
# What is to be in the program of each platform.
WAYS = {"cpu": attention.unfused, "tpu": attention.fused, "cuda": attention.fused}


def inputs(masked, dtype="float32"):
    """Queries, keys, values, mask; logits so large that bfloat16 would ruin them."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 7, 3, 8)).astype(dtype) for _ in range(3))
    sees = np.eye(7, dtype=bool) | (rng.random((2, 7, 7)) < 0.6)
    sees[0, 3] = np.arange(7) == 5  # one token alone
    return q * 10, k, v, sees if masked else None


def value_and_gradients(way, q, k, v, sees):
    weights = np.random.default_rng(1).standard_normal(q.shape, np.float32)

    def value(q, k, v):
        x = way(q, k, v, sees).astype(jnp.float32)
        return jnp.sum(x * weights), x

    grads, x = jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(leaf, np.float32) for leaf in (x, *grads)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", [attention.unfused, attention.fused])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_both_ways_are_the_formula_and_so_are_their_gradients(masked, way, dtype, atol):
    q, k, v, sees = inputs(masked, jnp.dtype(dtype))

    def formula(q, k, v, sees):
        logits = jnp.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(8)
        if masked:
            logits = jnp.where(sees[:, None], logits, -jnp.inf)
        return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(logits), v)

    found = value_and_gradients(way, q, k, v, sees)
    exact = (x.astype(np.float32) for x in (q, k, v))
    expected = value_and_gradients(formula, *exact, sees)
    for ours, theirs in zip(found, expected, strict=True):
        scale = np.maximum(1, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol * scale)


def operations(function, platform, *args):
    """How often each operation is in the program that a platform's compiler gets."""
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    found = Counter(re.findall(r"stablehlo\.(\w+)", lowered.as_text()))
    return {name: found[name] for name in found if name not in CHOICE}


@pytest.mark.parametrize("masked", [False, True])
def test_the_platform_that_is_compiled_for_chooses_the_way(masked):
    args = inputs(masked)
    assert operations(attention.unfused, "tpu", *args) != operations(
        attention.fused, "tpu", *args
    )
    for platform, way in WAYS.items():
        found = operations(attention.attend, platform, *args)
        assert found == operations(way, platform, *args), platform


@pytest.mark.parametrize("over", ["batch", "examples"])
def test_the_choice_costs_nothing(over):
    """Also of gradients, of the whole batch and of each example (as Fisher takes them)."""
    args = inputs(masked=True)

    def cost(way):
        def gradient(*args):
            return jax.grad(lambda q, *others: jnp.sum(way(q, *others)))(*args)

        if over == "examples":
            each = jax.vmap(lambda *example: gradient(*(x[None] for x in example)))
            compiled = jax.jit(each).lower(*args).compile()
        else:
            compiled = jax.jit(gradient).lower(*args).compile()
        analysis = compiled.cost_analysis()
        memory = compiled.memory_analysis().temp_size_in_bytes
        return analysis["flops"], analysis["bytes accessed"], memory

    assert cost(attention.attend) == cost(attention.unfused)


def layer_of(kind, dtype="float32"):
    """The attention of a tiny model, and its parameters."""
    config = build("bert", kind).config
    layer = layers.Attention(config, models.layers.NORMAL, jnp.dtype(dtype))
    x_BLD = jnp.ones((2, 5, WIDTH), layer.dtype)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x_BLD, None)
    return layer, {"params": variables["params"]}, x_BLD


@pytest.mark.parametrize("platform", WAYS)
@pytest.mark.parametrize(
    ("kind", "dtype", "products"),
    [
        # Query, key and value, logits, values, out.
        (None, "float32", 6),
        (None, "bfloat16", 6),
        ("keywise", "float32", 6),
        ("keywise", "bfloat16", 7),
        ("mixing", "float32", 8),
        ("bottleneck", "float32", 8),
    ],
)
def test_a_layer_makes_no_more_products_than_it_needs(platform, kind, dtype, products):
    layer, params, x_BLD = layer_of(kind, dtype)
    made = operations(layer.apply, platform, params, x_BLD, np.ones((2, 5, 5), bool))
    assert made["dot_general"] == products


def test_without_adaptors_a_layer_has_four_kernels_and_biases():
    _, params, _ = layer_of(None)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sorted(sizes) == [WIDTH] * 4 + [WIDTH**2] * 4


def kind_of(**changes):
    usual = dict(
        platform="gpu", dtype="bfloat16", head_dim=64, length=197, masked=False
    )
    changes = {**usual, **changes}
    usual = dict(queries=changes["length"], by_document=True, divided=True)
    return attention.Kind(**{**usual, **changes})


LONG = dict(platform="tpu", length=512)


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, "cudnn"),
        ({"head_dim": 80}, "cudnn"),  # ViT-H
        ({"head_dim": 32, "dtype": "float16"}, "cudnn"),  # the decoder of MAE
        ({"masked": True, "length": 512}, "cudnn"),
        ({"masked": True, "length": 511}, "xla"),
        ({"dtype": "float32"}, "xla"),
        ({"head_dim": 12}, "xla"),
        ({"head_dim": 160}, "xla"),
        ({"platform": "tpu"}, "xla"),
        ({"platform": "cpu"}, "xla"),
        # Of the last block: CLS alone, hidden patches, hidden words.
        ({"queries": 1}, "xla"),
        ({"queries": 147}, "cudnn"),
        ({"masked": True, "length": 512, "queries": 127}, "xla"),
        (LONG, "splash"),
        ({**LONG, "masked": True}, "splash"),
        ({**LONG, "head_dim": 128, "length": 640}, "splash"),
        ({**LONG, "masked": True, "by_document": False}, "xla"),  # local attention
        ({**LONG, "divided": False}, "xla"),
        ({**LONG, "dtype": "float32"}, "xla"),
        ({**LONG, "head_dim": 32}, "xla"),
        ({**LONG, "queries": 77}, "xla"),
        ({**LONG, "length": 384}, "xla"),
        ({**LONG, "length": 577}, "xla"),
    ],
)
def test_the_table_chooses_by_platform_dtype_head_and_mask(changes, way, monkeypatch):
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    assert attention.choose.__wrapped__(kind_of(**changes)) == way
    monkeypatch.setattr(attention, "has_cudnn", lambda: False)
    monkeypatch.setattr(splash, "is_installed", lambda: False)
    assert attention.choose.__wrapped__(kind_of(**changes)) == "xla"


def test_the_choice_is_logged_once(caplog):
    kind = kind_of(platform="cpu", length=3571)
    with caplog.at_level("INFO"):
        assert attention.choose(kind) == attention.choose(kind) == "xla"
    lines = [r.getMessage() for r in caplog.records if "3571" in r.getMessage()]
    assert lines == [
        "attention: xla for 3571 tokens, head_dim 64, bfloat16, unmasked on cpu"
    ]
    with caplog.at_level("INFO"):
        attention.choose(kind._replace(queries=1))
    assert "xla for 1 of 3571 tokens," in caplog.text


@pytest.mark.parametrize("masked", [False, True])
def test_the_token_that_makes_an_odd_length_even_changes_nothing(masked):
    """cuDNN's lengths by XLA's implementation of the same function."""
    q, k, v, sees = inputs(masked)
    flash = functools.partial(attention.flash, implementation="xla")
    found = value_and_gradients(flash, q, k, v, sees)
    expected = value_and_gradients(attention.fused, q, k, v, sees)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max()
        )
