"""One step: device count, accumulation, donation, tracing, what it reports."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.depth import long_except

from flax_adapt import defaults, objectives
from flax_adapt.base import keys, rules
from flax_adapt.base.errors import UserError
from flax_adapt.base.metrics import Mean
from flax_adapt.train import optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

NUM_STEPS = 5
# Half of the tokens, so that tiny rows have some to guess, each another number of them.
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)
OBJECTIVES = {
    "reconstruct": (defaults.reconstruct(), defaults.pretrain_optim(lr=1e-4)),
    "distill": (defaults.distill(), defaults.pretrain_optim(lr=1e-4)),
    "classify": (
        defaults.classify() | dict(mixup_alpha=0.8, cutmix_alpha=1.0),
        defaults.finetune_optim(lr=1e-4, warmup_steps=0),
    ),
    "mlm": (MLM, defaults.text_optim(20, lr=1e-4)),
    "distill_mlm": (defaults.distill(MLM), defaults.text_optim(20, lr=1e-4)),
    "classify_text": (defaults.classify(), defaults.text_finetune_optim(5, lr=1e-4)),
}
MESHES = {
    "one": dict(data=1, fsdp=1, tensor=1),
    "data": dict(data=8, fsdp=1, tensor=1),
    "fsdp": dict(data=1, fsdp=8, tensor=1),
    "all": dict(data=2, fsdp=2, tensor=2),
}
# By default objectives meet the mesh that has all kinds of axes, and one meets all meshes;
# the other pairs combine the same parts.
PAIRS = [(name, mesh) for name in OBJECTIVES for mesh in ("data", "fsdp", "all")]
USUAL = [
    (name, mesh)
    for name, mesh in PAIRS
    if name == "reconstruct" or (mesh == "all" and name != "distill_mlm")
]
ARCH = {**tiny.MODEL, "depth": 1}
TEXT_ARCH = {**tiny.TEXT_MODEL, "depth": 1}
# The gradient of a key bias is zero in exact arithmetic (softmax is blind to it), so
# Adam makes steps of up to lr out of rounding: no two orders of summation agree on it.
NOISE = "attention/key/bias"


def mesh_of(name):
    sizes = MESHES[name]
    return sharding.make_mesh(
        sizes, jax.devices()[: int(np.prod(list(sizes.values())))]
    )


def is_text(name):
    return "mlm" in name or "text" in name


def batch_for(name, seed):
    if is_text(name):
        return tiny.text_batch_of(16, seed, packed="mlm" in name)
    return tiny.batch_of(16, seed)


def start(name, mesh, accum_steps=1):
    objective, optimizer = (ConfigDict(section) for section in OBJECTIVES[name])
    arch = TEXT_ARCH if is_text(name) else ARCH
    task = objectives.task_of(objective)
    model = tiny.build(task, arch, dropout=0.1, drop_path=0.1)
    params = tiny.params_of(model)
    frozen = {"teacher": tiny.params_of(tiny.build("encoder", arch), seed=1)}
    frozen = frozen if objective.name == "distill" else {}
    tx = optim.build(optimizer, NUM_STEPS, params)
    state = states.create(params, tx, mesh, seed=3, frozen=frozen)
    loss_fn = objectives.build(objective, model)
    return state, steps.make_train_step(loss_fn, tx, mesh, accum_steps)


@functools.cache
def train(name, mesh_name, accum_steps=1):
    """Losses of the first steps and the parameters after them, on the host."""
    mesh = mesh_of(mesh_name)
    state, train_step = start(name, mesh, accum_steps)
    losses = []
    for number in range(NUM_STEPS):
        batch = sharding.put_batch(batch_for(name, number), mesh)
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"].value()))
    named = zip(rules.names(state.params), jax.tree.leaves(state.params), strict=True)
    return losses, {name: np.asarray(leaf) for name, leaf in named}


def assert_close(one, other, rtol):
    np.testing.assert_allclose(one[0], other[0], rtol=rtol)
    for name in one[1]:
        if not name.endswith(NOISE):
            scale = np.abs(one[1][name]).max()
            worst = np.abs(one[1][name] - other[1][name]).max()
            assert worst <= rtol * scale, f"{name}: {worst} against {scale}"


@pytest.mark.parametrize(("name", "mesh"), long_except(USUAL, PAIRS))
def test_losses_and_parameters_do_not_depend_on_the_devices(name, mesh):
    assert_close(train(name, "one"), train(name, mesh), rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    # Rows that count the same, and rows that do not.
    long_except(("reconstruct", "mlm"), [n for n in OBJECTIVES if n != "classify"]),
)
def test_accumulation_gives_the_gradient_of_the_whole_batch(name):
    assert_close(train(name, "one"), train(name, "one", accum_steps=4), rtol=1e-5)


def test_accumulation_weighs_parts_by_what_they_count():
    mesh, model = mesh_of("one"), tiny.build("classify", ARCH)
    params = tiny.params_of(model)
    objective = ConfigDict(defaults.classify())
    loss_fn = objectives.build(objective, model)
    batch = tiny.batch_of(8)
    batch["weight"][:3] = 0  # parts of four rows (0, 2, 4, 6) and (1, 3, 5, 7): 2 and 3
    norms = []
    for accum_steps in (1, 2):
        tx = optim.build(ConfigDict(OBJECTIVES["classify"][1]), 5, params)
        state = states.create(params, tx, mesh, seed=0)
        train_step = steps.make_train_step(loss_fn, tx, mesh, accum_steps)
        _, metrics = train_step(state, sharding.put_batch(batch, mesh))
        norms.append(float(metrics["grad_norm"].value()))
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_accumulation_counts_before_it_adds_without_running_the_model_twice():
    """Each part's counts are known without the model: about the same work as one pass."""
    flops = []
    for accum_steps in (1, 4):
        mesh = mesh_of("one")
        state, train_step = start("mlm", mesh, accum_steps)
        batch = sharding.put_batch(batch_for("mlm", 0), mesh)
        lowered = jax.jit(train_step).lower(state, batch)
        text = lowered.compile().as_text()
        flops.append(len(re.findall(r" dot\(| custom-call.*matmul", text)))
    assert flops[1] <= 1.5 * flops[0]


