"""GLAD as stages: exactly resumed, on any devices; the backbone goes on to what follows."""

import signal

import numpy as np
import pytest
from support import tiny, tiny_runs
from support.depth import long_except
from support.runner import assert_identical, last_seen, launch, tensors

from flax_adapt import data, defaults, weights
from flax_adapt.base.errors import UserError
from flax_adapt.base.logs import read_json
from flax_adapt.data.images import image
from flax_adapt.experiment import measure, recipe
from flax_adapt.stage import check, stage
from flax_adapt.stage import weights as stage_weights
from flax_adapt.surgery import adaptors
from flax_adapt.weights import strict

STAGES = ("masked", "preserve", "adaptors", "further")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "glad"
    root.mkdir()
    done = launch(root / "run", root / "run")
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.mark.parametrize(
    ("stage", "step"), long_except([("preserve", 3)], [("masked", 4), ("preserve", 3)])
)
def test_a_killed_run_goes_on_bit_for_bit(straight, tmp_path, stage, step):
    """The start that "preserve" compares with is read again, not stored."""
    stop = dict(stage=stage, step=step, signal=signal.SIGKILL)
    stopped = launch(straight, tmp_path / "run", stop)
    assert stopped.returncode == -signal.SIGKILL
    again = launch(straight, tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert last_seen(tmp_path / "run") == last_seen(straight)
    for each in STAGES:
        assert_identical(tensors(tmp_path / "run", each), tensors(straight, each))


@pytest.mark.long
def test_eight_devices_give_the_same_model(straight, tmp_path):
    mesh = dict(data=2, fsdp=4, tensor=1)
    done = launch(straight, tmp_path / "run", devices=8, mesh=mesh)
    assert done.returncode == 0, done.stderr
    for each in STAGES:
        ours, theirs = (tensors(w, each)[0] for w in (tmp_path / "run", straight))
        for name, leaf in theirs.items():
            if not name.endswith("key.bias"):  # its gradient is rounding alone
                scale = max(abs(leaf).max(), 1e-3)
                np.testing.assert_allclose(ours[name], leaf, atol=1e-4 * scale)


def test_an_export_is_the_backbone_and_what_was_trained_beside(straight):
    for each, parts in dict(
        masked={"encoder", "decoder"}, preserve={"encoder"}, adaptors={"encoder"}
    ).items():
        folder = straight / "stages" / each / "export"
        task = "mae" if "decoder" in parts else "encoder"
        _, loaded, report = weights.load(folder, task, pooling=None)
        assert set(loaded) == parts
        assert not report.ignored
        assert not adaptors.leaves_of(strict.flatten(loaded))
        _, state = tensors(straight, each)
        trained = strict.flatten(adaptors.drop(state["params"]))
        for name, leaf in strict.flatten(loaded).items():
            np.testing.assert_array_equal(leaf, trained[name])


def test_only_adaptors_and_head_move_where_the_backbone_is_frozen(straight):
    _, state = tensors(straight, "adaptors")
    start = straight / "stages/preserve/export"
    _, before, _ = weights.load(start, "encoder", pooling=None)
    before, after = strict.flatten(before), strict.flatten(state["params"])
    for name, leaf in after.items():
        if adaptors.is_adaptor(name):
            assert np.any(leaf != 0), name
        elif name.startswith("encoder/"):
            np.testing.assert_array_equal(leaf, before[name])


def test_a_checkpoint_is_the_classifier_with_its_adaptors(straight):
    """And the accuracy that was measured is its own."""
    folder = straight / "stages/preserve/checkpoints"
    model, params, _ = weights.from_pretrained(folder, "classify")
    assert model.config.adaptor is not None
    section = tiny.experiment(tiny.finetune()).stages[0].eval.data
    examples = data.open_examples(section, "")
    rows = np.arange(len(examples))
    batch = examples.batch(rows, rows)
    pixels = image.preprocess(batch["image"], None, section, None)
    logits = model.apply({"params": params}, pixels, None)
    correct = np.argmax(logits, axis=1) == batch["label"]
    result = read_json(straight / "stages/preserve/result.json")
    assert np.mean(correct) == pytest.approx(result["eval"]["accuracy"], abs=1e-6)


def test_every_stage_can_be_measured(straight):
    config = tiny_runs.glads(None)
    with config.unlocked():
        config.evaluate.knn_k = 3
    rows = measure.evaluate(config, straight)
    assert [row["stage"] for row in rows] == ["pretrain", *STAGES]


def glad(**options):
    model = defaults.stage_model(fresh=("head",), **options)
    return tiny.finetune(objective=defaults.glad(), init_from="scratch", model=model)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (glad(), "model.adaptor must be given for objective 'glad', such as"),
        (
            tiny.pretrain(model=defaults.stage_model(adaptor=defaults.adaptor())),
            "model.adaptor must be None for objective 'reconstruct'",
        ),
    ],
)
def test_adaptors_where_they_belong(section, text):
    with pytest.raises(UserError, match=text):
        check.experiment(tiny.experiment(section))


def test_the_masked_regularizer_needs_the_decoder_of_the_weights(
    straight, tmp_path, open_files
):
    options = dict(fresh=("head",), adaptor=defaults.adaptor())
    section = tiny.finetune(
        init_from=str(straight / "stages/preserve/export"),
        objective=defaults.glad(regularizer="masked"),
        model=defaults.stage_model(**options),
    )
    config = tiny.experiment(section)
    (run,) = recipe.stage_runs(config, tmp_path)
    model = stage.build_model(run, 10)
    with pytest.raises(UserError, match="an encoder without the decoder"):
        stage_weights.warm_start(run, model, None, None, open_files)
