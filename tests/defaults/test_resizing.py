"""resize_last_block: its stages, its controls, and what `eval` measures of them."""

import shutil

import numpy as np
import pytest
from support import tiny_files, tiny_resnet

from flax_adapt.base import config as configs
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.data.examples import ImageExamples
from flax_adapt.evals import features, probe, sparsity
from flax_adapt.experiment import measure, recipe
from flax_adapt.experiment.measuring import kept
from flax_adapt.models import batch_stats
from flax_adapt.stage import check
from flax_adapt.train import optim

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(files, init="init", dataset="images", **arguments):
    init = files[init] if init else ""
    fields = dict(dataset=files[dataset], init=init, width="24") | arguments
    text = ",".join(f"{name}={value}" for name, value in fields.items())
    return configs.load(f"resize_last_block:{text}")


def of_text(files, **arguments):
    return load(files, init="bert", dataset="texts", **arguments)


@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize(
    ("make", "objective"),
    [
        *((load, objective) for objective in ("mae", "contrast", "classify")),
        *((of_text, objective) for objective in ("mlm", "contrast", "classify")),
    ],
)
def test_every_objective_can_have_every_end(files, make, objective, projector):
    config = make(
        files,
        objective=objective,
        projector=projector,
        width=64,
        variant="resized+random+linear+extra+same",
    )
    check.experiment(config)
    names = [stage.name for stage in config.stages]
    assert names == ["resized_64", "random_64", "linear_64", "extra_64", "same"]
    resized, random, linear, extra, same = (stage.model for stage in config.stages)
    assert (resized.resize.kind, resized.resize.init) == ("resized", "preserve")
    assert (random.resize.kind, random.resize.init) == ("linear", "random")
    assert (linear.resize.kind, linear.resize.init) == ("linear", "preserve")
    assert (extra.resize.kind, extra.resize.width) == ("extra", 16)
    assert same.resize is None
    heads = resized.projector
    if objective == "contrast":
        assert heads.layers == (3 if projector else 0)
        assert heads.predictor_layers == 2
    else:
        assert (heads is not None) == (objective == "classify" and projector)


def test_the_random_control_trains_no_encoder_and_takes_a_step(files):
    config = load(files, variant="random+resized", steps=50)
    random, resized = config.stages
    assert random.optim.freeze == ("encoder/.*",)
    assert (random.num_steps, resized.num_steps) == (1, 50)
    assert "encoder/.*" not in resized.optim.freeze


def scratch(files, model, **arguments):
    fields = dict(scratch=model, objective="classify", image_size=32)
    return load(files, init="", **{**fields, **arguments}).stages[0]


def test_a_resnet_from_scratch_on_labels_is_trained_by_sgd_with_crops_and_flips(files):
    stage = scratch(files, "resnet50")
    assert dict(stage.optim.sgd) == dict(momentum=0.9, nesterov=False)
    assert stage.optim.lr == pytest.approx(0.1 * 64 / 256)
    assert (stage.optim.weight_decay, stage.optim.decay) == (1e-4, "all")
    assert (stage.data.augment.flip, stage.data.augment.min_crop_area) == (True, 0.08)
    changed = scratch(files, "resnet50", lr=0.3, augment="none")
    assert (changed.optim.lr, changed.data.augment.flip) == (0.3, False)
    vit = scratch(files, "Ti")
    assert (vit.optim.sgd, vit.optim.lr) == (None, 1.5e-4)
    assert (vit.data.augment.flip, vit.data.augment.min_crop_area) == (True, 1.0)
    contrast = load(files).stages[0]
    assert (contrast.optim.sgd, contrast.optim.lr) == (None, 1.5e-4)


def test_contrast_of_a_resnet_is_that_of_moco_v3s_resnet(files):
    """Official code: 2-layer projector, temperature 1, LARS without decay of 1-D leaves."""
    stage = scratch(files, "resnet50", objective="contrast")
    assert (stage.objective.temperature, stage.model.projector.layers) == (1.0, 2)
    assert {view.min_crop_area for view in stage.data.views} == {0.2}
    changed = scratch(files, "resnet50", objective="contrast", min_crop_area=0.5)
    assert {view.min_crop_area for view in changed.data.views} == {0.5}
    vit = scratch(files, "Ti", objective="contrast")
    assert {view.min_crop_area for view in vit.data.views} == {0.08}
    assert dict(stage.optim.lars) == dict(momentum=0.9, trust=0.001)
    assert stage.optim.lr == pytest.approx(0.3 * 64 / 256)
    assert (stage.optim.weight_decay, stage.optim.decay) == (1e-6, "pretrain")
    params = tiny_resnet.shapes(tiny_resnet.build("contrast"))
    params, _ = batch_stats.split(params)
    decays = rules.name_leaves(rules.assign("decay", optim.DECAY["pretrain"], params))
    assert {name.rpartition("/")[2] for name in decays if decays[name]} == {"kernel"}
    vit = load(files).stages[0]
    assert (vit.objective.temperature, vit.model.projector.layers) == (0.2, 3)
    # AdamW of one group of parameters.
    assert (vit.optim.lars, vit.optim.decay) == (None, "all")
    assert (vit.optim.lr, vit.optim.weight_decay) == (1.5e-4, 0.1)


