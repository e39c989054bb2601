"""ELECTRA's and ModernBERT's traits: what a text model with them must hold to."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny
from support.tiny_bert import build, cut, params_of, rows

from flax_adapt import defaults, models, objectives, weights
from flax_adapt.base import config as configs
from flax_adapt.base import keys, memory
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Text
from flax_adapt.models.textual import pre_norm, rotary
from flax_adapt.models.visual.rotary import turn
from flax_adapt.surgery import lora, matched
from flax_adapt.train import anchors, optim, sharding
from flax_adapt.weights import strict
from flax_adapt.weights.formats import hf_families

MODERN = {
    **hf_families.MODERNBERT.traits,
    **dict(global_every=2, local_window=4, global_theta=50.0, local_theta=7.0),
}
ELECTRA = {**hf_families.ELECTRA.traits, "embed_dim": 8}
TRAITS = {"modernbert": MODERN, "electra": ELECTRA}
# Fields of tiny models.
FIELDS = {
    "modernbert": dict(traits=MODERN, token_types=0, depth=4),
    "electra": dict(traits=ELECTRA),
}
ARCH = {name: {**tiny.TEXT_MODEL, **own} for name, own in FIELDS.items()}


@functools.cache
def states_of():
    """The states of a tiny ModernBERT, compiled once for rows of 12 tokens."""
    model = build("encoder", **FIELDS["modernbert"], max_positions=12)
    params = params_of(model)
    return jax.jit(
        lambda text: model.apply({"params": params}, text, None, method="encode")
    )


def alone(text, start, stop):
    """The document of a packed row in a row of its own, which junk pads to 12 tokens."""
    own = cut(text, 0, start, stop)
    room = ((0, 0), (0, 12 - (stop - start)))
    junk = np.random.default_rng(7).integers(0, 31, (1, 12)).astype(np.int32)
    parts = {name: np.pad(leaf, room) for name, leaf in own._asdict().items()}
    parts["tokens_BL"] = np.where(parts["segments_BL"] > 0, parts["tokens_BL"], junk)
    return Text(**parts)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (3, 12)])
def test_a_packed_document_has_the_states_it_has_alone_with_rotary_and_local_attention(
    start, stop
):
    text = rows((3, 9))
    packed, own = states_of()(text), states_of()(alone(text, start, stop))
    assert len(packed) == 5
    for state, expected in zip(packed, own, strict=True):
        np.testing.assert_allclose(
            state[0, start:stop], expected[0, : stop - start], atol=1e-5, rtol=0
        )


def test_a_local_block_sees_neighbours_of_the_own_document_alone():
    text = rows((5, 7))
    segments_BL = text.segments_BL
    sees_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
    near_BLM = pre_norm.make_sight(text, sees_BLM, 2).near_BLM
    for place, seen in (
        (0, [0, 1, 2]),
        (4, [2, 3, 4]),
        (5, [5, 6, 7]),
        (11, [9, 10, 11]),
    ):
        np.testing.assert_array_equal(np.flatnonzero(near_BLM[0, place]), seen)


def test_rotated_products_depend_on_the_distance_of_positions_alone():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8), np.float32)
    frequencies = jnp.asarray(rotary.frequencies(50.0, 8))

    def product(i, j):
        turned = (
            turn(x, rotary.turns(jnp.asarray([[at]]), frequencies))
            for x, at in ((q, i), (k, j))
        )
        return float(jnp.sum(next(turned) * next(turned)))

    np.testing.assert_allclose(product(9, 4), product(5, 0), rtol=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=1.0)


@functools.cache
def losses(family, **how):
    """Losses of masked words, of a teacher, of classes, with LoRA; and all gradients."""
    arch, batch = ARCH[family], tiny.text_batch_of(4)
    key_B = keys.example_keys(jax.random.key(0), np.arange(4))
    section = configs.build(dict(rank=1, alpha=1.0, targets=("query", "up")))
    objectives_ = {
        "mlm": MLM,
        "distill": defaults.distill(MLM) | dict(layers=(0, -1)),
        "classify": defaults.classify(),
    }
    found, params = {}, {}
    for name, objective in objectives_.items():
        objective = ConfigDict(objective)
        pooling = "pooler" if name == "classify" else "cls"
        model = tiny.build(objectives.task_of(objective), arch, pooling=pooling)
        params[name] = tiny.params_of(model)
        teacher = {"teacher": {"encoder": params["mlm"]["encoder"]}}
        frozen = teacher if name == "distill" else {}
        loss_fn = memory.bind(
            objectives.build(objective, model), {**defaults.memory(), **how}
        )
        found[name] = (loss_fn, frozen, batch, key_B)
    adapted = lora.add(params["classify"], section, jax.random.key(1))

    @jax.jit
    def run(params, adapted):
        def each(params):
            return {
                name: found[name][0](params[name], *found[name][1:])[0]
                for name in found
            }

        def total(params):
            values = each(params)
            return sum(values.values()), values

        grads, values = jax.grad(total, has_aux=True)(params)
        merged = lora.merge(adapted, section)
        return values, grads, found["classify"][0](merged, *found["classify"][1:])[0]

    return run(params, adapted)


@pytest.mark.parametrize("family", FIELDS)
def test_every_objective_of_text_trains_every_leaf_of_a_family(family):
    values, grads, adapted = losses(family)
    assert all(np.isfinite(value) and value > 0 for value in values.values())
    np.testing.assert_allclose(adapted, values["classify"], rtol=1e-5)  # B is zero
    for name in ("mlm", "classify"):
        for leaf, value in strict.flatten(grads[name]).items():
            silent = leaf.endswith("key/bias")  # the softmax ignores a constant
            assert silent or np.any(value), (name, leaf)


def test_a_loop_of_global_and_local_blocks_has_the_losses_of_unrolled_ones():
    plain, looped = (
        losses("modernbert"),
        losses("modernbert", scan=True, remat="blocks"),
    )
    for one, other in zip(plain[:2], looped[:2], strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4),
            one,
            other,
        )


@pytest.mark.parametrize("family", FIELDS)
def test_every_rule_about_parameters_knows_the_leaves_of_a_family(family):
    leaves = {}
    for task in ("mlm", "classify"):
        model = tiny.build(task, ARCH[family], pooling="pooler")
        leaves |= strict.flatten(weights.shapes(model))
    own = {"modernbert": "pooler/norm/scale", "electra": "encoder/embed/project/kernel"}
    assert own[family] in leaves
    rules = {"sharding": sharding.RULES, "bounded": anchors.BOUNDED, **optim.DECAY}
    for name in leaves:
        for which, table in rules.items():
            known = (re.fullmatch(pattern, name) for pattern, _ in table)
            assert any(known), (which, name)


def test_a_modernbert_has_no_bias_but_those_of_its_head():
    model = tiny.build("mlm", ARCH["modernbert"])
    leaves = strict.flatten(weights.shapes(model))
    assert [name for name in leaves if name.endswith("bias")] == ["mlm/bias"]
    assert "encoder/block_00/norm1/scale" not in leaves
    assert "encoder/embed/position" not in leaves


@pytest.mark.parametrize("family", FIELDS)
def test_a_matched_extra_block_has_at_most_the_parameters_that_resizing_adds(family):
    arch = ARCH[family]

    def count(**last_block):
        options = dict(relu=False, norm_width=0, mlp_dim=0) | last_block
        model = tiny.build("encoder", {**arch, "last_block": options})
        return sum(leaf.size for leaf in strict.flatten(weights.shapes(model)).values())

    mlp_dim = matched.mlp_dim(arch, 160)
    more = [count(kind="extra", width=16, mlp_dim=mlp_dim + n) for n in (0, 1)]
    resized = count(kind="resized", width=160)
    assert more[0] <= resized < more[1]


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("modernbert", dict(local_window=0), "local_window=0 must be at least 2"),
        ("modernbert", dict(global_every=0), "global_every=0 must be at least 1"),
        ("modernbert", dict(pooled="max"), "pooled='max' is unknown"),
        ("modernbert", dict(embed_dim=4), "embed_dim=4 must be 0 with pre_norm"),
        ("electra", dict(biases=False), "biases, gated and pooler_norm are of models"),
        ("electra", dict(global_theta=9.0), "global_theta=9.0 must be .* 0 without"),
        ("electra", dict(embed_dim=-1), "embed_dim=-1 must lie in 0 to"),
    ],
)
def test_traits_that_no_text_model_has_are_refused(family, changes, text):
    traits = {**TRAITS[family], **changes}
    with pytest.raises(UserError, match=text):
        models.build(
            {**ARCH[family], "traits": traits},
            "encoder",
            **dict(dtype="float32", dropout=0.0, drop_path=0.0),
            **dict(pooling="cls", num_classes=0),
        )
