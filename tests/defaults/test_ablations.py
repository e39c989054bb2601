"""S1's ablations: predictions by NumPy, no masked loss, and what the configs make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny, tiny_files
from support.depth import long_except

from flax_adapt import defaults, objectives
from flax_adapt.base import config as configs
from flax_adapt.base import keys
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.models import masking
from flax_adapt.objectives import mlm, reconstruct
from flax_adapt.stage import check

pytestmark = pytest.mark.usefixtures("compile_fast")
RECONSTRUCT = defaults.reconstruct() | dict(hidden_ratio=0.5)
MLM = defaults.mlm(tiny.MASK) | dict(mask_rate=0.5, max_masked_fraction=0.5)
MASKED = {"image": RECONSTRUCT, "text": MLM}


def section(modality, **changes):
    return ConfigDict(defaults.distill(MASKED[modality]) | changes)


def made(modality, dropout=0.0, **changes):
    """(loss, model, parameters, frozen, batch, keys)"""
    config = section(modality, **changes)
    arch = {**(tiny.MODEL if modality == "image" else tiny.TEXT_MODEL), "depth": 1}
    model = tiny.build(objectives.task_of(config), arch, dropout=dropout)
    batch = tiny.batch_of() if modality == "image" else tiny.text_batch_of()
    batch["weight"][2] = 0
    key_B = keys.example_keys(jax.random.key(0), batch["position"])
    frozen = {"teacher": tiny.params_of(model, seed=1)}
    loss_fn = jax.jit(objectives.build(config, model))
    return loss_fn, model, tiny.params_of(model), frozen, batch, key_B


def images_by_numpy(model, params, teacher, batch, key_B):
    noise_BL = masking.patch_noise(keys.fold(key_B, reconstruct._MASK), 4)
    (ours, hidden), (theirs, _) = (
        model.apply({"params": p}, batch["image"], noise_BL, None, 0.5)
        for p in (params, teacher)
    )
    error = np.mean((np.float64(ours) - theirs) ** 2, axis=-1)
    return np.mean(error[np.array(hidden) & (batch["weight"] > 0)[:, None]])


def texts_by_numpy(model, params, teacher, batch, key_B):
    names = ("mask_rate", "mask_token_id", "mask_share", "random_share", "whole_word")
    how = {name: MLM[name] for name in names} | {"vocab_size": 29}
    text = batch["text"]
    hidden = masking.hide_tokens(text, keys.fold(key_B, mlm._MASK), **how)
    at_BM, chosen = masking.places(hidden.hidden_BL, 6)
    logits = [
        np.float64(
            model.apply(
                {"params": p}, text._replace(tokens_BL=hidden.tokens_BL), at_BM, None
            )
        )
        for p in (params, teacher)
    ]
    q, p = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in logits)
    error = np.sum(p * np.log(p / q), axis=-1)
    return np.mean(error[np.array(chosen) & (batch["weight"] > 0)[:, None]])


BY_NUMPY = {"image": images_by_numpy, "text": texts_by_numpy}


@pytest.mark.parametrize("modality", MASKED)
def test_predictions_are_compared_for_the_same_mask(modality):
    loss_fn, model, params, frozen, batch, key_B = made(
        modality, match="predictions", weight=0.5
    )
    loss, metrics = loss_fn(params, frozen, batch, key_B)
    expected = BY_NUMPY[modality](model, params, frozen["teacher"], batch, key_B)
    np.testing.assert_allclose(metrics["distill"].value(), expected, rtol=1e-4)
    masked = metrics["reconstruct" if modality == "image" else "mlm"].value()
    np.testing.assert_allclose(loss, masked + 0.5 * expected, rtol=1e-4)
    same = loss_fn(params, {"teacher": params}, batch, key_B)[1]
    np.testing.assert_allclose(same["distill"].value(), 0, atol=1e-6)


@pytest.mark.parametrize("modality", MASKED)
def test_no_gradient_reaches_a_teacher_of_predictions(modality):
    loss_fn, _, *arguments = made(modality, dropout=0.2, match="predictions")
    grads = jax.jit(jax.grad(lambda *a: loss_fn(*a)[0], (0, 1)))(*arguments)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads[0]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads[1]))


def test_divergence_by_hand(strict_dtypes):
    student, teacher = jnp.zeros((1, 1, 2)), jnp.float32([[[np.log(3), 0]]])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(
        mlm.divergence(student, teacher), [[expected]], rtol=1e-5
    )


@pytest.mark.parametrize("modality", MASKED)
def test_without_the_masked_loss_only_distillation_is_left(modality):
    loss_fn, _, params, frozen, batch, key_B = made(
        modality, masked_weight=0.0, weight=2.0
    )
    whole_fn, *_ = made(modality, weight=2.0)
    distance = whole_fn(params, frozen, batch, key_B)[1]["distill"].value()
    loss, metrics = loss_fn(params, frozen, batch, key_B)
    np.testing.assert_allclose(loss, 2 * distance, rtol=1e-6)
    assert set(metrics) == {"loss", "distill"}
    assert objectives.metrics_of(section(modality, masked_weight=0.0)) == (
        "loss",
        "distill",
    )
    grads = jax.grad(lambda p: loss_fn(p, frozen, batch, key_B)[0])(params)
    head = grads["decoder" if modality == "image" else "mlm"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(head))


def test_the_masked_loss_can_weigh_less():
    weights = (1.0, 0.25)
    losses = [
        made("image", masked_weight=weight)[0](*made("image")[2:])[1]
        for weight in weights
    ]
    masked, distance = losses[0]["reconstruct"].value(), losses[0]["distill"].value()
    for weight, metrics in zip(weights, losses, strict=True):
        expected = weight * masked + distance
        np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(match="logits"), "objective.match='logits' is unknown.*'predictions'"),
        (dict(masked_weight=-1.0), "objective.masked_weight=-1.0 must be at least 0"),
        (dict(weight=float("nan")), "objective.weight=nan must be at least 0, and"),
    ],
)
def test_errors_name_the_field(changes, text):
    with pytest.raises(UserError, match=text):
        made("image", **changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


CONFIGS = {
    "vit_self_distill": "dataset={images},init={init}",
    "bert_self_distill": "dataset={texts},init={bert},pooling=cls",
}


def load(name, files, more):
    return configs.load(f"{name}:{CONFIGS[name].format(**files)}{more}")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("ablation", "stages", "taught"),
    [
        ("none", ["distill_1", "finetune_distilled"], True),
        ("no_masked", ["distill_1", "finetune_no_masked"], True),
        ("predictions", ["distill_1", "finetune_predictions"], True),
        ("weight_distance", ["weight_distance", "finetune_weight_distance"], False),
        ("twice", ["twice", "finetune_twice"], False),
    ],
)
def test_an_ablation_takes_the_place_of_self_distillation(
    files, name, ablation, stages, taught
):
    config = load(name, files, f",ablation={ablation},compare=False")
    check.experiment(config)
    names = [stage.name for stage in config.stages]
    assert names[-2:] == stages
    assert ("further" in names) == taught
    stage, last = config.stages[-2:]
    assert last.init_from == f"stage:{stage.name}"
    whole = load(name, files, "")
    further = next(s for s in whole.stages if s.name == "further")
    assert stage.num_steps == (2 if ablation == "twice" else 1) * further.num_steps
    assert [p.name for p in stage.penalties] == ["weight_distance"] * (
        ablation == "weight_distance"
    )
    if taught:
        assert stage.objective.masked_weight == (ablation != "no_masked")
        assert (stage.objective.match == "predictions") == (ablation == "predictions")


def test_an_ablation_is_compared_with_the_same_rows(files):
    config = load("vit_self_distill", files, ",ablation=twice")
    names = [stage.name for stage in config.stages]
    assert names == [
        "finetune_start",
        "further",
        "finetune_further",
        "twice",
        "finetune_twice",
    ]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (",ablation=half", "ablation='half' is unknown; choose one of .*'no_masked'"),
        (",ablation=twice,rounds=2", "rounds=2: ablation=twice has none"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused(files, more, text):
    with pytest.raises(UserError, match=text):
        load("vit_self_distill", files, more)


@pytest.mark.parametrize("name", long_except(["vit_self_distill"], CONFIGS))
def test_predictions_are_distilled_from_the_whole_teacher(files, name, tmp_path):
    config = tiny_files.shrink(load(name, files, ",ablation=predictions,compare=False"))
    config.stages = config.stages[:-1]
    rows = recipe.run(config, tmp_path, force=False)
    assert all(np.isfinite(row["mean"]) for row in rows)
    before, after = (
        load_file(tmp_path / f"stages/{stage}/export/model.safetensors")
        for stage in ("further", "distill_1")
    )
    assert before.keys() == after.keys()


def test_features_are_the_smooth_distance_to_whitened_tokens_by_numpy():
    """Feature distillation: PyTorch's smooth_l1_loss(beta=2) and layer_norm, by NumPy."""
    changes = dict(match="features", state="tokens", reduce="mean", masked_weight=0.0)
    loss_fn, model, params, frozen, batch, key_B = made("image", beta=0.5, **changes)
    ours, theirs = (
        np.float64(
            model.apply({"params": p}, batch["image"], None, method="encode")[-1]
        )
        for p in (params, frozen["teacher"])
    )
    center = theirs - theirs.mean(axis=-1, keepdims=True)
    target = center / np.sqrt(np.mean(center**2, axis=-1, keepdims=True) + 1e-5)
    size = np.abs(ours - target)
    error = np.where(size < 0.5, size**2 / (2 * 0.5), size - 0.25)
    assert (size < 0.5).any()
    assert (size > 0.5).any()
    loss, metrics = loss_fn(params, frozen, batch, key_B)
    counted = error.mean(axis=-1)[np.asarray(batch["weight"]) > 0]
    np.testing.assert_allclose(loss, counted.mean(), rtol=1e-5)
    assert "reconstruct" not in metrics
    toward = jax.grad(lambda frozen: loss_fn(params, frozen, batch, key_B)[0])(frozen)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(toward))
