"""The config baseline_finetune: every method from the same start, and what each leaves."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny_files

from flax_adapt import data, defaults, weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.data.images import image
from flax_adapt.experiment import recipe
from flax_adapt.stage import check
from flax_adapt.train import fisher

pytestmark = pytest.mark.usefixtures("compile_fast")
FORGETTING = ("ewc", "lwf", "er", "der")
# Of images and of texts: together every method, each run once.
IMAGES = ("full", "lp_ft", "lora", "adaptors", "recadam", "ema", "ewc", "der")
TEXTS = ("linear_probe", "l2_sp", "mars", "r3f", "lwf", "er")
METHODS = (*IMAGES, *TEXTS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(files, methods, kind="images", **arguments):
    init = dict(images=files["init"], texts=files["bert"])[kind]
    fields = dict(dataset=files[kind], init=init, method="+".join(methods), **arguments)
    text = ",".join(f"{name}={value}" for name, value in fields.items())
    return configs.load(f"baseline_finetune:{text}")


def stage_of(config, name):
    return next(stage for stage in config.stages if stage.name == name)


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """(workdir, config, rows) of methods after a task before."""
    workdir = tmp_path_factory.mktemp("run")
    fields = dict(per_class=3, buffer_size=5, lrs="1e-3", probe_lrs="10")
    config = load(files, IMAGES, previous=files["images"], **fields)
    rows = recipe.run(tiny_files.shrink(config), workdir, force=False)
    return workdir, config, rows


def tensors(run, stage):
    return load_file(run[0] / f"stages/finetune_{stage}/export/model.safetensors")


def result(run, stage):
    return json.loads((run[0] / f"stages/finetune_{stage}/result.json").read_text())


def moved(run, stage, start="previous"):
    before, after = tensors(run, start), tensors(run, stage)
    assert before.keys() == after.keys()
    return {name for name in after if np.any(before[name] != after[name])}


def test_every_method_is_a_row_of_the_table(run):
    names = [row["stage"].removeprefix("finetune_") for row in run[2]]
    assert [name for name in names if name in IMAGES] == list(IMAGES)
    assert set(names) - set(IMAGES) == {"previous", "lp_ft_head"}
    assert all(row["metric"] == "accuracy" for row in run[2])
    assert all(np.isfinite(row["mean"]) for row in run[2])


def test_what_trains_is_what_the_method_says(run):
    head = {"classifier.weight", "classifier.bias"}
    assert moved(run, "lp_ft_head") == head
    adapted = moved(run, "lora") - head
    assert len(adapted) == 2  # query and value of one block
    assert all("query" in name or "value" in name for name in adapted)
    assert len(moved(run, "full")) > len(head | adapted)
    assert len(moved(run, "lp_ft", "lp_ft_head")) > len(head | adapted)


def test_adaptors_leave_the_backbone_they_started_from(run):
    before, after = tensors(run, "previous"), tensors(run, "adaptors")
    assert {f"vit.{name}" for name in after} == {n for n in before if "vit." in n}
    for name, leaf in after.items():
        np.testing.assert_array_equal(leaf, before[f"vit.{name}"])


def test_a_head_that_was_learnt_stays_under_adaptors(run):
    report = json.loads(
        (run[0] / "stages/finetune_adaptors/import_report.json").read_text()
    )
    assert {"head/kernel", "head/bias"} <= set(report["used"])
    assert all("adaptor" in name for name in report["fresh"])


@pytest.mark.parametrize("name", ["ewc", "der"])
def test_a_penalty_is_measured_beside_the_loss_it_is_part_of(run, name):
    train = result(run, name)["train"]
    sections = stage_of(run[1], f"finetune_{name}").penalties
    assert {section.name for section in sections} <= set(train)
    assert np.isfinite(train[name])
    assert name not in result(run, "full")["train"]


def test_the_fisher_is_left_where_ewc_looks_for_it(run):
    workdir, config, _ = run
    assert stage_of(config, "finetune_previous").fisher is not None
    held = fisher.load(workdir / "stages/finetune_previous" / fisher.FILE)
    assert "encoder/norm/scale" in held
    assert max(leaf.max() for leaf in held.values()) > 0
    assert [s for s in config.stages if s.fisher is not None] == [config.stages[0]]


def test_an_average_is_another_model_than_the_last_step(run):
    assert moved(run, "ema", "full")


@pytest.mark.parametrize("name", ["ema", "lora", "lp_ft_head"])
def test_what_is_evaluated_is_what_is_exported(run, name):
    """An average in the place of the last parameters, adaptors merged, norms folded."""
    workdir, config, _ = run
    section = stage_of(config, f"finetune_{name}").eval
    model, params, _ = weights.from_pretrained(
        workdir / f"stages/finetune_{name}/export", "classify"
    )
    examples = data.open_examples(section.data, "")
    batch = examples.batch(np.arange(len(examples)), np.arange(len(examples)))
    inputs = image.preprocess(batch["image"], None, section.data, None)
    log_p_BN = jax.nn.log_softmax(model.apply({"params": params}, inputs, None))
    loss = -np.mean(log_p_BN[np.arange(len(examples)), batch["label"]])
    np.testing.assert_allclose(result(run, name)["eval"]["loss"], loss, rtol=1e-5)


def test_recadam_is_nearer_to_the_start(run):
    def distance(name):
        start, end = tensors(run, "previous"), tensors(run, name)
        return sum(np.sum((end[k] - start[k]) ** 2) for k in end if "encoder" in k)

    assert distance("recadam") < 0.1 * distance("full")


def test_replay_draws_the_buffer_and_doubles_the_batch(run, files):
    drawn = json.loads((run[0] / "stages/finetune_der/replay.json").read_text())
    assert len(drawn["names"]) == drawn["buffer_size"] == 5
    stages = load(files, ("full", "er"), previous=files["images"]).stages
    assert [stage.batch_size for stage in stages] == [32, 32, 64]


PROBES = ("finetune_linear_probe", "finetune_lp_ft_head")


def test_all_start_alike_and_are_fine_tuned_alike(files):
    plain, *others = load(files, [m for m in METHODS if m not in FORGETTING]).stages
    for stage in others:
        if stage.name != "finetune_lp_ft":
            assert stage.init_from == plain.init_from == "pretrained"
        if stage.name not in PROBES:
            assert stage.num_steps == plain.num_steps
            assert stage.optim.lr == plain.optim.lr
    after = load(files, METHODS, previous=files["images"]).stages
    starts = {stage.init_from for stage in after[1:] if stage.name != "finetune_lp_ft"}
    assert starts == {"stage:finetune_previous"}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_a_new_head_on_standardised_features_by_lars(files, name):
    fields = dict(
        previous=files["images"], per_class=4, probe_lrs="0.1+2", probe="lars"
    )
    stage = stage_of(load(files, ("linear_probe", "lp_ft"), **fields), name)
    assert (stage.model.head_norm, stage.model.fresh) == (True, ("head",))
    assert (stage.model.dropout, stage.optim.weight_decay) == (0, 0)
    assert stage.optim.freeze == ("encoder/.*",)
    assert stage.optim.lars is not None
    assert stage.model.head_init == 0.01
    assert stage.num_steps == 90 * 8 // 32  # of 2 classes
    assert stage.sweep.lrs == pytest.approx((0.1 * 32 / 256, 2 * 32 / 256))
    assert (stage.sweep.metric, stage.sweep.mode) == ("loss", "min")


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_solved_in_one_step_unless_lars_is_asked_for(files, name):
    stage = stage_of(load(files, ("linear_probe", "lp_ft"), per_class=4), name)
    assert (stage.num_steps, stage.sweep, stage.optim.lars) == (1, None, None)
    assert (stage.optim.solve.l2, stage.optim.solve.folds) == (0, 5)
    assert (stage.model.head_norm, stage.model.fresh) == (True, ("head",))


def test_a_pooler_that_was_learnt_is_a_part_of_the_features(files):
    fields = dict(probe="lars")
    config = load(files, ("linear_probe",), "texts", previous=files["texts"], **fields)
    assert config.stages[-1].optim.freeze == ("encoder/.*", "pooler/.*")
    new = load(files, ("linear_probe",), "texts", **fields).stages[-1]
    assert (new.optim.freeze, new.model.fresh) == (("encoder/.*",), ("pooler", "head"))


def test_rates_to_choose_from_are_those_asked_for(files):
    fields = dict(lrs="1e-4+1e-3", probe_lrs="0.5", probe="lars")
    given = load(files, ("full", "lp_ft"), **fields).stages
    assert [stage.sweep and stage.sweep.lrs for stage in given] == [
        (1e-4, 1e-3),
        None,
        (1e-4, 1e-3),
    ]
    full, _, plain = load(files, ("full", "lp_ft"), lr=1e-3).stages
    assert full.sweep is None
    assert plain.sweep.lrs == pytest.approx((1e-4, 3e-4, 1e-3))
    assert (plain.sweep.metric, plain.sweep.mode) == ("accuracy", "max")


def test_the_head_stays_after_a_task_before_unless_it_shall_be_new(files):
    fields = dict(previous=files["images"])
    kept = load(files, ("full", "ewc"), **fields).stages
    new = load(files, ("full", "ewc"), new_head=True, **fields).stages
    assert [stage.model.fresh for stage in kept] == [("head",), (), ()]
    assert [stage.model.fresh for stage in new] == [("head",)] * 3


def test_a_head_that_lwf_shall_have_new_grows_by_the_new_classes(files, tmp_path):
    other = tiny_files.image_folder(tmp_path / "other")
    for split in ("train", "test"):
        (other / split / "ant").rename(other / split / "wasp")
    fields = dict(previous=f"folder:{other}", new_head=True)
    config = load(files, ("full", "lwf"), **fields)
    check.experiment(config)
    _, full, lwf = config.stages
    assert (full.model.fresh, full.model.grow_head) == (("head",), False)
    assert (lwf.model.fresh, lwf.model.grow_head) == ((), True)
    # Old first: bee, wasp; then ant.
    assert lwf.data.classes == lwf.eval.data.classes == ("bee", "wasp", "ant")
    assert full.data.classes == ()


def test_steps_and_rate_are_those_asked_for(files):
    (stage,) = load(files, ("full",), steps=200, lr=1e-3, seeds=2).stages
    assert (stage.num_steps, stage.optim.lr, stage.seeds) == (200, 1e-3, (0, 1))
    assert stage.optim.warmup_steps == 10  # 5 %, as 500 of 10 000


def test_every_method_of_text_is_a_config_that_can_run(files):
    config = load(files, METHODS, "texts", previous=files["texts"], per_class=2)
    check.experiment(config)
    assert stage_of(config, "finetune_full").eval.metric == "macro_f1"


def test_texts_are_fine_tuned_by_the_other_methods(files, tmp_path):
    fields = dict(previous=files["texts"], buffer_size=3, per_class=2, pooling="cls")
    config = load(files, TEXTS, "texts", **fields)
    rows = recipe.run(tiny_files.shrink(config), tmp_path, force=False)
    assert all(np.isfinite(row["mean"]) for row in rows)
    assert len(rows) == len(TEXTS) + 1
    for name in ("l2_sp", "r3f", "lwf", "er"):
        assert name in result((tmp_path,), name)["train"]
    start, probe = (tensors((tmp_path,), name) for name in ("previous", "linear_probe"))
    changed = {name for name in start if np.any(start[name] != probe[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("methods", "arguments", "text"),
    [
        (("full",), dict(new_head=True), "new_head=True is of a task after another"),
        (("lp_ft",), dict(per_class=1), "per_class=1 leaves no label to choose a"),
        (("full",), dict(lrs="1e-4+b"), r"lrs='1e-4\+b' must be numbers joined by \+"),
        (("lp_ft",), dict(probe="x"), "probe='x' is unknown; choose one of .*'exact'"),
        (("fine",), {}, "method='fine' is unknown; choose one of .*'linear_probe'"),
        (("ewc",), {}, "method=ewc holds on to a task before: give previous=SOURCE"),
        (
            ("er",),
            dict(previous="builtin:digits", new_head=True),
            "method=er replays examples of the same classes.* or take method=lwf",
        ),
    ],
)
def test_a_wrong_argument_is_told_at_once(files, methods, arguments, text):
    with pytest.raises(UserError, match=text):
        load(files, methods, **arguments)


def test_every_method_has_a_line_in_the_docstring():
    text = configs.list_shipped()["baseline_finetune"].read_text()
    known = defaults.finetuning.METHODS
    assert set(known) == set(METHODS)
    assert all(name in text for name in known)
