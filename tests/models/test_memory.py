"""Whatever `memory` says, losses, gradients and parameters are those of the plain model."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_contrast, tiny_glad, tiny_resnet

from flax_adapt import defaults, models, objectives
from flax_adapt.base import keys, memory, rules
from flax_adapt.objectives import info_nce, mlm

PLAIN = defaults.memory()
# Drop path of another rate in each block; a last block of another width; hidden states.
RATES = dict(dropout=0.1, drop_path=0.3)
RESIZED = dict(kind="resized", width=24, relu=True, norm_width=16, mlp_dim=0)
DEEP = {**tiny.MODEL, "depth": 3}
ADAPTED = {**DEEP, "adaptor": tiny_glad.KINDS["vector"]}
TEXT = {**tiny.TEXT_MODEL, "depth": 3}
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)
STAGES = {
    "reconstruct": (defaults.reconstruct(), {**DEEP, "last_block": RESIZED}),
    "mlm": (MLM, TEXT),
    "distill": (defaults.distill() | dict(layers=(0, 2, -1)), DEEP),
    "glad": (defaults.glad(preserve="attention"), ADAPTED),
}
SAVING = [
    ("reconstruct", dict(remat="blocks", scan=True)),
    ("reconstruct", dict(remat="dots")),
    ("mlm", dict(remat="full", scan=True, logit_chunks=3)),
    ("distill", dict(scan=True)),
    ("glad", dict(remat="blocks", scan=True)),
    ("glad", dict(remat="full")),
]


@functools.cache
def stage(name):
    """(loss, parameters, frozen, batch, keys) of a tiny stage."""
    objective, arch = STAGES[name]
    objective = ConfigDict(objective)
    model = tiny.build(objectives.task_of(objective), arch, **RATES)
    other = tiny.params_of(tiny.build("encoder", arch), seed=1)
    frozen = {"distill": {"teacher": other}, "glad": {"start": other}}.get(name, {})
    batch = tiny.text_batch_of(4) if name == "mlm" else tiny.batch_of(4)
    key_B = keys.example_keys(jax.random.key(0), np.arange(4))
    loss_fn = objectives.build(objective, model)
    return loss_fn, tiny.params_of(model), (frozen, batch, key_B)


def derive(name, **changes):
    """The loss and its gradient, {name: array}."""
    loss_fn, params, arguments = stage(name)
    bound = memory.bind(loss_fn, {**PLAIN, **changes})
    value = jax.value_and_grad(lambda p: bound(p, *arguments)[0])
    loss, gradient = jax.jit(value)(params)
    return float(loss), rules.name_leaves(gradient)


@functools.cache
def plain(name):
    return derive(name)


@pytest.mark.parametrize(("name", "changes"), SAVING)
def test_losses_and_gradients_are_those_of_the_plain_model(name, changes):
    (loss, gradient), (expected, of_plain) = derive(name, **changes), plain(name)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert list(gradient) == list(of_plain)
    largest = max(np.abs(leaf).max() for leaf in of_plain.values())
    for leaf, one in zip(gradient.values(), of_plain.values(), strict=True):
        np.testing.assert_allclose(leaf, one, rtol=0, atol=1e-6 * largest)


def count(name, primitive, **changes):
    """How many equations of the traced gradient are of one kind, those of loops included."""
    loss_fn, params, arguments = stage(name)
    bound = memory.bind(loss_fn, {**PLAIN, **changes})
    traced = jax.make_jaxpr(jax.grad(lambda p: bound(p, *arguments)[0]))(params)
    return len(re.findall(rf"\b{primitive}\[", str(traced)))


@pytest.mark.parametrize(
    ("kind", "width", "platform", "remat"),
    [
        ("vit", 1280, "cpu", "none"),
        ("vit", 384, "tpu", "none"),
        ("vit", 768, "tpu", "blocks"),
        ("bert", 768, "gpu", "none"),
        ("bert", 1024, "gpu", "blocks"),
        ("vit", 1024, "cuda", "blocks"),  # what `plan` calls a GPU
        ("resnet", 2048, "tpu", "none"),
    ],
)
def test_auto_recomputes_the_blocks_of_large_transformers(kind, width, platform, remat):
    model = ConfigDict(dict(kind=kind, width=width))
    stage = ConfigDict(dict(memory=defaults.memory(logit_chunks=2)))
    config = ConfigDict(dict(model=model, stages=(stage,))).lock()
    (settled,) = memory.settle_config(config, platform).stages
    scan = remat == "blocks"
    assert dict(settled.memory) == dict(remat=remat, scan=scan, logit_chunks=2)
    asked = defaults.memory(remat="dots")
    assert memory.settle(asked, model, platform) == asked


def test_what_is_asked_for_is_in_the_program():
    assert count("mlm", "scan") == count("mlm", "remat2") == 0
    assert count("mlm", "scan", scan=True) >= 2  # forward and backward
    assert count("mlm", "remat2", remat="blocks") == 3
    # A loop has the products of one block. Here it is of two: the last of the three is not in
    # it, since it computes some tokens alone.
    looped = count("mlm", "dot_general", remat="blocks", scan=True)
    assert looped < 0.7 * count("mlm", "dot_general", remat="blocks")


def test_a_resnet_is_recomputed_and_its_running_statistics_move_as_they_do():
    model = tiny_resnet.build("classify", num_classes=3)
    objective = ConfigDict(defaults.classify())
    params, statistics = models.batch_stats.split(tiny_resnet.stored_of(model))
    loss_fn, batch = objectives.build(objective, model), tiny.batch_of(4)
    frozen = {models.batch_stats.NAME: statistics}
    key_B = keys.example_keys(jax.random.key(0), np.arange(4))

    def run(remat):
        bound = memory.bind(loss_fn, {**PLAIN, "remat": remat})
        value = jax.value_and_grad(bound, has_aux=True)
        return jax.tree.leaves(jax.jit(value)(params, frozen, batch, key_B))

    for one, other in zip(run("none"), run("blocks"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [2, 5, 29])
def test_token_errors_in_chunks_are_those_of_all_logits(chunks):
    rng = np.random.default_rng(0)
    x_BMD, token_VD = rng.standard_normal((2, 3, 8)), rng.standard_normal((29, 8))
    bias_V, targets_BM = rng.standard_normal(29), rng.integers(0, 29, (2, 3))
    arrays = [jnp.float32(array) for array in (x_BMD, token_VD, bias_V)]
    logits_BMV = jnp.einsum("BMD,VD->BMV", *arrays[:2]) + arrays[2][None, None]
    targets_BM[0] = np.argmax(logits_BMV[0], axis=-1)  # these are right
    expected = mlm.token_errors(logits_BMV, jnp.int32(targets_BM))
    found = mlm.token_errors_in_chunks(arrays, jnp.int32(targets_BM), chunks)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[1][0].all()


@pytest.mark.parametrize("form", info_nce.FORMS)
@pytest.mark.parametrize("is_soft", [False, True])
def test_info_nce_in_chunks_is_that_of_all_keys(form, is_soft):
    rng = np.random.default_rng(0)
    query_BD, key_BD, queue_KD = (
        info_nce.normalize(jnp.float32(rng.standard_normal((size, 6))))
        for size in (8, 8, 10)
    )
    weight_B, row_B = jnp.asarray(tiny_contrast.WEIGHT_B), jnp.arange(8)[::-1]

    def error(query_BD, key_BD, chunks):
        found = info_nce.Keys(key_BD, weight_B, queue_KD)
        how = dict(form=form, temperature=0.2, is_soft=is_soft)

        def loss_fn(*_):
            return info_nce.info_nce(query_BD, found, row_B, **how)

        return memory.bind(loss_fn, {**PLAIN, "logit_chunks": chunks})()

    def slopes(chunks):
        return jax.grad(lambda *x: error(*x, chunks)[0].sum(), (0, 1))(query_BD, key_BD)

    for chunks in (3, 8):
        (found, near), (expected, nearest) = (
            error(query_BD, key_BD, n) for n in (chunks, 1)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(near, nearest)
        for one, other in zip(slopes(chunks), slopes(1), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
