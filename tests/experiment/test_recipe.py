"""An experiment: its results, its table, when it is done, and which config it is."""

import json
import statistics

import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny

from flax_adapt import defaults
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import loop


def result(stage, value, seed=0, metric="accuracy", data="digits", seconds=1.5):
    measured = {metric: value}
    is_eval = metric == "accuracy"
    return {
        "stage": stage,
        "seed": seed,
        "metric": metric,
        "mode": "max",
        "value": value,
        "seconds": seconds,
        "train": {} if is_eval else measured,
        "eval": measured if is_eval else {},
        "eval_data": data if is_eval else "",
    }


def summarize(results, workdir):
    """The rows of stages each of which is trained in a way of its own."""
    names = dict.fromkeys(one["stage"] for one in results)
    stages = tuple(ConfigDict(dict(name=name, own=name)) for name in names)
    return recipe.summarize(ConfigDict(dict(stages=stages)), results, workdir)


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "stages/pretrain/export").mkdir(parents=True)
    results = [
        result("pretrain", 0.7, metric="loss"),
        *[result("start", value, seed) for seed, value in enumerate((0.5, 0.6, 0.7))],
        result("other", 0.9, data="faces"),
        *[result("best", value, seed) for seed, value in enumerate((0.8, 0.8, 0.86))],
        result("other_again", 0.8, data="faces"),
    ]
    return summarize(results, tmp_path)


def test_a_row_has_mean_and_spread_over_seeds(rows):
    start = rows[1]
    assert (start["stage"], start["metric"]) == ("start", "accuracy")
    assert start["seeds"] == [0, 1, 2]
    assert start["values"] == [0.5, 0.6, 0.7]
    assert start["mean"] == pytest.approx(0.6)
    assert start["std"] == pytest.approx(0.1)  # n - 1; with n: 0.0816
    assert start["seconds"] == 4.5


def test_one_seed_has_no_spread(rows):
    assert rows[0]["std"] == 0


def test_gain_is_over_the_first_stage_with_the_same_measure(rows):
    gains = {row["stage"]: row.get("gain") for row in rows}
    assert gains["pretrain"] is None
    assert gains["start"] == gains["other"] == 0
    assert gains["best"] == pytest.approx(0.82 - 0.6)
    assert gains["other_again"] == pytest.approx(-0.1)


def test_gain_of_what_should_be_small_is_how_much_smaller_it_got(tmp_path):
    results = [
        {**result(name, value), "mode": "min", "metric": "perplexity"}
        for name, value in (("before", 40.0), ("after", 25.0))
    ]
    assert [row["gain"] for row in summarize(results, tmp_path)] == [0, 15]


def test_a_row_names_its_exported_model(rows, tmp_path):
    assert rows[0]["export"] == str(tmp_path / "stages/pretrain/export")
    assert rows[1]["export"] == str(tmp_path / "stages/start/seed_0/export")


def test_the_table_has_a_line_a_stage(rows):
    lines = recipe.table(rows).splitlines()
    assert lines[0].split() == list(recipe.COLUMNS)
    assert [line.split()[0] for line in lines[2:]] == [row["stage"] for row in rows]
    assert " ".join(lines[3].split()) == "start accuracy 3 0.6000 0.1000 0.000 4.500"
    assert len(lines[2].split()) == 6  # a loss has no gain


def experiment(**changes):
    fine = tiny.finetune(seeds=(0, 1), init_from="stage:further")
    return tiny.experiment(tiny.pretrain(), tiny.pretrain("further"), fine, **changes)


@pytest.fixture
def trained(monkeypatch):
    """Stages that take no time; yields what was run, and results.json at that time."""
    ran = []

    def train(stage, preemption):
        written = stage.workdir / "results.json"
        known = json.loads(written.read_text()) if written.exists() else []
        ran.append((stage.label, [row["stage"] for row in known]))
        (stage.folder / "checkpoints/1").mkdir(parents=True, exist_ok=True)
        (stage.folder / "export").mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (stage.folder / "export" / name).write_text("{}")
        done = result(stage.config.name, 0.5, stage.run_seed)
        (stage.folder / loop.RESULT).write_text(json.dumps(done))
        return done

    monkeypatch.setattr(loop, "train_and_evaluate", train)
    return ran


