"""What a stage watches, measured: by labels, by features alone, by held-out loss."""

import json

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.runner import assert_identical, tensors

from flax_adapt import defaults
from flax_adapt.base.errors import UserError
from flax_adapt.evals import drift, knn
from flax_adapt.experiment import handover, recipe, verdicts
from flax_adapt.experiment.measuring import meters

pytestmark = pytest.mark.usefixtures("compile_fast")
MODEL = {**tiny.MODEL, "depth": 1}


def further(name, metric, lr, **changes):
    """A stage that goes on from the first one, and is measured after every step."""
    how = dict(every_steps=1, patience=2, on_hurt="rollback", examples=256)
    watch = defaults.watch(metric, **{**how, **changes})
    optim = defaults.pretrain_optim(lr=lr)
    fields = dict(num_steps=4, init_from="stage:pretrain", optim=optim, watch=watch)
    return tiny.pretrain(name, **fields)


def experiment(count=7):
    """Rates that are 100 times too high, and one of 0: then nothing changes."""
    base = tiny.pretrain(num_steps=2)
    stages = (
        base,
        further("wild", "target/knn", 0.1),
        tiny.pretrain("later", num_steps=1, init_from="stage:wild"),
        further("warned", "target/knn", 0.1, on_hurt="warn"),
        further("idle", "target/probe", 0.0),
        further("ranked", "pool/rankme", 0.1),
        further("masked", "held_out/loss", 1e-3),
    )
    few = tiny.digits(subset={**tiny.FEW, "per_class": 20})
    evaluate = defaults.evaluate(few, few, pooling="mean")
    return tiny.experiment(*stages[:count], model=MODEL, evaluate=evaluate)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ran")
    rows = recipe.run(experiment(), workdir, force=False)
    return workdir, {row["stage"]: row for row in rows}


def exported(workdir, stage):
    return tensors(workdir, stage)[0]


def test_a_rate_that_is_100_times_too_high_hurts_and_is_rolled_back(ran):
    workdir, rows = ran
    (found,) = rows["wild"]["watch"]
    assert (found["verdict"]["word"], found["rolled_back"]) == ("hurt", True)
    assert found["verdict"]["high"] < 0
    assert_identical(exported(workdir, "wild"), exported(workdir, "pretrain"))
    # A later stage began with these weights: after one step they are near them.
    ours, theirs = (exported(workdir, name) for name in ("later", "pretrain"))
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, atol=2.1e-3, err_msg=name)


def test_what_is_handed_over_without_labels_is_said_to_be_rolled_back(ran):
    workdir, _ = ran
    found = [handover._describe_rollback(c, c.stages[-1], workdir)
             for c in (experiment(2), experiment(4))]  # fmt: skip
    assert found[0].startswith(
        "; training hurt by target/knn, so these are its initial"
    )
    assert found[1] == ""


def test_a_stage_that_is_only_warned_of_keeps_its_best_weights(ran):
    workdir, rows = ran
    (found,) = rows["warned"]["watch"]
    assert (found["verdict"]["word"], found["rolled_back"]) == ("hurt", False)
    assert found["kept_step"] == found["best_step"] > 0
    pairs = (exported(workdir, name)["vit.encoder.layer.0.output.dense.weight"]
             for name in ("warned", "pretrain"))  # fmt: skip
    assert not np.array_equal(*pairs)


def test_a_run_that_changes_nothing_is_no_evidence_and_stops_early(ran):
    (found,) = ran[1]["idle"]["watch"]
    assert found["verdict"]["word"] == "no evidence either way"
    assert (found["best_step"], found["last_step"], found["stopped"]) == (1, 3, True)


def test_without_labels_rankme_and_the_held_out_loss_judge(ran):
    (ranked,), (masked,) = (ran[1][name]["watch"] for name in ("ranked", "masked"))
    assert (ranked["verdict"]["word"], ranked["rolled_back"]) == ("hurt", True)
    assert ranked["best"] < ranked["start"] <= 16
    assert masked["mode"] == "min"
    assert masked["best"] < masked["start"]
    lines = (ran[0] / "stages/masked/data.json").read_text()
    assert json.loads(lines)["rows"] < 1797 - 32


def test_the_table_and_the_text_say_what_was_rolled_back(ran):
    workdir, rows = ran
    table = recipe.table([*rows.values()]).splitlines()
    lines = {line.split()[0]: line for line in table[1:] if line.strip()}
    assert "initial weights" in lines["wild"]
    assert f"step {rows['warned']['watch'][0]['kept_step']}" in lines["warned"]
    said = verdicts.text([*rows.values()])
    (wild,) = (line for line in said if line.startswith("wild "))
    assert "by target/knn: hurt -0." in wild
    assert "rolled back: its result is the initial weights" in wild
    stored = json.loads((workdir / "results.json").read_text())
    assert stored[1]["watch"] == rows["wild"]["watch"]


def test_a_watched_set_without_classes_is_refused_with_what_there_is(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"data/train/{number}.png")
    few = tiny.digits() | dict(source=f"folder:{tmp_path / 'data'}")
    config = tiny.experiment(
        further("wild", "target/knn", 0.1) | dict(init_from="scratch"),
        model=MODEL,
        evaluate=defaults.evaluate(few, few),
    )
    text = "stage wild: watch.metric='target/knn' needs examples of two classes"
    with pytest.raises(UserError, match=text):
        recipe.run(config, tmp_path / "run", force=False)


def test_each_example_is_classified_by_the_others_as_knn_without_it_would():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((30, 5)), rng.integers(0, 3, 30)
    found = knn.predict_left_out(features, labels, k=4, temperature=0.07)
    for row in range(30):
        rest = np.arange(30) != row
        sets = (features[rest], labels[rest], features[[row]])
        assert knn.predict(*sets, k=4, temperature=0.07) == found[row]


def test_a_probe_of_the_other_folds_knows_clusters_and_not_noise():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    clusters = np.eye(3)[labels] * 5 + rng.standard_normal((60, 3))
    noise = rng.standard_normal((60, 3))
    sure, chance = (
        meters.cross_validate(x, labels, 1e-3).mean() for x in (clusters, noise)
    )
    assert (sure > 0.95, chance < 0.6) == (True, True)
    assert drift.rankme(clusters) > 1
