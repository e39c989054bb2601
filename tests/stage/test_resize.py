"""Stages that resize the last block: from any start, on any devices, exactly resumed."""

import json
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_runs
from support.depth import long_except
from support.runner import assert_identical, last_seen, launch, tensors

from flax_adapt import data, defaults, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.data.images import image
from flax_adapt.experiment import recipe
from flax_adapt.stage import check, stage
from flax_adapt.stage import resize as stage_resize
from flax_adapt.stage import weights as stage_weights
from flax_adapt.train import sharding

STAGES = ("expand", "narrow", "finetune")
FSDP = dict(data=1, fsdp=-1, tensor=1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbs, all parameters spread over 8 devices."""
    root = tmp_path_factory.mktemp("straight") / "resize"
    root.mkdir()
    workdir = root / "run"
    done = launch(workdir, workdir, devices=8, mesh=FSDP)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    ("stage", "step"), long_except([("narrow", 4)], [("narrow", 4), ("finetune", 1)])
)
def test_a_killed_run_goes_on_bit_for_bit(straight, tmp_path, stage, step):
    stop = dict(stage=stage, step=step, signal=signal.SIGKILL)
    stopped = launch(straight, tmp_path / "run", stop, devices=8, mesh=FSDP)
    assert stopped.returncode == -signal.SIGKILL
    again = launch(straight, tmp_path / "run", devices=8, mesh=FSDP)
    assert again.returncode == 0, again.stderr
    assert last_seen(tmp_path / "run") == last_seen(straight)
    for each in STAGES:
        assert_identical(tensors(tmp_path / "run", each), tensors(straight, each))


@pytest.mark.long
def test_one_device_gives_the_same_model(straight, tmp_path):
    """Also the components that the narrowed one starts from."""
    done = launch(straight, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for each in STAGES:
        ours, theirs = (tensors(w, each)[0] for w in (tmp_path / "run", straight))
        for name, leaf in theirs.items():
            if not name.endswith("key.bias"):  # its gradient is rounding alone
                scale = max(abs(leaf).max(), 1e-3)
                np.testing.assert_allclose(ours[name], leaf, atol=1e-4 * scale)


def test_exports_and_reports_tell_what_was_done(straight):
    for each, width in dict(expand=24, narrow=8, finetune=24).items():
        export = straight / "stages" / each / "export"
        config = weights.model_config(export)
        assert config["last_block"]["width"] == width
        assert config["last_block"]["relu"] == (each == "narrow")
    report = json.loads((straight / "stages/narrow/import_report.json").read_text())
    assert report["reshaped"]["encoder/block_01/shortcut/kernel"] == (
        "8 principal components of 16 features"
    )
    assert set(report["fresh"]) == {"encoder/norm/bias", "encoder/norm/scale"}
    kept = json.loads((straight / "stages/finetune/import_report.json").read_text())
    assert not kept["reshaped"]  # it came with its last block
    assert {name.split("/")[0] for name in kept["fresh"]} == {"head", "projector"}


def test_a_projector_is_dropped_for_evaluation(straight):
    exported, state = tensors(straight, "finetune")
    assert {"projector", "head", "encoder"} == set(state["params"])
    assert not [name for name in exported if "projector" in name or "classif" in name]
    folder = straight / "stages/finetune/export"
    model, params, _ = weights.from_pretrained(folder, "encoder")
    images = np.zeros((1, 8, 8, 1), np.float32)
    features = model.apply({"params": params}, images, "cls", method="embed")
    assert features.shape == (1, 24)


def experiment(*stages):
    return tiny.experiment(*stages, init="none")


def narrow(**changes):
    section = defaults.resize(5, init="pca", **changes)
    return ConfigDict(section)


def assert_components(found, rows):
    """Those of float64 [n, d], up to their sign."""
    right = np.linalg.svd(rows - rows.mean(0))[2][:5]
    np.testing.assert_allclose(np.abs(np.sum(right * found.T, axis=1)), 1, atol=1e-3)


def components_and_states(examples, count, **section):
    """What is found in several batches, the last not full, and all states at once."""
    config = dict(tiny.MODEL)
    params = tiny.params_of(tiny.build("mae", config))
    how = dict(batch_size=8, precision="float32", mesh=sharding.make_mesh(FSDP))
    found = stage_resize.principal_components(
        config, params, narrow(**section), examples, **how
    )
    batch = examples.batch(np.arange(count), np.arange(count))
    pixels = image.preprocess(batch["image"], None, examples.config, None)
    encoder = tiny.build("encoder", {**config, "decoder": None})
    states = encoder.apply(
        {"params": {"encoder": params["encoder"]}}, pixels, None, method="encode"
    )
    return found, [np.asarray(state, np.float64) for state in states]


FEW = dict(subset={**defaults.ALL, "per_class": 3})  # 30 digits


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("resized", "all"),
        ("resized", "first"),
        ("resized", "pooled"),
        ("linear", "all"),
    ],
)
def test_the_components_are_those_of_all_features_at_once(kind, tokens):
    examples = data.open_examples(ConfigDict(tiny.digits(**FEW)), "")
    found, states = components_and_states(examples, 30, kind=kind, tokens=tokens)
    # A layer at the end stands on the final states, another block before their norm.
    last = states[-1 if kind == "linear" else -2]
    kept = {"all": slice(None), "first": slice(0, 1), "pooled": slice(1, None)}[tokens]
    assert_components(found, last[:, kept].reshape(-1, 16))


def test_the_components_are_also_those_of_the_replayed_source():
    replay = ConfigDict(defaults.replay(tiny.digits(), 0.5))
    examples = data.open_replay(ConfigDict(tiny.digits(**FEW)), replay, "", 10)
    assert len(examples) > 30
    found, states = components_and_states(examples, len(examples))
    assert_components(found, states[-2].reshape(-1, 16))


def test_the_components_of_text_are_of_what_the_last_norm_is_given(tmp_path):
    """Padding is no token; packed documents are."""
    config = tiny_runs.TEXT_MODEL
    params = tiny.params_of(tiny.build("mlm", config))
    tiny_runs.texts(tmp_path)
    section = tiny_runs.text_data(tmp_path, "train", layout="packed", label_field="")
    examples = data.open_examples(ConfigDict(section), "")
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    how = dict(batch_size=8, precision="float32", mesh=mesh)
    found = stage_resize.principal_components(config, params, narrow(), examples, **how)
    batch = examples.batch(np.arange(len(examples)), np.arange(len(examples)))
    encoder = tiny.build("encoder", config)
    _, sums = encoder.apply(
        {"params": {"encoder": params["encoder"]}},
        batch["text"],
        None,
        method="encode",
        mutable=[models.SUMS],
    )
    (last,) = sums[models.SUMS]["encoder"]["block_01"]["sum"]
    rows = np.asarray(last, np.float64)[np.asarray(batch["text"].segments_BL) > 0]
    assert_components(found, rows)


def test_a_stage_from_scratch_may_have_another_last_block(tmp_path):
    model = defaults.stage_model(resize=defaults.resize(24, init="random"))
    config = tiny.experiment(tiny.pretrain(num_steps=2, model=model))
    (row,) = recipe.run(config, tmp_path, force=False)
    found = weights.model_config(row["export"])
    assert found["last_block"]["width"] == 24


def stage_with(**changes):
    model = defaults.stage_model(**changes)
    return tiny.pretrain(init_from="scratch", model=model)


HEAD = dict(layers=1, hidden=4, width=4, predictor_layers=0, batch_norm=False)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (
            stage_with(resize=defaults.resize(24)),
            "stage pretrain: model.resize.init='preserve' must be 'random'",
        ),
        (
            stage_with(projector=HEAD),
            "model.projector must be None for objective 'reconstruct'",
        ),
        (
            tiny.finetune(model=defaults.stage_model(projector={**HEAD, "batch_norm": True})),
            "needs batch_norm=False",
        ),
        (
            tiny.finetune(model=defaults.stage_model(projector={**HEAD, "predictor_layers": 1})),
            "and predictor_layers=0",
        ),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_be_is_refused_before_anything_runs(section, text):
    with pytest.raises(UserError, match=text):
        check.experiment(tiny.experiment(section))


def test_a_teacher_has_the_width_of_its_student(straight, open_files):
    """A distance between features of 16 and of 24 is none."""
    model = defaults.stage_model(resize=defaults.resize(24))
    student = tiny.distill(init_from="stage:pretrain", model=model)
    config = tiny.experiment(tiny.pretrain(), student)
    (run,) = recipe.stage_runs(config, straight)[1:]
    with pytest.raises(UserError, match=r"`model` is not what .*last_block"):
        stage_weights.load_teacher(run, open_files)
    expanded = ConfigDict({**config.stages[1], "teacher": "stage:expand"})
    teacher = stage_weights.load_teacher(run._replace(config=expanded), open_files)[
        "teacher"
    ]
    kernel = teacher["encoder"]["block_01"]["shortcut"]["kernel"]
    assert jax.tree.leaves(kernel)[0].shape == (16, 24)


def test_low_rank_adaptors_would_freeze_a_new_last_block(straight, open_files):
    lora = defaults.stage_model(
        resize=defaults.resize(24), lora=defaults.lora(), fresh=("head",)
    )
    config = tiny.experiment(
        tiny.pretrain(), tiny.finetune(init_from="stage:pretrain", model=lora)
    )
    (run,) = recipe.stage_runs(config, straight)[1:]
    examples = data.open_examples(run.config.data, "")
    arguments = (stage.build_model(run, 10), examples, sharding.one_device())
    with pytest.raises(UserError, match=r"model\.lora would freeze"):
        stage_weights.warm_start(run, *arguments, open_files)
    again = ConfigDict({**run.config, "init_from": "stage:expand"})
    _, _, report = stage_weights.warm_start(
        run._replace(config=again), *arguments, open_files
    )
    assert not report.reshaped  # its last block came with it