def test_augment_is_of_labels(files):
    with pytest.raises(UserError, match="augment=flip is of objective=classify"):
        load(files, augment="flip")
    with pytest.raises(UserError, match="augment='flip' is of images; texts are not"):
        of_text(files, objective="classify", augment="flip")


def test_narrow_is_by_components_and_wide_keeps_what_there_was(files):
    config = configs.load(
        f"resize_last_block:dataset={files['images']},init={files['init']},width=4+16+64"
    )
    inits = [stage.model.resize.init for stage in config.stages]
    assert inits == ["pca", "preserve", "preserve"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(width="a"), "width='a' must be a number of features, or several"),
        (dict(width="0"), "width='0' must be"),
        (dict(start="svd"), "start='svd' is unknown"),
        (dict(variant="wide"), "variant='wide' is unknown"),
        (dict(objective="mlm"), "objective='mlm' is unknown"),
        (dict(variant="extra", width="4"), "there is no extra block to compare with"),
    ],
)
def test_a_wrong_argument_is_named(files, arguments, text):
    fields = dict(dataset=files["images"], init=files["init"], width="24")
    given = ",".join(
        f"{name}={value}" for name, value in {**fields, **arguments}.items()
    )
    with pytest.raises(UserError, match=text) as error:
        configs.load(f"resize_last_block:{given}")
    assert "\n" not in str(error.value)


def test_widths_are_trained_and_measured_in_one_pass(files, tmp_path, monkeypatch):
    """Each set is read once for all models; with a smaller group, once for each group."""
    config = load(
        files,
        objective="classify",
        relu=True,
        variant="resized+random",
        probe_on=files["images"],
    )
    tiny_files.shrink(config)
    sections = (config.evaluate, *config.more_evaluations)
    for section in sections:
        section.update(knn_k=2, batch_size=8)
        section.wide.update(mlp_hidden=4, mlp_max_iterations=5)
    recipe.run(config, tmp_path, force=False)
    read, batch = [], ImageExamples.batch

    def reading(self, *arguments):
        read.append(self)
        return batch(self, *arguments)

    monkeypatch.setattr(ImageExamples, "batch", reading)
    rows = measure.evaluate(config, tmp_path)
    once = len(read)
    assert once == 2 + 1  # 16 to train, 6 to test, by 8; both sections have these sets
    names = ["pretrained", "resized_24", "random_24"]
    assert [row["stage"] for row in rows] == names * 2
    assert {row["data"] for row in rows} == {files["images"]}
    for row in rows:
        expected = {"knn", "probe", "zeros", "binarised", "mlp", "mlp_gap"}
        assert expected | {"probe_l2", "binarised_l2"} <= set(row)
        assert row["mlp_gap"] == row["mlp"] - row["probe"]
        assert (row["zeros"] > 0.05) == (row["stage"] != "pretrained")
    for section in sections:
        section.models_at_once = 2
    read.clear()
    shutil.rmtree(tmp_path / kept.FOLDER)
    assert measure.evaluate(config, tmp_path) == rows
    assert len(read) == 2 * once
    config.evaluate.models_at_once = 0
    with pytest.raises(UserError, match="models_at_once=0 must be at least 1"):
        measure.evaluate(config, tmp_path)


def test_all_encoders_see_every_batch_once():
    rows = [
        dict(index=np.arange(3) + 3 * k, label=np.zeros(3, np.int32)) for k in (0, 1)
    ]
    batches = ({**row, "weight": np.ones(3)} for row in rows)  # cannot be read twice
    one, two = features.extract_all(
        [lambda batch: batch["index"][:, None], lambda batch: -batch["index"][:, None]],
        batches,
    )
    np.testing.assert_array_equal(one.embeddings[:, 0], np.arange(6))
    np.testing.assert_array_equal(two.embeddings, -one.embeddings)


def test_zeros_are_counted_and_binarised_by_hand():
    h = np.array([[0.0, -2.0, 3.0], [0.0, 0.0, 1e-30]])
    assert sparsity.zeros(h) == pytest.approx(3 / 6)
    np.testing.assert_array_equal(sparsity.binarise(h), [[0, 1, 1], [0, 0, 1]])
    with pytest.raises(UserError, match="no features to count zeros in"):
        sparsity.zeros(h[:0])


def test_only_a_hidden_layer_learns_exclusive_or():
    rng = np.random.default_rng(0)
    corners = rng.choice([-1.0, 1.0], (400, 2))
    x = corners + 0.1 * rng.standard_normal((400, 2))
    labels = (corners[:, 0] * corners[:, 1] > 0).astype(int)
    sets = (x[:200], labels[:200], x[200:], labels[200:])
    linear = probe.linear_probe(*sets, l2=1e-3, folds=5, seed=0).accuracy
    hidden = dict(hidden=16, l2=1e-3, max_iterations=200, seed=0)
    assert linear < 0.75
    assert probe.mlp_accuracy(*sets, **hidden) > 0.95
    # The penalty counts: a large one leaves nothing but the commoner class.
    assert probe.mlp_accuracy(*sets, **{**hidden, "l2": 100.0}) < 0.75
