"""What a sweep holds out is seen by no stage of the tried chain that trains on labels.

Training is replaced by a record of the examples that a stage would train on: those of its
opened data, by name, for every chain of stages that the baselines or a config can make.
"""

import numpy as np
import pytest
from support import tiny, tiny_files

from flax_adapt import data, defaults
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import loop


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


@pytest.fixture
def trained(monkeypatch):
    """{label of a stage that ran: the stage}; nothing trains."""
    found = {}

    def train(stage, preemption):
        del preemption
        found[stage.label] = stage
        name, lr = stage.config.name, stage.config.optim.lr
        value = dict(metric="loss", value=lr, mode="min", eval={"loss": lr}, seconds=0)
        return dict(stage=name, seed=stage.run_seed, eval_data="", **value)

    monkeypatch.setattr(loop, "train_and_evaluate", train)
    return found


def run(config, workdir):
    recipe.run(tiny_files.shrink(config), workdir, force=False)


def baselines(files, methods, **arguments):
    fields = dict(dataset=files["images"], init=files["init"], method=methods)
    fields |= dict(lrs="1e-4+1e-3", **arguments)
    text = ",".join(f"{name}={value}" for name, value in fields.items())
    return configs.load(f"baseline_finetune:{text}")


def names(*sections):
    """Of examples, with their source: two folders may name theirs alike."""
    return {
        (section.source, name)
        for section in sections
        for name in data.open_examples(section, "").names
    }


def seen_with_labels(stage):
    """The names of the labelled examples that a stage trains on."""
    config = stage.config
    if config.objective.name not in ("classify", "glad", "regress"):
        return set()
    replayed = () if config.replay is None else data.replay_sections(config.replay)
    return names(config.data, *replayed)


def chain(trained, stage):
    """A stage and all that it follows from, by its references."""
    found, config = [stage], stage.config
    of = [penalty.get("of", ()) for penalty in config.penalties]
    named = [config.init_from, config.teacher]
    named += [text for one in of for text in ((one,) if isinstance(one, str) else one)]
    for text in named:
        if text.startswith("stage:"):
            found += chain(trained, trained[text.removeprefix("stage:")])
    return found


def assert_held_out(trained, name, links):
    """Of every rate that was tried for a stage: nothing held out was seen on its way."""
    tried = [s for label, s in trained.items() if label.startswith(f"{name}/")]
    tried = [stage for stage in tried if "lr_" in stage.config.name]
    assert len(tried) == 2
    for stage in tried:
        held_out = names(stage.config.eval.data)
        before = chain(trained, stage)
        assert len(before) == links
        assert held_out
        for one in before:
            assert not held_out & seen_with_labels(one), one.label


def test_the_head_of_lp_ft_does_not_see_what_the_rates_are_chosen_by(
    files, tmp_path, trained
):
    config = baselines(files, "lp_ft", seeds=2)
    run(config, tmp_path)
    assert_held_out(trained, "finetune_lp_ft", links=2)
    last = trained["finetune_lp_ft"]
    final = [seen_with_labels(one) for one in chain(trained, last)]
    assert final == [names(config.stages[-1].data)] * 2  # all labels, in both stages


@pytest.mark.parametrize("method", ["full", "lp_ft", "ewc", "lwf", "er", "der"])
def test_nor_does_a_task_before_that_has_the_same_examples(
    files, tmp_path, trained, method
):
    """Its weights, its Fisher, its predictions and what is replayed of it."""
    more = dict(previous=files["images"], per_class=5)
    run(baselines(files, method, **more), tmp_path)
    links = {"full": 2, "lp_ft": 3, "er": 2}.get(
        method, 3
    )  # EWC, LwF, DER name it twice
    assert_held_out(trained, f"finetune_{method}", links)


def test_a_task_before_with_other_examples_is_not_run_again(files, tmp_path, trained):
    run(baselines(files, "full+ewc", previous=files["others"]), tmp_path)
    assert not [label for label in trained if "held_out" in label]
    assert_held_out(trained, "finetune_ewc", links=3)


def test_a_chain_of_stages_is_run_again_from_the_first_that_saw_labels(
    tmp_path, trained
):
    """Masked, labelled, masked, swept: the first stays, the others go without."""
    swept = tiny.finetune(
        "swept", init_from="stage:later", sweep=defaults.sweep((0.1, 0.2)), seeds=(3, 4)
    )
    classes = tuple(f"{n}" for n in (*range(5, 10), *range(5)))
    labelled = tiny.finetune("labelled", init_from="stage:masked", seeds=(5, 6))
    stages = [
        tiny.pretrain("masked"),
        {**labelled, "data": tiny.digits(classes=classes)},
        tiny.pretrain("later", init_from="stage:labelled/seed_6"),
        swept,
    ]
    recipe.run(tiny.experiment(*stages), tmp_path, force=False)
    again = [label for label in trained if label.startswith("swept/held_out/")]
    assert again == [
        "swept/held_out/labelled/seed_6",
        "swept/held_out/later",
        "swept/held_out/lr_0.1",
        "swept/held_out/lr_0.2",
    ]
    assert_held_out(trained, "swept", links=4)
    assert trained["swept/held_out/labelled/seed_6"].seed == 6
    kept = names(trained["swept/held_out/labelled/seed_6"].config.data)
    assert kept < names(trained["labelled/seed_6"].config.data)
    assert trained["swept/held_out/later"].config.data == trained["later"].config.data
    assert trained["swept/seed_3"].config.init_from == "stage:later"


def test_a_stage_that_chose_a_rate_of_its_own_keeps_it(files, tmp_path, trained):
    fields = dict(probe="lars", probe_lrs="0.1+1+10")
    run(baselines(files, "lp_ft", **fields), tmp_path)
    heads = [s for label, s in trained.items() if label.endswith("finetune_lp_ft_head")]
    assert len(heads) == 2
    rates = {stage.config.optim.lr for stage in heads}
    assert rates == {min(heads[0].experiment.stages[0].sweep.lrs)}


def test_one_folder_by_two_names_is_one_source(files, tmp_path, trained):
    again = files["images"].replace("folder:", "folder:/../")
    run(baselines(files, "full", previous=again), tmp_path)
    assert "finetune_full/held_out/finetune_previous" in trained


def test_slices_of_a_split_that_may_share_examples_are_refused(tmp_path, trained):
    del trained
    sweep = defaults.sweep((0.1, 0.2))
    stages = [
        tiny.finetune("first", init_from="scratch"),
        tiny.finetune("swept", init_from="stage:first", sweep=sweep),
    ]
    stages[0]["data"] = {**stages[0]["data"], "split": "train[:50%]"}
    text = (
        r"swept: sweep holds out .* 'train', which stage first .*'train\[:50%\]': name"
    )
    with pytest.raises(UserError, match=text):
        recipe.run(tiny.experiment(*stages), tmp_path, force=False)


def test_of_equal_data_without_is_fit():
    """What is left for an earlier stage is what the rates are fitted to."""

    def opened(**part):
        section = tiny.digits(subset={**tiny.FEW, **part})
        return data.open_examples(configs.build(section), "")

    fit, held_out = (opened(part=part) for part in ("fit", "held_out"))
    found = opened(part="without", base=tiny.FEW, names=tuple(held_out.names))
    np.testing.assert_array_equal(found.labels, fit.labels)
    assert list(found.names) == list(fit.names)
