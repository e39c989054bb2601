"""Several watched metrics: what they share, kNN on the source, and what is refused."""

import re

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.runner import assert_identical, tensors

from flax_adapt import defaults
from flax_adapt.base.errors import UserError
from flax_adapt.evals import knn
from flax_adapt.evals.features import Features
from flax_adapt.experiment import recipe, verdicts
from flax_adapt.experiment.measuring import drawn, meters, state_features
from flax_adapt.report import curves, workdir

pytestmark = pytest.mark.usefixtures("compile_fast")
MODEL = {**tiny.MODEL, "depth": 1}
SEVERAL = "target/knn+pool/rankme+target/probe+source/knn"
FEW = tiny.digits(subset={**tiny.FEW, "per_class": 10})
SOURCE = tiny.digits(subset={**tiny.FEW, "per_class": 12})


def further(name, metric, **changes):
    """A stage that goes on from the first one, and is measured after steps 0, 2 and 4."""
    watch = defaults.watch(metric, every_steps=2, patience=0, examples=256)
    fields = dict(num_steps=4, init_from="stage:pretrain", watch=watch)
    return tiny.pretrain(name, **{**fields, **changes})


def experiment(*stages, source=SOURCE):
    evaluate = defaults.evaluate(FEW, FEW, pooling="mean", source=source)
    return tiny.experiment(*stages, model=MODEL, evaluate=evaluate)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Stages that watch one metric and several; the number of examples of every pass."""
    workdir, passes = tmp_path_factory.mktemp("ran"), []
    compute = state_features.StateFeatures.compute

    def count(self, state):
        passes.append((self.stage.label, len(self.rows)))
        return compute(self, state)

    stages = (
        tiny.pretrain(num_steps=2),
        further("alone", "target/knn"),
        further("together", SEVERAL),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_features.StateFeatures, "compute", count)
        rows = recipe.run(experiment(*stages), workdir, force=False)
    return workdir, {row["stage"]: row for row in rows}, passes


def test_metrics_of_the_same_examples_share_one_pass_for_each_measurement(ran):
    passes = [size for label, size in ran[2] if label == "together"]
    assert passes == 3 * [100, 256, 120]  # target, pool and source, at three steps


def test_metrics_beside_the_first_change_no_weight_and_no_verdict(ran):
    workdir, rows, _ = ran
    (alone,), (together,) = (rows[name]["watch"] for name in ("alone", "together"))
    assert {k: v for k, v in together.items() if k != "others"} == alone
    assert [*together["others"]] == ["pool/rankme", "target/probe", "source/knn"]
    assert all("history" not in one for one in together["others"].values())
    for ours, theirs in zip(
        *(tensors(workdir, name) for name in ("together", "alone")), strict=True
    ):
        assert_identical(ours, theirs)
    (line,) = (x for x in verdicts.text([*rows.values()]) if x.startswith("together "))
    known = together["others"]["source/knn"]
    said = f"source/knn {known['start']:.4f} before, {known['best']:.4f} in the best"
    assert said in line


def test_the_page_has_a_curve_of_every_metric_of_a_run(ran):
    titles = {one["title"] for one in curves.charts(workdir.read(ran[0]))["charts"]}
    assert {
        f"{name.replace('/', ' ')}, watched" for name in SEVERAL.split("+")
    } <= titles


def test_each_second_example_of_a_class_of_the_source_is_classified_by_the_others():
    """As `eval` measures forgetting: the first half of each class has the votes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    rows = np.eye(3, 8)[labels] + rng.standard_normal((30, 8)).astype(np.float32)
    section = experiment(tiny.pretrain()).evaluate
    found = meters.classify_halves(section, Features(rows, labels, np.arange(30)))
    fit, test = np.arange(30)[::2], np.arange(30)[1::2]
    assert [*map(list, drawn.split_halves(labels))] == [list(fit), list(test)]
    how = dict(k=15, temperature=section.knn_temperature)  # 20 neighbours are too many
    guesses = knn.predict(rows[fit], labels[fit], rows[test], **how)
    np.testing.assert_array_equal(found, guesses == labels[test])
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("metric", ["source/knn", "target/knn+source/knn"])
@pytest.mark.parametrize("has_source", [False, True])
def test_a_source_that_is_missing_or_has_no_classes_is_refused_before_anything_runs(
    tmp_path, metric, has_source
):
    text = f"stage late: watch.metric={metric!r}: source/knn is measured on evaluate.source"
    source = None
    if has_source:
        folder = tmp_path / "plain"
        (folder / "train").mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8)).save(folder / f"train/{number}.png")
        source = tiny.digits() | dict(source=f"folder:{folder}")
        text = "stage late: watch.metric='source/knn' needs examples of two classes"
    config = experiment(tiny.pretrain(), further("late", metric), source=source)
    with pytest.raises(UserError, match=re.escape(text)):
        recipe.run(config, tmp_path / "run", force=False)
    assert not (tmp_path / "run").exists()


def test_held_out_loss_and_accuracy_are_of_one_pass_over_the_held_out_examples(
    tmp_path, monkeypatch
):
    passes = []
    measure = meters.Evaluation.measure_batches

    def count(self, state, rows=None):
        passes.append(len(rows))
        return measure(self, state, rows)

    monkeypatch.setattr(meters.Evaluation, "measure_batches", count)
    watch = defaults.watch("held_out/accuracy+held_out/loss", every_steps=0)
    data = tiny.digits(subset={**tiny.FEW, "per_class": 40})
    stage = tiny.finetune(init_from="scratch", num_steps=1, watch=watch)
    stage |= dict(data=data, eval=None)
    (row,) = recipe.run(experiment(stage), tmp_path, force=False)
    (found,) = row["watch"]
    assert passes == 2 * passes[: meters.GROUPS]
    assert sum(passes) == 2 * 40
    assert found["metric"] == "held_out/accuracy"
    assert found["others"]["held_out/loss"]["mode"] == "min"
    assert found["others"]["held_out/loss"]["best"] > 0
