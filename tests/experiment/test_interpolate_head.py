"""Between a stage's start and its end, with the head that was fine-tuned."""

import json

import numpy as np
import pytest
from support import tiny

from flax_adapt import data, defaults, weights
from flax_adapt.base import rules
from flax_adapt.base.errors import UserError
from flax_adapt.commands.measures.interpolate import interpolate as command
from flax_adapt.data import subset
from flax_adapt.evals import outputs
from flax_adapt.experiment import interpolate, measure, pairs, provenance, recipe
from flax_adapt.stage import draws, predictions

pytestmark = pytest.mark.usefixtures("compile_fast")
LABELS = defaults.few(10, "each_seed")


def experiment():
    """Two seeds of fine-tuning, and one that goes on from the head of the first."""
    train, test = (
        tiny.digits(subset={**LABELS, "part": x}) for x in ("chosen", "rest")
    )
    tuned = tiny.finetune(seeds=(0, 1), num_steps=12)
    tuned["data"], tuned["eval"] = train, {**tuned["eval"], "data": test}
    tuned["optim"] = defaults.finetune_optim(lr=5e-3, warmup_steps=1)
    again = {**tuned, "name": "again", "init_from": "stage:finetune"}
    again["model"] = defaults.stage_model()
    evaluate = defaults.evaluate(train, test, probe_l2=1e-2, shots=(), draws=2)
    saves = dict(every_steps=100, keep_last=1, keep_best=0)
    model = {**tiny.MODEL, "depth": 1}
    stages = (tiny.pretrain(num_steps=2), tuned, again)
    return tiny.experiment(*stages, model=model, evaluate=evaluate, checkpoint=saves)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ran")
    recipe.run(experiment(), workdir, force=False)
    return workdir


def accuracy_of(workdir, params, label):
    """The accuracy of a classifier with these parameters on the test set of a run."""
    runs = {one.label: one for one in recipe.stage_runs(experiment(), workdir)}
    section = runs[label].config.eval.data
    model = weights.from_pretrained(workdir / f"stages/{label}/export", "classify")[0]
    examples = data.open_examples(section, "")
    found = outputs.compute_outputs(model, params, examples, section, 64)
    return np.mean(found.embeddings.argmax(axis=-1) == found.labels)


def test_the_fine_tuned_head_is_measured_at_both_ends_and_between(ran, capsys):
    label = "finetune/seed_1"
    command(experiment(), str(ran), label, 3, 0.01, True, True)
    printed = capsys.readouterr().out
    assert "report:" not in printed  # there was none
    assert len(provenance.read_starts(ran)) == 2
    record = json.loads(interpolate.record_of(ran, label).read_text())
    rows, best = record["rows"], record["best"]
    assert [row["a"] for row in rows] == [0.0, 0.5, 1.0]
    kept = predictions.read(ran / "stages" / label)
    assert rows[2]["head"] == pytest.approx(np.mean(kept.labels == kept.guesses))
    export = ran / "stages" / label / "export"
    adapted = weights.from_pretrained(export, "classify")[1]
    start = weights.from_pretrained(ran / "stages/pretrain/export", "encoder")[1]
    at_start = {**adapted, "encoder": start["encoder"]}
    assert rows[0]["head"] == pytest.approx(accuracy_of(ran, at_start, label))
    # The rule: the mean of kNN, probe and head. What it exports is that mixture.
    model, exported, _ = weights.from_pretrained(best["export"], "classify")
    a, leaves = best["a"], rules.name_leaves(start)
    for name, leaf in rules.name_leaves(exported).items():
        whole = rules.name_leaves(adapted)[name]
        mixed = (1 - a) * leaves[name] + a * whole if name in leaves else whole
        np.testing.assert_allclose(leaf, mixed, rtol=1e-5, atol=1e-7, err_msg=name)
    assert weights.class_names(best["export"]) == weights.class_names(export)
    assert model.num_classes == 10
    assert "on the other half of the test examples: best knn" in printed


def test_a_run_is_never_tested_on_the_labels_that_it_has_learnt(ran):
    """Not by the labels of another draw either, whose rest holds them."""
    config = experiment()
    runs = {one.label: one for one in recipe.stage_runs(config, ran)}
    models = [
        measure.Model(label, ran / "stages" / label / "export", {}, stage=runs[label])
        for label in ("pretrain", "finetune/seed_0", "again/seed_1")
    ]
    found = measure.measure_models(config, config.evaluate, models, ran)
    opened = {seed: subset.open_chosen(draws.draw_labels(config.evaluate.train, seed))
              for seed in (0, 1)}  # fmt: skip
    learnt = {seed: {*one.names} for seed, one in opened.items()}
    start, first, second = (
        {draw: {*one.names} for draw, one in answers.arms["knn"].items()}
        for answers in found.on_target
    )
    assert learnt[0] & start[1]
    assert first == {0: start[0], 1: start[1] - learnt[0]}
    assert second == {0: start[0] - learnt[1], 1: start[1]}


def test_a_head_that_the_start_has_is_mixed_too(ran):
    pair = pairs.open_pair(experiment(), ran, "again/seed_0")
    first = weights.from_pretrained(ran / "stages/finetune/seed_0/export", "classify")[
        1
    ]
    mixed = pair.mix(pair.adapted, 0.0)
    np.testing.assert_array_equal(mixed["head"]["kernel"], first["head"]["kernel"])
    changed = pair.adapted["head"]["kernel"] != first["head"]["kernel"]
    assert np.any(changed)


def test_data_without_classes_and_no_head_are_refused(ran, monkeypatch):
    """Nothing could choose: a = 0 must not be called the best."""
    pair = pairs.open_pair(experiment(), ran, "finetune/seed_0")
    nothing = interpolate.measure.Measured([], [], [None] * 2, [None] * 2)
    monkeypatch.setattr(interpolate.measure, "measure_models", lambda *_: nothing)
    headless = pair._replace(task="encoder")
    with pytest.raises(
        UserError, match="--stage=finetune/seed_0: nothing on the target"
    ):
        interpolate.measure_points(experiment(), headless, [0.0, 1.0])


def test_a_regression_has_no_share_of_right_answers():
    stage = tiny.experiment(tiny.finetune(objective=defaults.regress())).stages[0]
    run = recipe.Stage(None, stage, 0, None)
    pair = pairs.Pair(run, "classify", None, {}, {})
    assert interpolate._answer_heads(pair, [0.0, 1.0]) == [{}, {}]
