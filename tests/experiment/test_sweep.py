"""A learning rate chosen by examples that are held out."""

import json

import jax
import numpy as np
import pytest
from support import tiny

from flax_adapt import data, defaults, weights
from flax_adapt.base.errors import NonFiniteError, UserError
from flax_adapt.data.images import image
from flax_adapt.experiment import recipe, sweep
from flax_adapt.stage import check, loop

pytestmark = pytest.mark.usefixtures("compile_fast")
LRS = (1e-6, 3e-3)
TEST = tiny.digits(subset={**tiny.FEW, "part": "rest", "fraction": 0.1})


def experiment(lrs=LRS, **changes):
    evaluation = dict(
        every_steps=0, batch_size=128, data=TEST, metric="accuracy", mode="max"
    )
    fields = dict(
        init_from="scratch",
        seeds=(1,),
        eval=evaluation,
        optim=defaults.finetune_optim(lr=0.03, warmup_steps=0),
        sweep=defaults.sweep(lrs, metric="loss", mode="min"),
    )
    stage = {**tiny.finetune(**{**fields, **changes}), "model": defaults.stage_model()}
    return tiny.experiment(stage, model={**tiny.MODEL, "depth": 1})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("swept")
    rows = recipe.run(experiment(), workdir, force=False)
    return (
        workdir,
        rows,
        json.loads((workdir / "stages/finetune/sweep.json").read_text()),
    )


def held_out_loss(workdir, section):
    """Of the model that a run exported, on what the sweep holds out."""
    model, params, _ = weights.from_pretrained(
        workdir / "stages" / section.name / "export", "classify"
    )
    examples = data.open_examples(section.eval.data, "")
    batch = examples.batch(np.arange(len(examples)), np.arange(len(examples)))
    inputs = image.preprocess(batch["image"], None, section.eval.data, None)
    log_p_BN = jax.nn.log_softmax(model.apply({"params": params}, inputs, None))
    return -np.mean(log_p_BN[np.arange(len(examples)), batch["label"]])


def test_the_rate_with_the_lowest_loss_on_what_is_held_out_trains_on_everything(swept):
    workdir, rows, record = swept
    section = experiment().stages[0]
    losses = [held_out_loss(workdir, sweep.candidate(section, lr)) for lr in LRS]
    for name in ("loss", "value"):
        found = [one[name] for one in record["tried"]]
        np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert [one["lr"] for one in record["tried"]] == list(LRS)
    assert record["lr"] == LRS[np.argmin(losses)]
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    used = [
        line["lr"] for line in lines if line["stage"] == "finetune" and "lr" in line
    ]
    assert used[0] == pytest.approx(record["lr"])
    assert [row["stage"] for row in rows] == ["finetune"]


def test_candidates_train_on_the_first_seed_without_what_is_held_out():
    section = experiment(seeds=(3, 1)).stages[0]
    tried = sweep.candidate(section, 0.5)
    fit, held_out, whole = (
        set(data.open_examples(one, "").names)
        for one in (tried.data, tried.eval.data, section.data)
    )
    assert fit | held_out == whole
    assert not fit & held_out
    assert len(held_out) == 10  # one of four of each class
    assert (tried.seeds, tried.optim.lr) == ((3,), 0.5)


def measuring(monkeypatch, found):
    """Instead of training: (value, loss) of each rate; of others training breaks down."""

    def train(stage, preemption):
        if stage.config.optim.lr not in found:
            raise NonFiniteError("the loss is not finite")
        value, loss = found[stage.config.optim.lr]
        return {"value": value, "eval": {"loss": loss}}

    monkeypatch.setattr(loop, "train_and_evaluate", train)


def chosen_lr(workdir, mode="max", lrs=(0.1, 0.2, 0.3)):
    config = experiment(lrs)
    with config.unlocked():
        config.stages[0].sweep.mode = mode
    return sweep.choose_rate(config, config.stages[0], 1, workdir, None).optim.lr


@pytest.mark.parametrize(("mode", "lr"), [("max", 0.3), ("min", 0.1)])
def test_the_best_value_wins_and_of_equals_the_lower_loss(
    mode, lr, tmp_path, monkeypatch
):
    measuring(monkeypatch, {0.1: (0.5, 1.0), 0.2: (0.7, 3.0), 0.3: (0.7, 2.0)})
    assert chosen_lr(tmp_path, mode) == lr


def test_a_rate_that_breaks_down_is_none(tmp_path, monkeypatch):
    measuring(monkeypatch, {0.1: (2.0, 1.0), 0.3: (3.0, 1.0)})
    assert chosen_lr(tmp_path) == 0.3
    record = json.loads((tmp_path / "stages/finetune/sweep.json").read_text())
    assert record["tried"][1] == {"lr": 0.2, "value": None, "loss": None}


def test_a_choice_that_was_made_is_kept(tmp_path, monkeypatch):
    measuring(monkeypatch, {0.2: (2.0, 1.0)})
    assert chosen_lr(tmp_path) == 0.2
    measuring(monkeypatch, {0.1: (9.0, 1.0)})
    assert chosen_lr(tmp_path) == 0.2


def test_no_rate_that_trains_is_an_error(tmp_path, monkeypatch):
    measuring(monkeypatch, {})
    with pytest.raises(UserError, match=r"stage finetune: .* broke down .* give lower"):
        chosen_lr(tmp_path)
    assert not (tmp_path / "stages/finetune/sweep.json").exists()


RECADAM = defaults.finetune_optim(lr=1e-5, warmup_steps=0, recadam=defaults.recadam())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(lrs=()), r"sweep.lrs=\(\) must be one or more numbers above 0"),
        (dict(lrs=(0.0,)), r"sweep.lrs=\(0.0,\) must be one or more"),
        (dict(lrs=(0.1, 0.1)), r"sweep.lrs=\(0.1, 0.1\) must differ"),
        (dict(sweep=defaults.sweep(LRS, metric="f")), r"sweep.metric='f' is unknown"),
        (dict(sweep=defaults.sweep(LRS, mode="f")), r"sweep.mode='f' is unknown"),
        (dict(eval=None), r"sweep chooses by an evaluation, but eval is None"),
        (dict(optim=RECADAM), r"optim.lr=0.003 x recadam.gamma=5000.0"),
    ],
)
def test_a_sweep_that_cannot_be_is_told_before_anything_runs(changes, text):
    with pytest.raises(UserError, match=text):
        check.experiment(experiment(**changes))


def test_only_chosen_examples_have_a_part_to_hold_out():
    config = experiment()
    with config.unlocked():
        config.stages[0].data.subset.part = "rest"
    with pytest.raises(UserError, match=r"data.subset.part='chosen', not of 'rest'"):
        check.experiment(config)
