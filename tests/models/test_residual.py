"""Losses that read a few last states: the last block computes these alone, with equal numbers."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_contrast, tiny_glad

from flax_adapt import defaults, models, objectives
from flax_adapt.base import keys, memory, rules
from flax_adapt.models import blocks, residual
from flax_adapt.objectives import reconstruct
from flax_adapt.plan import flops

# Every block has random draws of its own.
RATES = dict(dropout=0.1, drop_path=0.3)
RESIZED = dict(kind="resized", width=24, relu=True, norm_width=16, mlp_dim=0)
EXTRA = dict(kind="extra", width=16, relu=False, norm_width=0, mlp_dim=24)
TEXT = tiny.TEXT_MODEL
PROJECTOR = tiny_contrast.HEADS["moco_v3"]
LAYERS = dict(layers=(0, -2, -1))
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5)


def adapted(arch, kind):
    return {**arch, "adaptor": tiny_glad.KINDS[kind]}


# Objective, architecture, options of the model.
STAGES = {
    "distill": (defaults.distill() | LAYERS, {**tiny.MODEL, "last_block": EXTRA}, {}),
    "distill of text": (
        defaults.distill(masked=MLM) | LAYERS,
        {**TEXT, "last_block": RESIZED},
        {},
    ),
    "classify": (defaults.classify(), {**tiny.MODEL, "last_block": RESIZED}, {}),
    "classify text": (defaults.classify(), TEXT, dict(pooling="pooler")),
    "glad": (defaults.glad(preserve="attention"), adapted(tiny.MODEL, "mixing"), {}),
    "glad of text": (defaults.glad(), adapted(TEXT, "bottleneck"), {}),
    "contrast": (tiny_contrast.section(), tiny.MODEL, dict(projector=PROJECTOR)),
    "mlm": (MLM, {**TEXT, "last_block": RESIZED}, {}),
}
SAVING = {
    "plain": {},
    "scan": dict(scan=True, remat="blocks"),
    "full": dict(remat="full"),
}
# The others go through the same code.
SHORT = ("distill of text", "classify", "contrast", "mlm")
CASES = [
    *((name, "plain") for name in SHORT),
    *(
        pytest.param(name, how, marks=pytest.mark.long)
        for name, how in (
            *((name, "plain") for name in STAGES if name not in SHORT),
            *(("mlm", "scan"), ("glad", "full")),
        )
    ),
]
# Batch norm and a temperature of 0.2 enlarge rounding.
ATOL = {"contrast": 5e-6}


def compute_all(*arguments, select=None):
    """`blocks.run` of a last block that computes all tokens."""
    *others, last = RUN(*arguments)
    return [*others, residual.take(select, last)]


RUN = blocks.run


def stage(name):
    """The loss of a stage, its parameters and its other arguments."""
    section, arch, options = STAGES[name]
    objective = ConfigDict(section)
    model = tiny.build(objectives.task_of(objective), arch, **RATES, **options)
    plain = tiny.build("encoder", {**arch, "adaptor": None})
    batch = tiny_contrast.batch_of(model.modality)
    frozen = {"teacher": tiny.params_of(plain, 1), "start": tiny.params_of(plain, 1)}
    params = tiny.params_of(model)
    averaged = {name: params[name] for name in params if name != "predictor"}
    frozen["key_encoder"] = averaged
    loss_fn = objectives.build(objective, model, one_document=True)
    return loss_fn, params, frozen, batch, tiny_contrast.keys_of()


def derive(name, how):
    """The loss and its gradient, and the multiply-adds of both."""
    loss_fn, params, *arguments = stage(name)
    bound = memory.bind(loss_fn, {**defaults.memory(), **SAVING[how]})
    value = jax.value_and_grad(lambda p: bound(p, *arguments)[0])
    with memory.ignore():
        count = flops.count_products(jax.make_jaxpr(value)(params).jaxpr)
    return *jax.jit(value)(params), count


@pytest.mark.parametrize(("name", "how"), CASES)
def test_the_last_block_computes_used_tokens_alone_and_nothing_changes(
    name, how, monkeypatch
):
    loss, gradient, products = derive(name, how)
    monkeypatch.setattr(blocks, "run", compute_all)
    expected, of_all, all_products = derive(name, "plain")
    assert products < all_products
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    gradient, of_all = rules.name_leaves(gradient), rules.name_leaves(of_all)
    largest = max(np.abs(leaf).max() for leaf in of_all.values())
    for leaf, other in zip(gradient.values(), of_all.values(), strict=True):
        atol = largest * ATOL.get(name, 1e-6)
        np.testing.assert_allclose(leaf, other, rtol=0, atol=atol)


def test_a_masked_autoencoder_predicts_hidden_patches_alone_and_nothing_changes():
    model = tiny.build("mae", {**tiny.MODEL, "image_size": 16}, **RATES)
    params, key_B = (
        tiny.params_of(model),
        keys.example_keys(jax.random.key(0), np.arange(4)),
    )
    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, 16, 16, 1), np.float32)
    noise, weight = rng.random((4, 16), np.float32), np.float32([1, 1, 0, 1])
    batch = {"image": image, "noise": noise, "weight": weight}
    section = ConfigDict(defaults.reconstruct())
    loss_fn = objectives.build(section, model)

    def formula(params):
        """He et al. 2022: all patches are predicted, the hidden ones count."""
        arguments = (image, noise, key_B, section.hidden_ratio)
        prediction, hidden = model.apply({"params": params}, *arguments)
        target = reconstruct.patch_targets(image, 4, section.normalize_patches)
        error = ((prediction - target) ** 2).mean(-1)
        counts = hidden * weight[:, None]
        return (error * counts).sum() / counts.sum()

    def loss_of(params):
        return loss_fn(params, {}, batch, key_B)[0]

    (loss, gradient), (expected, of_all) = (
        jax.jit(jax.value_and_grad(one))(params) for one in (loss_of, formula)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_all))
    for leaf, other in zip(*map(jax.tree.leaves, (gradient, of_all)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-6 * largest)


def test_rows_of_several_documents_have_all_first_tokens_compared():
    section, arch, _ = STAGES["distill of text"]
    model = tiny.build("mlm", arch)
    teacher = {"teacher": tiny.params_of(tiny.build("encoder", arch), 1)}
    key_B = keys.example_keys(jax.random.key(0), np.arange(4))
    batch = tiny.text_batch_of(4, packed=True)

    def distance(**how):
        loss_fn = objectives.build(ConfigDict(section), model, **how)
        return loss_fn(tiny.params_of(model), teacher, batch, key_B)[1]["distill"]

    assert distance().count == 2 * distance(one_document=True).count


def test_sums_of_blocks_are_those_of_all_tokens_unless_some_are_selected():
    """Surgery on a last block measures the sums of all tokens."""
    model = tiny.build("encoder")
    arguments = (tiny.batch_of(2)["image"], None)
    _, found = model.apply(
        {"params": tiny.params_of(model)},
        *arguments,
        method="encode",
        mutable=[models.SUMS],
    )
    sums = found[models.SUMS]["encoder"]
    assert {block["sum"][0].shape for block in sums.values()} == {(2, 5, 16)}
