"""Stages that train a ResNet with a resized last block: start, resume, export, eval."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_resnet
from support.hf_folders import assert_same
from support.runner import assert_identical, tensors
from support.tiny_resnet import RESIZE, RESIZED

from flax_adapt import data, defaults, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.data.images import image
from flax_adapt.evals import embed
from flax_adapt.experiment import measure, recipe
from flax_adapt.models import batch_stats, resnet
from flax_adapt.stage import check, loop, stage
from flax_adapt.stage import weights as stage_weights
from flax_adapt.surgery import SURGERY, TrainedBlock
from flax_adapt.train import sharding
from flax_adapt.weights import strict

pytestmark = pytest.mark.usefixtures("compile_fast")

# One stage of two blocks: nothing else would differ but the time to compile it.
MODEL = {**tiny_resnet.MODEL, "planes": [3], "depths": [2]}
STAGES = ("classify", "contrast")
HEAD = ("head/bias", "head/kernel")
NORMS = ("norm3", "shortcut/norm")
BLOCK = "encoder/stage_1/block_01"
FRESH = {
    *HEAD,
    *(f"{BLOCK}/{name}/kernel" for name in ("conv3", "shortcut/conv")),
    *(f"{BLOCK}/{name}/{leaf}" for name in NORMS for leaf in ("scale", "bias")),
    *(
        f"batch_stats/{BLOCK}/{name}/{leaf}"
        for name in NORMS
        for leaf in ("mean", "var")
    ),
}


def contrast_stage():
    plain = {**defaults.NO_AUGMENT, "flip": True, "min_crop_area": 0.5}
    images = tiny.digits(subset={**defaults.ALL, "per_class": 8}, views=(plain, plain))
    heads = defaults.projector(**tiny_resnet.HEADS_V2)
    model = tiny_resnet.stage_model(
        resize=RESIZE, projector=heads, fresh=("projector",)
    )
    return defaults.pretrain_stage(
        "contrast",
        images,
        num_steps=4,
        batch_size=16,
        init_from="stage:classify",
        objective=defaults.contrast(form="moco_v2", queue_size=32),
        optim=defaults.pretrain_optim(lr=1e-3, freeze=()),
        model=model,
    )


def classify_stage(**changes):
    model = tiny_resnet.stage_model(resize=RESIZE, fresh=("head",))
    return tiny_resnet.classify(model=model, **changes)


def experiment(init, *stages, **changes):
    few = {**defaults.ALL, "per_class": 4}
    images = (tiny.digits(subset={**few, "part": part}) for part in ("chosen", "rest"))
    section = defaults.evaluate(*images, pooling="mean")
    return tiny.experiment(
        *stages, init=str(init), model=MODEL, evaluate=section, **changes
    )


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A file as torchvision's: it says nothing of the size of the images."""
    file = tmp_path_factory.mktemp("init") / "resnet.safetensors"
    model = tiny_resnet.build("classify", **MODEL)
    stored = tiny_resnet.stored_of(model)
    weights.save_pretrained(file, model, stored, format="torchvision")
    return file


