"""Every seed of a stage draws its own labels, the same in all arms, unless they are fixed."""

import json

import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_files

from flax_adapt import data, defaults
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import check, draws, loop

EACH = defaults.few(4, "each_seed")


def arms(few=EACH, names=("one", "two"), **changes):
    """An experiment of fine-tuning stages with seeds 0 and 3 on few labels."""
    test = tiny.digits(subset={**few, "part": "rest"})
    fields = dict(seeds=(0, 3), init_from="scratch", **changes)
    stages = [tiny.finetune(name, **fields) for name in names]
    for stage in stages:
        stage["data"] = tiny.digits(subset=few)
        stage["eval"] = {**stage["eval"], "data": test}
    return tiny.experiment(*stages)


def drawn(config, stage, seed):
    """The names of training and of test examples of a run."""
    section = draws.of_seed(config, config.stages[stage], seed)
    return tuple(
        set(data.open_examples(one, "").names)
        for one in (section.data, section.eval.data)
    )


def test_each_seed_draws_other_labels_and_arms_draw_the_same():
    config = arms()
    (first, rest), (second, _) = drawn(config, 0, 0), drawn(config, 0, 3)
    assert len(first) == len(second) == 40
    assert len(first & second) < 10
    assert drawn(config, 1, 3)[0] == second
    assert not first & rest
    assert len(first | rest) == 1797


def test_the_first_seed_draws_what_fixed_labels_are():
    fixed = arms({**EACH, "draw": "fixed"})
    assert drawn(fixed, 0, 3) == drawn(fixed, 0, 0) == drawn(arms(), 0, 0)


def test_a_reference_without_a_seed_is_the_run_of_the_same_seed():
    config = arms(names=("head", "tuned"))
    with config.unlocked():
        config.stages[1].init_from = "stage:head"
    assert draws.of_seed(config, config.stages[1], 3).init_from == "stage:head/seed_3"
    check.experiment(config)
    with config.unlocked():
        config.stages[1].seeds = (0, 5)
    with pytest.raises(UserError, match=r"'stage:head' is no earlier stage"):
        check.experiment(config)


def test_an_unknown_draw_is_one_line():
    config = arms({**EACH, "draw": "often"})
    with pytest.raises(UserError, match=r"draw='often' is unknown.*each_seed"):
        check.experiment(config)
    with pytest.raises(UserError, match=r"labels='often' is unknown"):
        defaults.few(4, "often")


@pytest.fixture
def trained(monkeypatch):
    """{label of a run: its section}; nothing trains."""
    found = {}

    def train(stage, preemption):
        del preemption
        found[stage.label] = stage.config
        lr = stage.config.optim.lr
        value = dict(metric="loss", value=lr, mode="min", eval={"loss": lr}, seconds=0)
        return dict(stage=stage.config.name, seed=stage.run_seed, eval_data="", **value)

    monkeypatch.setattr(loop, "train_and_evaluate", train)
    return found


def names(section):
    return set(data.open_examples(section, "").names)


def test_head_sweep_and_held_out_labels_of_lp_ft_follow_the_draw(
    trained, tmp_path, tmp_path_factory
):
    files = tiny_files.everything(tmp_path_factory.mktemp("files"))
    text = f"method=lp_ft,dataset={files['images']},init={files['init']},per_class=3"
    config = configs.load(f"baseline_finetune:{text},seeds=2,lrs=1e-4+1e-3")
    recipe.run(_small(config), tmp_path, force=False)
    for seed in (0, 1):
        whole = names(trained[f"finetune_lp_ft/seed_{seed}"].data)
        assert names(trained[f"finetune_lp_ft_head/seed_{seed}"].data) == whole
        folder = f"finetune_lp_ft/seed_{seed}/held_out"
        tried = trained[f"{folder}/lr_0.001"]
        held_out = names(tried.eval.data)
        assert held_out | names(tried.data) == whole
        head = trained[f"{folder}/finetune_lp_ft_head/seed_{seed}"]
        assert not names(head.data) & held_out
        start = trained[f"finetune_lp_ft/seed_{seed}"].init_from
        assert start == f"stage:finetune_lp_ft_head/seed_{seed}"
    whole = [names(trained[f"finetune_lp_ft/seed_{seed}"].data) for seed in (0, 1)]
    assert whole[0] != whole[1]


def _small(config):
    """The config with threads for tests, and all seeds."""
    seeds = [stage.seeds for stage in config.stages]
    config = tiny_files.shrink(config)
    with config.unlocked():
        for stage, all_seeds in zip(config.stages, seeds, strict=True):
            stage.seeds = all_seeds
    return config


def test_a_workdir_without_draws_goes_on_with_fixed_labels(trained, tmp_path):
    config = arms()
    old = json.loads(json.dumps(configs.plain(config)))
    _without_draws(old)
    old["precision"] = "float32"  # a workdir holds what "auto" was
    (tmp_path / "stages/one/seed_0/checkpoints/1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(old, indent=2))
    recipe.run(config, tmp_path, force=False)
    assert names(trained["one/seed_0"].data) == names(trained["one/seed_3"].data)
    recipe.run(arms({**EACH, "draw": "fixed"}), tmp_path, force=False)
    with pytest.raises(UserError, match=r"subset\.draw: fixed -> each_seed"):
        recipe.run(config, tmp_path, force=False)


def _without_draws(value):
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict):
        value.pop("draw", None)
    for one in inner:
        if isinstance(one, dict | list):
            _without_draws(one)


def test_replayed_examples_stay_those_that_were_learnt_before():
    config = arms()
    section = config.stages[0]
    replayed = defaults.replay(tiny.digits(subset=EACH), 1.0)
    section = draws.change_fields(section, replay=ConfigDict(replayed))
    of_seed = draws.of_seed(config, section, 3)
    assert of_seed.replay.data.subset.seed == 0
    assert of_seed.data.subset.seed == 3
