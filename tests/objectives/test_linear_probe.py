"""The linear probe: a head on frozen features behind batch norm, by LARS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_resnet
from support.tiny_meshes import mesh_of

from flax_adapt import defaults, objectives
from flax_adapt.base.errors import UserError
from flax_adapt.models import batch_stats
from flax_adapt.stage import check
from flax_adapt.surgery import heads
from flax_adapt.train import optim, sharding
from flax_adapt.train import state as states
from flax_adapt.train import step as steps

pytestmark = pytest.mark.usefixtures("compile_fast")
ARCHS = {"image": {**tiny.MODEL, "depth": 1}, "text": {**tiny.TEXT_MODEL, "depth": 1}}
LR, STEPS = 50.0, 9  # of one step of warm-up, so that the first has a rate of 0
EPS, MOMENTUM = 1e-6, 0.1


def probe(kind="image"):
    return tiny.build("classify", ARCHS[kind], head_norm=True)


def batch_of(kind="image", seed=0):
    """Two rows of eight do not count."""
    batch = (
        tiny.batch_of(8, seed)
        if kind == "image"
        else tiny.text_batch_of(8, seed, packed=False)
    )
    return {**batch, "weight": np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)}


def features_of(params, kind, batch):
    model = tiny.build("encoder", ARCHS[kind])
    inputs = batch[model.modality]
    encoder = {"params": {"encoder": params["encoder"]}}
    return np.asarray(model.apply(encoder, inputs, "cls", method="embed"), np.float64)


@functools.cache
def trained(kind, mesh_name):
    """Three steps: (what each began with, its loss), parameters, statistics; batches."""
    mesh, model = mesh_of(mesh_name), probe(kind)
    params, statistics = batch_stats.split(tiny.params_of(model))
    section = ConfigDict(defaults.probe_optim(STEPS, LR))
    tx = optim.build(section, STEPS, params)
    config = ConfigDict(defaults.classify())
    carry = objectives.build_carry(config, STEPS, statistics)
    state = states.create(params, tx, mesh, seed=3, carry=carry)
    loss_fn = optim.stop_frozen(objectives.build(config, model), section.freeze)
    step, seen = steps.make_train_step(loss_fn, tx, mesh, carry=carry), []
    for number in range(3):
        before = jax.tree.map(np.array, state.params)
        batch = sharding.put_batch(batch_of(kind, number), mesh)
        state, metrics = step(state, batch)
        seen.append((before, float(metrics["loss"].value())))
    return seen, *jax.tree.map(np.array, (state.params, state.statistics))


def standardised(features_BD, weight_B):
    rows = features_BD[weight_B > 0]
    return (features_BD - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + EPS)


def loss_and_gradients(head, features_BD, batch):
    """Softmax regression of the rows that count, by hand."""
    weight_B = batch["weight"] / batch["weight"].sum()
    logits_BN = features_BD @ head["kernel"].astype(np.float64) + head["bias"]
    logits_BN = logits_BN - logits_BN.max(axis=1, keepdims=True)
    p_BN = np.exp(logits_BN) / np.exp(logits_BN).sum(axis=1, keepdims=True)
    target_BN = np.eye(p_BN.shape[1])[batch["label"]]
    error_BN = (p_BN - target_BN) * weight_B[:, None]
    loss = -np.sum(weight_B * np.log(np.sum(p_BN * target_BN, axis=1)))
    return loss, {"kernel": features_BD.T @ error_BN, "bias": error_BN.sum(axis=0)}


@pytest.mark.parametrize("kind", ARCHS)
def test_losses_and_updates_equal_numpy(kind):
    seen, params, _ = trained(kind, "one")
    head, velocity = seen[0][0]["head"], {"kernel": 0.0, "bias": 0.0}
    rate = optim.schedule(ConfigDict(defaults.probe_optim(STEPS, LR)), STEPS)
    for number, (before, measured) in enumerate(seen):
        batch = batch_of(kind, number)
        features_BD = features_of(before, kind, batch)
        features_BD = standardised(features_BD, batch["weight"])
        loss, grads = loss_and_gradients(head, features_BD, batch)
        np.testing.assert_allclose(measured, loss, rtol=1e-5)
        norms = [np.linalg.norm(tree["kernel"]) for tree in (head, grads)]
        grads["kernel"] = grads["kernel"] * 1e-3 * norms[0] / norms[1]
        velocity = {name: 0.9 * velocity[name] + grads[name] for name in grads}
        head = {
            name: head[name] - float(rate(number)) * velocity[name] for name in head
        }
    for name, leaf in head.items():
        np.testing.assert_allclose(params["head"][name], leaf, rtol=1e-4, atol=1e-5)
    assert np.abs(head["kernel"] - seen[0][0]["head"]["kernel"]).max() > 1e-3


def test_the_backbone_stays_to_the_bit():
    seen, params, _ = trained("image", "one")
    jax.tree.map(
        np.testing.assert_array_equal, params["encoder"], seen[0][0]["encoder"]
    )


def test_running_statistics_are_those_of_the_rows_that_count():
    seen, _, statistics = trained("image", "one")
    _, first = batch_stats.split(tiny.params_of(probe()))
    mean_D, var_D = (np.array(first["norm"][name]) for name in ("mean", "var"))
    for number, (before, _) in enumerate(seen):
        batch = batch_of("image", number)
        rows = features_of(before, "image", batch)[batch["weight"] > 0]
        mean_D = mean_D + MOMENTUM * (rows.mean(axis=0) - mean_D)
        var_D = var_D + MOMENTUM * (rows.var(axis=0, ddof=1) - var_D)
    np.testing.assert_allclose(statistics["norm"]["mean"], mean_D, atol=1e-5)
    np.testing.assert_allclose(statistics["norm"]["var"], var_D, atol=1e-5)


def test_a_step_is_the_same_on_eight_devices():
    (one, params, statistics), eight = (
        trained("image", "one"),
        trained("image", "eight"),
    )
    np.testing.assert_allclose([x[1] for x in eight[0]], [x[1] for x in one], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(eight[1:], (params, statistics)),
    )


@pytest.mark.parametrize("kind", ARCHS)
def test_what_is_kept_is_an_ordinary_classifier_that_says_the_same(kind):
    model, batch = probe(kind), batch_of(kind)
    stored = tiny.params_of(model)
    stored = jax.tree.map(jnp.asarray, stored)
    stored["batch_stats"]["norm"]["var"] = jnp.abs(stored["batch_stats"]["norm"]["var"])
    inputs = batch[model.modality]
    said = model.apply(batch_stats.variables(stored), inputs, None)
    plain = tiny.build("classify", ARCHS[kind])
    kept = plain.apply({"params": heads.fold(stored)}, inputs, None)
    np.testing.assert_allclose(kept, said, atol=1e-5)
    without = plain.apply({"params": batch_stats.split(stored)[0]}, inputs, None)
    assert np.abs(without - said).max() > 0.01


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            dict(objective=defaults.glad()),
            r"must be False for a vit and objective 'glad'",
        ),
        (dict(fresh=()), r"must then be new: name 'head' in model.fresh"),
        (dict(accum_steps=2), r"optim.accum_steps=2 must be 1: batch norm goes by all"),
        (
            dict(penalties=(defaults.r3f(),)),
            r"\['r3f'\] and fisher are not of model.head_n",
        ),
        (dict(fisher=defaults.fisher()), r"\[\] and fisher are not of model.head_norm"),
    ],
)
def test_what_does_not_go_with_it_is_told_before_anything_runs(changes, text):
    model = dict(head_norm=True, fresh=changes.pop("fresh", ("head",)))
    if changes.get("objective"):
        model["adaptor"] = defaults.adaptor()
    parts = changes.pop("accum_steps", 1)
    stage = tiny.finetune(
        init_from="scratch",
        model=defaults.stage_model(**model),
        optim=defaults.finetune_optim(accum_steps=parts, warmup_steps=0),
        **changes,
    )
    with pytest.raises(UserError, match=text):
        check.experiment(tiny.experiment(stage))


def test_a_resnet_has_its_own_batch_norm():
    with pytest.raises(UserError, match=r"model.head_norm must be False for a resnet"):
        tiny_resnet.build("classify", head_norm=True)
