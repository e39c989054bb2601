"""The config unsup_finetune: which method does what, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import tiny, tiny_files

from flax_adapt import data, defaults
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.evals.embed import Embedder
from flax_adapt.experiment import measure, recipe
from flax_adapt.stage import check
from flax_adapt.train import sharding

# The masked loss of weights that have the part for it.
MASKED = {"mae": {"reconstruct"}, "mlm": {"perplexity"}}
OF_SOURCE = {"knn_source", "probe_source", "probe_l2_source"}
COLUMNS = {
    *("stage", "knn", "probe", "probe_l2", "alignment", "uniformity", "compactness"),
    *("spread_ratio", "rankme", "cka_target", "cka_source", "nmi"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(files, **arguments):
    fields = dict(dataset=files["images"], source=files["images"], init=files["init"])
    text = ",".join(
        f"{k}={v}" for k, v in {**fields, "per_class": 3, **arguments}.items()
    )
    return configs.load(f"unsup_finetune:{text}")


def of_text(files, **arguments):
    fields = dict(dataset=files["texts"], source=files["texts"], init=files["bert"])
    return load(files, **{**fields, "per_class": 2, **arguments})


@pytest.mark.parametrize(
    ("method", "replays", "operator", "pairing", "frozen"),
    [
        ("frozen", False, "none", "target_target", True),
        ("naive", False, "none", "target_target", False),
        ("replay", True, "none", "target_source", False),
        ("mixing", False, "cutmix", "target_target", False),
        ("both", True, "cutmix", "target_source", False),
    ],
)
def test_a_method_is_replay_and_mixing_and_a_frozen_encoder(
    files, method, replays, operator, pairing, frozen
):
    (stage,) = load(files, method=method, operator="cutmix", rho=0.5).stages
    assert (stage.replay is not None) == replays
    if replays:
        assert (stage.replay.ratio, stage.replay.final_ratio) == (0.5, 0.5)
    assert stage.objective.mixing.operator == operator
    assert stage.objective.mixing.pairing == pairing
    assert (r"encoder/.*" in stage.optim.freeze) == frozen


@pytest.mark.parametrize(
    ("arguments", "reading", "name"),
    [
        ({}, "imix", "contrast"),
        (dict(reading="unmix"), "unmix", "contrast"),
        (dict(objective="mae"), "instance", "reconstruct"),
    ],
)
def test_a_mixture_is_read_as_the_objective_can(files, arguments, reading, name):
    (stage,) = load(files, **arguments).stages
    assert (stage.objective.name, stage.objective.mixing.reading) == (name, reading)
    check.experiment(load(files, **arguments))


def test_only_contrast_has_views_and_heads(files):
    (contrast,) = load(files).stages
    (mae,) = load(files, objective="mae").stages
    assert (len(contrast.data.views), len(mae.data.views)) == (2, 0)
    assert (contrast.model.projector.hidden, mae.model.projector) == (4096, None)


def test_the_views_are_blurred_as_the_published_ones_at_their_size(files):
    view = load(files).stages[0].data.views[0]
    size = tiny_files.MODEL["image_size"]
    np.testing.assert_allclose(view.blur_sigma, (0.1 * size / 224, 2 * size / 224))


def test_contrast_alone_decays_all_as_moco_v3_and_freezes_the_patch_embedding(files):
    for objective, decay in (("contrast", "all"), ("mae", "pretrain")):
        optim = load(files, objective=objective).stages[0].optim
        assert optim.decay == decay
        assert (r"encoder/patch_embed/.*" in optim.freeze) == (decay == "all")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(operator="none"), "operator='none' is unknown"),
        (dict(pairing="all", method="naive"), "pairing='all' is unknown"),
        (dict(reading="both", method="naive"), "reading='both' is unknown"),
        (dict(method="nave"), "method='nave' is unknown; choose one of .*'naive'"),
        (dict(objective="mlm"), "objective='mlm' is unknown; choose one of"),
        (dict(form="simclr"), "form='simclr' is unknown; choose one of"),
    ],
)
def test_a_wrong_argument_is_named(files, arguments, text):
    with pytest.raises(UserError, match=text):
        load(files, **arguments)


def test_masked_modelling_needs_its_head(files):
    with pytest.raises(UserError, match="has no mlm, which objective=mlm starts from"):
        of_text(files, init=files["encoder"], objective="mlm", method="naive")


def test_masked_language_modelling_does_not_mix(files):
    with pytest.raises(
        UserError, match="method=both mixes examples, which objective=mlm"
    ):
        of_text(files, objective="mlm")


WRONG = {
    "pairing='target_source' needs source examples": dict(
        objective=defaults.reconstruct()
        | dict(mixing={**defaults.NO_MIXING, "operator": "mixup"})
    ),
    "'reconstruct' reads a mixture as instance": dict(
        objective=defaults.reconstruct()
        | dict(mixing=dict(operator="mixup", alpha=1.0, pairing="any", reading="imix"))
    ),
    "model.projector must be given for objective 'contrast'": dict(
        objective=defaults.contrast()
    ),
    "queue_size=0 must be at least 1": dict(
        objective=defaults.contrast(form="moco_v2"),
        model=defaults.pretrain_stage("", {})["model"]
        | dict(projector=defaults.projector(predictor_layers=0)),
    ),
    "optim.accum_steps=2 must be 1": dict(
        objective=defaults.contrast(),
        model=defaults.pretrain_stage("", {})["model"]
        | dict(projector=defaults.projector()),
        optim=defaults.pretrain_optim(accum_steps=2),
    ),
    "has 0 augmentations; objective 'contrast' needs 2": dict(
        objective=defaults.contrast(),
        model=defaults.pretrain_stage("", {})["model"]
        | dict(projector=defaults.projector()),
    ),
    "has 2 augmentations; objective 'reconstruct' needs 0": dict(
        data=tiny.digits(views=(defaults.NO_AUGMENT,) * 2)
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_work_is_refused_before_anything_runs(text):
    with pytest.raises(UserError, match=text):
        check.experiment(tiny.experiment({**tiny.pretrain(), **WRONG[text]}))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (24, "queue_size=24 must be a multiple of batch_size=16"),
        (48, "queue_size=48 is more than half of the 80 training examples.*40 or less"),
    ],
)
def test_a_queue_must_fit_batches_and_data(tmp_path, size, text):
    plain = (defaults.NO_AUGMENT,) * 2
    stage = tiny.pretrain() | dict(
        objective=defaults.contrast(form="moco_v2", queue_size=size),
        data=tiny.digits(views=plain, subset={**defaults.ALL, "per_class": 8}),
        model=defaults.pretrain_stage("", {})["model"]
        | dict(projector=defaults.projector(hidden=8, width=8, predictor_layers=0)),
    )
    with pytest.raises(UserError, match=text):
        recipe.run(tiny.experiment(stage), tmp_path, force=False)


@pytest.mark.usefixtures("compile_fast")
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (load, dict(objective="mae", operator="cutmix")),
        (of_text, dict(operator="cutmix")),
        (of_text, dict(objective="mlm", method="replay")),
    ],
)
def test_images_and_texts_are_adapted_and_measured(files, tmp_path, make, arguments):
    """From weights to a table of accuracy and drift, the source replayed."""
    config = tiny_files.shrink(make(files, **arguments))
    config.evaluate.update(knn_k=2, batch_size=8)
    recipe.run(config, tmp_path, force=False)
    (folder,) = (tmp_path / "stages").iterdir()
    assert json.loads((folder / "replay.json").read_text())["names"]
    rows = measure.evaluate(config, tmp_path)
    assert [row["stage"] for row in rows] == ["pretrained", folder.name]
    for row in rows:
        masked = MASKED.get(arguments.get("objective"), set())
        assert set(row) == COLUMNS | {"shot_1", "shot_1_std"} | OF_SOURCE | masked
        assert all(np.isfinite(value) for name, value in row.items() if name != "stage")
    # The first row is the initial model itself; training has moved the second.
    assert rows[0]["cka_source"] == pytest.approx(1, abs=1e-6)
    assert rows[1]["cka_source"] < 1 - 1e-6


def test_two_views_of_a_text_need_dropout(files):
    config = of_text(files, method="naive")
    config.stages[0].model.dropout = 0.0
    with pytest.raises(
        UserError, match=r"model.dropout=0 .* two views of a text the same"
    ):
        check.experiment(config)


def test_a_missing_split_to_replay_is_told_before_the_first_stage(files, tmp_path):
    more = dict(drift_split="train", source_split="nosplit")
    config = load(files, method="naive+replay", **more)
    with pytest.raises(UserError, match="nosplit"):
        recipe.run(config, tmp_path, force=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def embedder(files):
    return Embedder(
        files["init"],
        fit={},
        pooling="cls",
        batch_size=8,
        precision="float32",
        dropout=0.5,
        mesh=sharding.one_device(),
    )


@pytest.mark.usefixtures("compile_fast")
def test_views_of_images_differ_by_their_augmentation_alone(files, embedder):
    """Nothing is dropped in the model: without augmentation both views are the image."""
    config = tiny_files.shrink(load(files, method="naive"))
    section = config.evaluate.test
    with section.unlocked():
        section.views = (section.augment, config.stages[0].data.views[0])
    examples = data.open_examples(section, "")
    plain, same, other = (
        found.embeddings
        for found in (
            embedder.features(examples),
            embedder.view(examples, 0, 0),
            embedder.view(examples, 1, 0),
        )
    )
    np.testing.assert_array_equal(same, plain)
    assert np.all(np.any(np.abs(other - plain) > 1e-3, axis=1))


@pytest.mark.usefixtures("compile_fast")
def test_a_target_without_labels_is_measured_by_drift_alone(files, tmp_path):
    images = tmp_path / "images"
    for split in ("train", "test"):
        (images / split).mkdir(parents=True)
        for file in Path(files["images"].removeprefix("folder:")).glob(
            f"{split}/ant/*"
        ):
            shutil.copy(file, images / split)
    config = tiny_files.shrink(
        load(files, dataset=f"folder:{images}", per_class=0, method="naive")
    )
    recipe.run(config, tmp_path / "run", force=False)
    rows = measure.evaluate(config, tmp_path / "run")
    assert set(rows[1]) == (COLUMNS | OF_SOURCE) - {"knn", "probe", "probe_l2", "nmi"}
    with config.unlocked():
        config.evaluate.source = None
    with pytest.raises(UserError, match="has no classes; give"):
        measure.evaluate(config, tmp_path / "run")