@pytest.fixture(scope="module")
def config(init):
    return experiment(init, classify_stage(), contrast_stage())


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory, compile_fast):
    """The workdir of a run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("straight")
    recipe.run(config, workdir, force=False)
    return workdir


class Stopped(Exception):
    pass


def run_until(config, workdir, label, step, monkeypatch):
    """Runs, and falls over before a step."""
    advance = loop.Run.advance

    def stopping(run, number):
        if (run.stage.label, number) == (label, step):
            raise Stopped
        advance(run, number)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Run, "advance", stopping)
        with pytest.raises(Stopped):
            recipe.run(config, workdir, force=False)


def test_a_run_that_fell_over_goes_on_bit_for_bit(
    config, straight, tmp_path, monkeypatch
):
    """Each time a step is done that was not saved; statistics and queue with the rest."""
    for label in STAGES:
        run_until(config, tmp_path, label, 4, monkeypatch)
    recipe.run(config, tmp_path, force=False)
    for label in STAGES:
        ours, theirs = tensors(tmp_path, label), tensors(straight, label)
        assert batch_stats.NAME in theirs[1]["extra"]
        assert_identical(ours, theirs)
    assert "queue" in theirs[1]["extra"]
    assert batch_stats.NAME not in theirs[1]["extra"]["key_encoder"]


def test_everything_but_the_last_block_and_the_head_comes_from_the_file(
    config, init, straight, tmp_path, open_files
):
    report = json.loads((straight / "stages/classify/import_report.json").read_text())
    assert set(report["fresh"]) == FRESH
    named = set(report["ignored"].values())
    assert named == {"named fresh"}
    (run, _) = recipe.stage_runs(config, tmp_path)
    model = stage.build_model(run, 10)
    examples = data.open_examples(run.config.data, "")
    params, statistics, _ = stage_weights.warm_start(
        run, model, examples, sharding.one_device(), open_files
    )
    found = strict.flatten(batch_stats.join(params, statistics))
    theirs = strict.flatten(weights.load(init, "classify", pooling=None)[1])
    assert {*found} == {*theirs} | FRESH
    taken = {leaf: found[leaf] for leaf in found if leaf not in FRESH}
    assert_same(taken, {leaf: theirs[leaf] for leaf in taken})
    assert found[f"{BLOCK}/conv3/kernel"].shape == (1, 1, 3, RESIZE["width"])


@pytest.mark.parametrize(("width", "is_new"), [(12, False), (20, True)])
def test_the_kernel_of_a_head_is_new_where_the_width_is(width, is_new):
    leaves = strict.flatten(tiny_resnet.shapes(tiny_resnet.build("classify", **MODEL)))
    section = {**RESIZE, "width": width}
    done = SURGERY["resnet"].resize(
        TrainedBlock(leaves, {}, MODEL, section, None, None)
    )
    assert ("head/kernel" in done.fresh) == is_new
    assert done.leaves == leaves
    others = {*done.fresh} - {"head/kernel"}
    assert {
        leaf for leaf in FRESH if any(leaf.startswith(f"{p}/") for p in others)
    } == (FRESH - {*HEAD})


def test_an_export_and_a_checkpoint_are_the_same_weights(straight, init):
    before = strict.flatten(weights.load(init, "encoder", pooling=None)[1])
    for label in STAGES:
        folder = straight / "stages" / label
        found, stored, _ = weights.load(folder / "export", "encoder", pooling=None)
        assert found["last_block"] == RESIZED
        where, same, report = weights.load(
            folder / "checkpoints", "encoder", pooling=None
        )
        assert where == found
        assert_same(same, stored)
        parts = {rule.partition(" ")[0] for rule in report.ignored.values()}
        assert parts == ({"head"} if label == "classify" else {"projector"})
        moved = strict.flatten(stored)["batch_stats/encoder/stem/norm/mean"]
        assert np.all(moved != before["batch_stats/encoder/stem/norm/mean"])


def test_an_export_embeds_as_the_trained_model_does(straight, config):
    """And evaluation during training went by the statistics of that moment."""
    folder = straight / "stages/classify"
    state = tensors(straight, "classify")[1]
    trained = batch_stats.join(state["params"], state["extra"][batch_stats.NAME])
    model, stored, _ = weights.from_pretrained(folder / "export", "classify")
    examples = data.open_examples(config.stages[0].eval.data, "")
    rows = np.arange(len(examples))
    batch = examples.batch(rows, rows)

    @jax.jit
    def run(weights, pixels):
        images = image.preprocess(pixels, None, examples.config, None)
        variables = batch_stats.variables(weights)
        embedded = model.apply(variables, images, "mean", method="embed")
        return embedded, model.apply(variables, images, None)

    embedded, logits = run(stored, batch["image"])
    assert_same((embedded, logits), run(trained, batch["image"]))
    result = json.loads((folder / "result.json").read_text())
    log_p = jax.nn.log_softmax(logits)[rows, examples.labels]
    np.testing.assert_allclose(result["eval"]["loss"], -np.mean(log_p), rtol=1e-5)
    embedder = embed.Embedder(
        folder / "export",
        fit={},
        pooling="mean",
        batch_size=64,
        precision="float32",
        mesh=sharding.one_device(),
    )
    features = embedder.features(examples)
    np.testing.assert_allclose(features.embeddings, embedded, atol=1e-5)


def test_eval_measures_the_file_and_every_stage(straight, config):
    rows = measure.evaluate(config, straight)
    assert [row["stage"] for row in rows] == ["pretrained", *STAGES]
    assert all(np.isfinite([row["knn"], row["probe"]]).all() for row in rows)


def test_new_weights_start_as_torchvision_s():
    kernel = resnet.KERNEL(jax.random.key(0), (3, 3, 64, 128), jnp.float32)
    deviation = np.sqrt(2 / (3 * 3 * 128))
    np.testing.assert_allclose(np.std(kernel), deviation, rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * deviation  # not cut off
    model = tiny_resnet.build("encoder", planes=[1], depths=[1])
    stored = models.init_params(model, jax.random.key(0))
    expected = {"scale": 1, "var": 1, "bias": 0, "mean": 0}
    for leaf, value in strict.flatten(stored).items():
        if (name := leaf.rpartition("/")[2]) in expected:
            np.testing.assert_array_equal(value, np.full_like(value, expected[name]))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(optim=dict(accum_steps=2)), "optim.accum_steps=2 must be 1: batch norm"),
        (dict(optim=dict(layer_decay=0.7)), "optim.layer_decay=0.7 must be 1.0"),
        (
            dict(model=dict(pooling="cls")),
            r"model.pooling='cls' is unknown.*\['mean'\]",
        ),
        (
            dict(resize=dict(init="preserve")),
            "model.resize.init='preserve' must be 'random' for a resnet",
        ),
        (dict(resize=dict(init="pca")), "model.resize.init='pca' must be 'random'"),
        (dict(resize=dict(init="x")), "model.resize.init='x' is unknown"),
        (dict(resize=dict(relu=False)), "last_block.relu=False must be True"),
        (
            dict(resize=dict(kind="linear")),
            "last_block.kind='linear' must be 'resized'",
        ),
        (dict(resize=dict(kind="extra", mlp_dim=2)), "kind='extra' must be 'resized'"),
        (dict(resize=dict(width=0)), "last_block.width=0 must be at least 1"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(init, changes, text):
    section = classify_stage()
    resize = {**RESIZE, **changes.get("resize", {})}
    section["model"] = {
        **section["model"],
        "resize": resize,
        **changes.get("model", {}),
    }
    section["optim"] = {**section["optim"], **changes.get("optim", {})}
    with pytest.raises(UserError, match=text):
        check.experiment(experiment(init, section))


def test_other_weights_than_the_model_s_are_refused(init, tmp_path):
    config = ConfigDict(experiment(init, classify_stage())).unlock()
    config.model.planes = (4,)
    with pytest.raises(UserError, match=r"planes\.0: 3 -> 4") as error:
        recipe.run(config, Path(tmp_path), force=False)
    assert "image_size" not in str(error.value)