def test_fsdp_really_spreads_parameters_and_moments():
    mesh = mesh_of("fsdp")
    state, _ = start("reconstruct", mesh)
    up = state.params["encoder"]["block_00"]["mlp"]["up"]["kernel"]
    assert up.addressable_shards[0].data.shape == (2, 32)
    sharded = {
        name
        for name, leaf in zip(rules.names(state), jax.tree.leaves(state), strict=True)
        if not leaf.sharding.is_fully_replicated
    }
    assert any("/mu/" in name and name.endswith("up/kernel") for name in sharded)


# Under debug_nans JAX donates nothing: `nans_allowed` turns it off.
def test_the_teacher_is_never_donated_and_the_state_is(nans_allowed):
    mesh = mesh_of("one")
    state, train_step = start("distill", mesh)
    before = state.params["encoder"]["norm"]["scale"]
    batch = sharding.put_batch(tiny.batch_of(16), mesh)
    after, _ = train_step(state, batch)
    assert after.frozen is state.frozen
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after.frozen))
    assert before.is_deleted()


@pytest.mark.parametrize("devices", long_except(["one"], ["one", "data"]))
def test_given_parameters_survive_a_step(nans_allowed, devices):
    mesh = mesh_of(devices)
    model = tiny.build("classify", ARCH)
    params = jax.tree.map(jnp.asarray, tiny.params_of(model))
    tx = optim.build(ConfigDict(OBJECTIVES["classify"][1]), 5, params)
    state = states.create(params, tx, mesh, seed=0)
    loss_fn = objectives.build(ConfigDict(defaults.classify()), model)
    batch = sharding.put_batch(tiny.batch_of(16), mesh)
    steps.make_train_step(loss_fn, tx, mesh)(state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_step_is_traced_once():
    mesh = mesh_of("data")
    objective, optimizer = (ConfigDict(s) for s in OBJECTIVES["reconstruct"])
    model = tiny.build("mae", ARCH)
    params = tiny.params_of(model)
    tx = optim.build(optimizer, NUM_STEPS, params)
    loss_fn = chex.assert_max_traces(objectives.build(objective, model), n=1)
    train_step = steps.make_train_step(loss_fn, tx, mesh)
    state = states.create(params, tx, mesh, seed=0)
    for seed in range(3):
        batch = sharding.put_batch(tiny.batch_of(16, seed), mesh)
        state, _ = train_step(state, batch)
    assert int(state.step) == 3


def test_the_first_bad_leaf_is_named(nans_allowed):
    mesh = mesh_of("one")
    params = {"a": {"scale": jnp.ones(4)}, "b": {"bias": jnp.full(1, jnp.inf)}}
    section = ConfigDict(defaults.finetune_optim(warmup_steps=0, clip_norm=0.0))
    tx = optim.build(section, 5, params)
    state = states.create(params, tx, mesh, seed=0)

    def loss_fn(params, frozen, batch, key_B):
        loss = jnp.sum(params["a"]["scale"]) + jnp.sum(jnp.log(params["b"]["bias"] * 0))
        return loss, {"loss": Mean(loss, jnp.float32(1))}

    batch = sharding.put_batch({"position": np.arange(4, dtype=np.int32)}, mesh)
    _, metrics = steps.make_train_step(loss_fn, tx, mesh)(state, batch)
    bad = int(metrics[steps.BAD_LEAF].total)
    assert rules.names(params)[bad] == "b/bias"


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers():
    with pytest.raises(UserError, match=r"batch_size=12.*= 8 devices.*accum_steps=1"):
        sharding.check_batch_size(12, 1, mesh_of("data"))


@pytest.mark.parametrize(
    "sizes", [dict(data=3, fsdp=1, tensor=1), dict(data=-1, fsdp=3, tensor=1)]
)
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(UserError, match="does not use 8 devices exactly"):
        sharding.make_mesh(sizes, jax.devices())


def test_keys_follow_the_row_in_the_global_batch():
    key = jax.random.key(0)
    whole = keys.example_keys(key, jnp.arange(8))
    part = keys.example_keys(key, jnp.array([5, 2]))
    drawn = [keys.draw(jax.random.uniform, k, ()) for k in (whole, part)]
    np.testing.assert_array_equal(drawn[1], drawn[0][jnp.array([5, 2])])
    assert len(np.unique(drawn[0])) == 8
