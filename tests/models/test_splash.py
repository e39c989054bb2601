"""The kernel of splash attention is the formula on one device and on eight; who takes it."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_bert
from support.depth import long_except
from support.tiny_meshes import mesh_of

from flax_adapt.base import memory, placement
from flax_adapt.models import attention
from flax_adapt.models.attention import splash
from flax_adapt.plan import cost, flops, hlo, plans
from flax_adapt.train import sharding

HEADS, HEAD = 2, 64


# Divided over devices, two blocks of tokens, documents; and what is simpler.
ALL = ("eight", 4, 256, True)


def documents(rows, tokens):
    """Rows of padding alone, of one document, and of several with padding."""
    drawn_BL = np.random.default_rng(0).integers(0, 4, (rows, tokens))
    segments_BL = np.sort(drawn_BL)[:, ::-1].astype(np.int32)
    segments_BL[0], segments_BL[1, : tokens // 2] = 0, 1
    return attention.Documents(
        segments_BL[:, :, None] == segments_BL[:, None], segments_BL
    )


def value_and_gradients(run, q, k, v, sees):
    weights = np.random.default_rng(1).standard_normal(q.shape, np.float32)

    def value(q, k, v):
        x = run(q, k, v, sees)
        return jnp.sum(x * weights), x

    return jax.tree.leaves(jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(q, k, v))


def in_loop(run):
    """The same attention as the blocks of a model call it: recomputed, in a loop of one."""

    def looped(q, k, v, sees):
        body = jax.checkpoint(
            lambda q, _: (run(q, k, v, sees), None), prevent_cse=False
        )
        return jax.lax.scan(body, q, jnp.arange(1))[0]

    return looped


@pytest.mark.parametrize(
    ("mesh", "rows", "tokens", "masked"),
    long_except([ALL], [ALL, ("one", 2, 128, True), ("one", 1, 128, False)]),
)
def test_splash_is_the_formula_on_one_device_and_divided_over_eight(
    mesh, rows, tokens, masked, monkeypatch
):
    """The kernel as JAX interprets it, with its gradients; 256 tokens are two blocks."""
    monkeypatch.setattr(splash, "_BLOCKS", (128,))
    interpreted = functools.partial(splash.attend, interpret=True)
    monkeypatch.setattr(splash, "attend", interpreted)
    rng, shape = np.random.default_rng(0), (rows, tokens, HEADS, HEAD)
    three = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    sees = documents(rows, tokens) if masked else None
    with sharding.placing(mesh_of(mesh)):
        found = value_and_gradients(in_loop(attention.by_splash), *three, sees)
    exact = attention.by_mask(attention.unfused)
    expected = value_and_gradients(exact, *three, sees)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rows", "kernels"), [(8, 1), (6, 0)])
def test_bert_takes_splash_where_devices_divide_it_and_all_tokens_ask(
    rows, kernels, monkeypatch
):
    """Its last block is of selected tokens; the program is traced, not compiled."""
    monkeypatch.setattr(placement, "platform", lambda: "tpu")
    sizes = dict(max_positions=512, width=128, depth=2, dtype="bfloat16")
    model = tiny_bert.build("mlm", **sizes)
    text = tiny_bert.rows(*[(300, 200)] * rows, length=512)

    def encode(params):
        places_BM = np.zeros((rows, 4), np.int32)
        with sharding.placing(mesh_of("eight")):
            return model.apply({"params": params}, text, places_BM, None)

    traced = str(jax.make_jaxpr(encode)(tiny_bert.shapes(model)))
    assert len(re.findall(r"name=splash_mha_fwd\w*", traced)) == kernels


def test_where_products_are_counted_none_is_hidden_in_a_kernel(monkeypatch):
    monkeypatch.setattr(placement, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    x_BLHK = jax.ShapeDtypeStruct((2, 512, 3, HEAD), jnp.bfloat16)
    with memory.ignore():
        traced = jax.make_jaxpr(attention.attend)(*[x_BLHK] * 3, None)
    assert flops.count_products(traced.jaxpr) == 2 * 2 * (2 * 3 * 512**2 * HEAD)


def test_a_tpu_program_holds_the_kernel_and_moves_nothing_between_chips():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip(
            "libtpu, which compiles for TPUs, is not installed: flax-adapt[tpu]"
        )
    hardware = plans.find_hardware("v5e:2x2")
    mesh = sharding.make_mesh(dict(data=1, fsdp=2, tensor=2), hardware.devices)
    shape, length = (2, 512, 2, HEAD), 512
    spec = placement.ACTIVATIONS[2][1]
    laid_out = jax.sharding.NamedSharding(mesh, spec)
    x_BLHK = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=laid_out)

    def gradient(q, k, v):
        with sharding.placing(mesh):
            x, pull = jax.vjp(lambda *three: attention.attend(*three, None), q, k, v)
        return pull(x)

    traced = jax.jit(gradient).trace(x_BLHK, x_BLHK, x_BLHK)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    found = cost.count_costs(hlo.parse(compiled.as_text()), 4)
    assert cost.sum_by_kind(found) == {}
    # Two products forward and five backward, of one row and one head.
    assert cost.sum_flops(found) == 7 * 2 * length**2 * HEAD