def test_stages_run_in_order_and_results_are_written_after_each(trained, tmp_path):
    rows = recipe.run(experiment(), tmp_path, force=False)
    assert trained == [
        ("pretrain", []),
        ("further", ["pretrain"]),
        ("finetune/seed_0", ["pretrain", "further"]),
        ("finetune/seed_1", ["pretrain", "further", "finetune"]),
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert rows[2]["seeds"] == [0, 1]


def test_an_experiment_is_done_when_every_seed_of_every_stage_is(trained, tmp_path):
    assert not recipe.is_done(experiment(), tmp_path)
    recipe.run(experiment(), tmp_path, force=False)
    assert recipe.is_done(experiment(), tmp_path)
    (tmp_path / "stages/finetune/seed_1/result.json").unlink()
    assert not recipe.is_done(experiment(), tmp_path)


def test_what_changes_no_number_may_change(tmp_path):
    """What eval measures (another version had other fields), the mesh, saved memory, threads."""
    (tmp_path / "stages/pretrain/checkpoints/1").mkdir(parents=True)
    recipe._claim(experiment(), tmp_path, force=False)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["evaluate"]["probe_max_iterations"] = 1_000
    stored["stages"][0]["memory"] = {"remat": "none", "scan": False, "logit_chunks": 1}
    stored["stages"][0]["data"]["num_threads"] = 16  # the default of before
    (tmp_path / "config.json").write_text(json.dumps(stored))
    other = experiment()
    other.evaluate.probe_l2 = 1e-3
    other.mesh.fsdp = 2  # as on other machines
    recipe._claim(other, tmp_path, force=False)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["evaluate"]["probe_l2"] == 1e-3
    other.stages[0].num_steps += 1
    with pytest.raises(UserError, match=r"\(stages.0.num_steps: \d+ -> \d+\)"):
        recipe._claim(other, tmp_path, force=False)


def test_another_config_is_refused_until_forced(trained, tmp_path):
    recipe.run(experiment(), tmp_path, force=False)
    stored = (tmp_path / "config.json").read_text()
    other = experiment(seed=3)
    other.stages[2].seeds = (0,)
    with pytest.raises(UserError, match=r"\(seed: 0 -> 3; .*seeds.1: 1 -> -\); use "):
        recipe.run(other, tmp_path, force=False)
    assert (tmp_path / "config.json").read_text() == stored
    assert len(trained) == 4
    recipe.run(other, tmp_path, force=True)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3


def test_a_config_may_change_while_nothing_was_trained(tmp_path, monkeypatch):
    def fail(stage, preemption):
        raise UserError("no data")

    monkeypatch.setattr(loop, "train_and_evaluate", fail)
    for seed in (0, 3):
        with pytest.raises(UserError, match="no data"):
            recipe.run(experiment(seed=seed), tmp_path, force=False)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3


MISTAKES = {
    "every stage needs a name of its own; twice: ['pretrain']": (
        tiny.pretrain(),
        tiny.pretrain(),
    ),
    "every stage needs a name of its own; twice: []": (),
    "stage pretrain: seeds=() must be one or more different": (
        tiny.pretrain(seeds=()),
    ),
    "stage pretrain: seeds=(1, 1) must be one": (tiny.pretrain(seeds=(1, 1)),),
    "stage pretrain: seed=0 + -1 must lie in": (tiny.pretrain(seeds=(-1,)),),
    "stage finetune: init_from='stage:pretrain' is no earlier stage; there are: a, b": (
        tiny.pretrain("a"),
        tiny.pretrain("b"),
        tiny.finetune(),
    ),
    "there are: pretrain/seed_0, pretrain/seed_1": (
        tiny.pretrain(seeds=(0, 1)),
        tiny.finetune(seeds=(2,)),
    ),
    "teacher='stage:distill' is no earlier stage": (
        tiny.pretrain(),
        tiny.distill(teacher="stage:distill"),
    ),
}


@pytest.mark.parametrize("told", MISTAKES)
def test_a_mistake_in_the_stages_is_found_before_anything_runs(trained, tmp_path, told):
    with pytest.raises(UserError) as caught:
        recipe.run(tiny.experiment(*MISTAKES[told]), tmp_path, force=False)
    assert told in str(caught.value)
    assert not trained
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compile_fast")
def test_a_stage_may_start_from_one_seed_of_another(tmp_path):
    still = defaults.pretrain_optim(lr=0.0)
    config = tiny.experiment(
        tiny.pretrain(num_steps=1, seeds=(0, 1)),
        tiny.pretrain(
            "copy", num_steps=1, optim=still, init_from="stage:pretrain/seed_1"
        ),
        model={**tiny.MODEL, "depth": 1},
    )
    rows = recipe.run(config, tmp_path, force=False)
    copy, *seeds = (
        load_file(tmp_path / "stages" / name / "export/model.safetensors")
        for name in ("copy", "pretrain/seed_0", "pretrain/seed_1")
    )
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    assert all((copy[name] == seeds[1][name]).all() for name in copy)
    assert not (copy[name] == seeds[0][name]).all()
    assert rows[0]["values"][0] != rows[0]["values"][1]
    assert rows[0]["mean"] == statistics.fmean(rows[0]["values"])
    config.log_every_steps = 7  # a finished stage stays as it is, forced or not
    assert recipe.run(config, tmp_path, force=True) == rows
