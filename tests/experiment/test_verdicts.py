"""A run says of its stages whether they helped, from the predictions that it keeps."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from flax_adapt import data, defaults
from flax_adapt.experiment import recipe, verdicts
from flax_adapt.stage import predictions

pytestmark = pytest.mark.usefixtures("compile_fast")
FEW = defaults.few(20, "each_seed")


def experiment():
    """A stage, the same again, one at a rate 100 times higher, and that from other weights."""
    test = tiny.digits(subset={**FEW, "part": "rest"})
    stages = []
    rates = {"start": 5e-3, "again": 5e-3, "wild": 0.5, "wild_later": 0.5}
    for name, lr in rates.items():
        start = "stage:start/seed_0" if name == "wild_later" else "scratch"
        stage = tiny.finetune(name, init_from=start, seeds=(0, 1), num_steps=12)
        stage["data"] = tiny.digits(subset=FEW)
        stage["eval"] = {**stage["eval"], "data": test}
        stage["optim"] = defaults.finetune_optim(lr=lr, warmup_steps=2)
        stage["model"] = defaults.stage_model()
        stages.append(stage)
    sizes = dict(model={**tiny.MODEL, "depth": 1})
    saves = dict(every_steps=100, keep_last=1, keep_best=0)
    return tiny.experiment(*stages, checkpoint=saves, **sizes)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ran")
    return workdir, recipe.run(experiment(), workdir, force=False)


def test_a_stage_is_compared_with_the_one_that_was_trained_alike_from_other_weights(
    ran,
):
    """The gain is that of the verdict; "weights" names what both began with."""
    *_, wild, later = ran[1]
    assert later["verdict"]["against"] == "wild"
    assert later["verdict"]["weights"] == ["scratch", "scratch"]
    assert later["gain"] == later["mean"] - wild["mean"]
    assert [one["against"] for one in later["verdicts"]] == ["start", "again", "wild"]
    assert "weights" not in wild["verdict"]


def test_weights_that_help_one_way_to_train_and_hurt_another_are_said_to_disagree():
    def row(stage, word):
        return {"stage": stage, "verdict": dict(word=word, weights=["old", "new"])}

    rows = [row("probe", "hurt"), row("full", "helped")]
    assert verdicts._say_disagreements(rows[1:]) == []
    assert verdicts._say_disagreements(rows) == [
        "new against old: the stages disagree: probe hurt; full helped"
    ]


def test_weights_of_one_run_are_said_to_be_as_more_seeds_of_a_later_stage_tell_nothing():
    sections = {
        name: types.SimpleNamespace(seeds=seeds)
        for name, seeds in (("further", (0,)), ("again", (0, 1)))
    }
    said = [
        verdicts._describe_single(sections, name) for name in (*sections, "scratch")
    ]
    assert said == ["; the weights of further are of one run", "", ""]


def test_a_stage_keeps_the_predictions_that_its_metrics_are_of(ran):
    workdir, rows = ran
    for seed, accuracy in enumerate(rows[0]["values"]):
        found = predictions.read(workdir / f"stages/start/seed_{seed}")
        section = recipe.stage_runs(experiment(), workdir)[seed].config
        tested = data.open_examples(section.eval.data, "")
        assert found.names.tolist() == list(tested.names)
        np.testing.assert_array_equal(found.labels, tested.labels)
        assert np.mean(found.labels == found.guesses) == pytest.approx(accuracy)


def test_the_same_stage_again_is_no_evidence_and_another_has_its_gain(ran):
    workdir, rows = ran
    assert "verdict" not in rows[0]
    again, wild = (row["verdict"] for row in rows[1:3])
    assert (again["word"], again["difference"]) == ("no evidence either way", 0.0)
    assert wild["against"] == "start"
    assert wild["low"] < wild["difference"] < wild["high"]
    gain = rows[2]["mean"] - rows[0]["mean"]
    assert wild["difference"] == pytest.approx(gain)
    assert [one["against"] for one in rows[2]["verdicts"]] == ["start", "again"]
    assert json.loads((workdir / "results.json").read_text())[2]["verdict"] == wild


def test_verdicts_are_in_the_table_and_in_words(ran):
    _, rows = ran
    assert "no evidence either way (+0.000 to +0.000)" in recipe.table(rows)
    lines = verdicts.text(rows)
    assert lines[1].startswith("wild against start: ")
    assert "2 seeds" in lines[1]
    assert "draws of labels" in lines[1]


def test_without_predictions_the_verdict_is_left_out_with_one_line(ran, caplog):
    workdir, rows = ran
    path = workdir / "stages/again/seed_1" / predictions.FILE
    kept = path.read_bytes()
    path.unlink()
    try:
        with caplog.at_level("INFO", logger="flax_adapt"):
            rows = recipe.run(experiment(), workdir, force=False)
    finally:
        path.write_bytes(kept)
    assert ["verdict" in row for row in rows] == [False, False, True, True]
    assert [one["against"] for one in rows[2]["verdicts"]] == ["start"]
    assert [m for m in caplog.messages if "no verdict" in m] == [
        "again: no verdict, for the stage kept no predictions (an earlier version ran it)"
    ]


def test_one_common_test_example_is_no_verdict_and_one_line(ran, caplog):
    workdir, _ = ran
    folders = [workdir / f"stages/{name}" for name in ("again", "wild", "wild_later")]
    files = [f"{folder}/seed_{seed}/" for folder in folders for seed in (0, 1)]
    kept = {Path(file): predictions.read(Path(file)) for file in files}
    try:
        for folder, one in kept.items():
            first = predictions.Predictions(*(column[:1] for column in one))
            predictions.write(folder, first)
        with caplog.at_level("INFO", logger="flax_adapt"):
            rows = recipe.run(experiment(), workdir, force=False)
    finally:
        for folder, one in kept.items():
            predictions.write(folder, one)
    assert not any("verdict" in row for row in rows)
    assert [m for m in caplog.messages if "no verdict" in m] == [
        "again, wild, wild_later: no verdict, for it takes a seed and two test examples "
        "that both arms have"
    ]
