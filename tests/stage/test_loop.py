"""Promises of a run: nothing silent, nothing lost, mistakes found before it starts."""

import json

import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny

from flax_adapt import data as fa_data
from flax_adapt import defaults
from flax_adapt.base.errors import NonFiniteError, UserError
from flax_adapt.experiment import recipe


def run(workdir, *stages, **changes):
    return recipe.run(tiny.experiment(*stages, **changes), workdir, force=False)


def test_a_non_finite_loss_stops_with_step_leaf_and_good_checkpoint(
    tmp_path, nans_allowed
):
    # Warm-up from zero: step 1 changes nothing, step 2 makes weights that overflow.
    rate = defaults.pretrain_optim(lr=1e12, warmup_steps=5)
    bad = tiny.pretrain(optim=rate, num_steps=10)
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, bad, checkpoint=dict(every_steps=1, keep_last=2, keep_best=0))
    text = str(caught.value)
    assert "stage pretrain: loss, gradient or update is not finite at step 3" in text
    assert "first bad parameter: decoder/" in text
    # The checkpoint of step 2 led here, so it is not a good one.
    assert "last good checkpoint: step 1;" in text
    kept = [p.name for p in (tmp_path / "stages/pretrain/checkpoints").iterdir()]
    assert kept == ["1"]


def test_an_update_that_breaks_the_last_step_is_not_exported(tmp_path, nans_allowed):
    bad = tiny.pretrain(optim=defaults.pretrain_optim(lr=1e30), num_steps=1)
    with pytest.raises(NonFiniteError, match="not finite at step 1"):
        run(tmp_path, bad)
    assert not (tmp_path / "stages/pretrain/export").exists()


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    rates = defaults.finetune_optim(lr=1e-3, warmup_steps=1)
    stage = tiny.finetune(init_from="scratch", num_steps=6, optim=rates)
    stage["model"] = {**stage["model"], "fresh": ()}
    stage["eval"] = {**stage["eval"], "every_steps": 1}
    run(tmp_path, stage, checkpoint=dict(every_steps=1, keep_last=1, keep_best=1))
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    values = {x["step"]: x["eval_accuracy"] for x in lines if "eval_accuracy" in x}
    kept = {int(p.name) for p in (tmp_path / "stages/finetune/checkpoints").iterdir()}
    best = max(values.values())
    assert 6 in kept
    assert len(kept) <= 2
    assert any(values[step] == best for step in kept)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            dict(init_from="stage:nowhere"),
            "'stage:nowhere' is no earlier stage",
        ),
        (dict(init_from="pretrained"), "the config's `init` is empty"),
        (dict(init_from="/nowhere"), "there is no /nowhere"),
        (dict(objective=defaults.distill()), "'distill' needs a teacher"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
        (dict(seeds=(0, 0)), "must be one or more different numbers"),
        (dict(seeds=(-1,)), r"seed=0 \+ -1 must lie in"),
    ],
)
def test_a_wrong_stage_is_refused_before_anything_is_written(tmp_path, changes, text):
    with pytest.raises(UserError, match=text):
        run(tmp_path, tiny.pretrain(**changes))
    assert not list(tmp_path.glob("stages/*/checkpoints/*"))


def test_a_mistake_in_the_last_stage_stops_the_first(tmp_path):
    late = tiny.finetune(init_from="stage:pretrian")
    with pytest.raises(UserError, match=r"stage finetune: .*no earlier.*: pretrain"):
        run(tmp_path, tiny.pretrain(), late)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The export of a stage that was run."""
    workdir = tmp_path_factory.mktemp("pretrained")
    run(workdir, tiny.pretrain(num_steps=2))
    return str(workdir / "stages/pretrain/export")


def test_weights_of_another_architecture_are_refused(pretrained, tmp_path):
    heads = {**tiny.MODEL, "heads": 4}
    stage = tiny.pretrain(init_from="pretrained")
    with pytest.raises(UserError, match=r"`model` is not what .* holds: heads: 2 -> 4"):
        run(tmp_path, stage, init=pretrained, model=heads)


def test_classes_of_other_names_are_refused(tmp_path, pretrained):
    for split, names in (("train", "ab"), ("test", "bc")):
        for name in names:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "x.png")
    data = tiny.digits() | dict(source=f"folder:{tmp_path / 'data'}")
    stage = {**tiny.finetune(init_from="pretrained"), "data": data}
    # The classes of both splits count, so labels mean the same in both.
    examples = [
        fa_data.open_examples(ConfigDict({**data, "split": s}), "")
        for s in ("train", "test")
    ]
    assert examples[0].class_names == examples[1].class_names == ("a", "b", "c")
    stage["eval"] = {**stage["eval"], "data": tiny.digits(subset=tiny.FEW)}
    with pytest.raises(UserError, match="train has classes without a single exam"):
        run(tmp_path / "run", stage, init=pretrained)


def test_two_stages_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"twice: \['pretrain'\]"):
        run(tmp_path, tiny.pretrain(), tiny.pretrain())
