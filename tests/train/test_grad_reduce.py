"""What gradients are summed in over chips, read off the partitioned program.

XLA's CPU promotes every bfloat16 reduction afterwards, so that the final text says
nothing: looked at is the program right after it was divided among eight devices.
Compiled for a TPU (libtpu, v5e, 4 x 4), MAE and BERT sum their gradients in float32 as well.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_resnet

from flax_adapt import defaults, objectives
from flax_adapt.models import batch_stats, layers
from flax_adapt.train import optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

EIGHT = dict(data=8, fsdp=1, tensor=1)
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)
SECTIONS = {
    "mae": defaults.reconstruct(),
    "classify": defaults.classify(),
    "mlm": MLM,
    "resnet": defaults.classify(),
}
# Names of what sums over devices, in HLO.
SUM = re.compile(r"= (\w+)\[[^=]*\b(?:all-reduce|reduce-scatter)(?:-start)?\(")


def build(name):
    if name == "resnet":
        return tiny_resnet.build("classify", dtype="bfloat16", num_classes=3)
    arch = {**(tiny.TEXT_MODEL if name == "mlm" else tiny.MODEL), "depth": 1}
    return tiny.build(name, arch, dtype="bfloat16")


def batch_of(name):
    if name == "mlm":
        return tiny.text_batch_of(16, 0, packed=True)
    return tiny.batch_of(16)


def sums(name, grad_reduce, folder):
    """Types of all sums over devices that one train step has."""
    mesh, model = sharding.make_mesh(EIGHT, jax.devices()), build(name)
    stored = tiny_resnet.stored_of(model) if name == "resnet" else tiny.params_of(model)
    params, statistics = batch_stats.split(stored)
    tx = optim.build(ConfigDict(defaults.finetune_optim(decay="all")), 2, params)
    config = ConfigDict(SECTIONS[name])
    carry = objectives.build_carry(config, 2, statistics)
    state = states.create(params, tx, mesh, seed=0, carry=carry)
    loss_fn = objectives.build(config, model)
    if grad_reduce == "compute":
        loss_fn = steps.reduce_in_compute(loss_fn, model.dtype)
    batch = sharding.put_batch(batch_of(name), mesh)
    key_B = jax.random.split(jax.random.key(0), 16)
    grad = jax.jit(
        jax.grad(lambda params, rows: loss_fn(params, state.loss_inputs, *rows)[0])
    )
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd.*"}
    grad.lower(state.params, (batch, key_B)).compile(compiler_options=options)
    (file,) = folder.glob("*.after_spmd-partitioning.*.txt")
    return [found.group(1) for found in SUM.finditer(file.read_text())]


@pytest.mark.parametrize("name", SECTIONS)
def test_no_gradient_is_summed_over_chips_in_bfloat16(name, tmp_path):
    found = sums(name, "float32", tmp_path)
    assert len(found) > 3
    assert "bf16" not in found


def test_kernels_are_summed_in_what_is_computed_in_where_that_is_asked_for(tmp_path):
    assert "bf16" in sums("classify", "compute", tmp_path)


def test_a_float32_product_of_bfloat16_numbers_is_not_rounded_on_the_way():
    """The gradient of a kernel: 1 + 256 ones of 2^-9, lost one by one in bfloat16."""
    rows = jnp.asarray(np.r_[1.0, np.full(256, 2.0**-9)][:, None], jnp.bfloat16)
    grad = jax.grad(lambda kernel: jnp.sum(layers.matmul("kernel", rows, kernel)))
    np.testing.assert_allclose(grad(jnp.ones((1, 1), jnp.float32)), [[1.5]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_product_and_its_gradients_are_those_of_a_plain_one(dtype):
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(5, 4)), dtype)
    kernel = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    def value(product):
        def of(rows, kernel):
            return jnp.sum(jnp.sin(product(rows, kernel).astype(jnp.float32)))

        return jax.value_and_grad(of, argnums=(0, 1))(rows, kernel)

    ours = value(functools.partial(layers.matmul, "kernel"))
    plain = value(lambda rows, kernel: rows @ kernel.astype(rows.dtype))
    rtol = 1e-6 if dtype == "float32" else 0.02
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=rtol, atol=rtol
        ),
        *(ours, plain),
    )
