"""Test examples that were trained on with their labels are counted and said."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny, tiny_text

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.data import source, subset
from flax_adapt.evals.features import Features
from flax_adapt.experiment import card, recipe, verdicts
from flax_adapt.experiment.measuring import answers, leaks, seen

WORDS = "with their labels: on these the result is of examples that were seen"
EACH = {**tiny.FEW, "draw": "each_seed"}


def finetune(name, data, test, **changes):
    stage = tiny.finetune(name, **changes)
    return {**stage, "data": data, "eval": {**stage["eval"], "data": test}}


def test_what_a_stage_and_those_before_it_have_seen_is_counted_once_and_warned_of(
    caplog,
):
    whole, held = tiny.digits(), {**tiny.digits(), "split": "held_out"}
    known = {**tiny.digits(), "split": "labelled"}
    config = tiny.experiment(
        tiny.pretrain(),
        finetune("all", whole, held),
        finetune("few", known, held),
        finetune("after", known, whole, init_from="stage:few"),
        finetune("long_after", known, held, init_from="stage:all"),
    )
    assert seen.find_by_stage(config) == {
        "all": dict(by=["all"], examples=697, of=697),
        "after": dict(by=["after", "few"], examples=100, of=1797),
        "long_after": dict(by=["all"], examples=697, of=697),
    }
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("test set of all, long_after: 697 of the 697 test")
    assert said[1].startswith("test set of after: 100 of the 1797 test examples")
    assert all(WORDS in text for text in said)


def test_parts_of_one_draw_share_nothing_and_no_label_is_read(monkeypatch):
    rest = tiny.digits(subset={**EACH, "part": "rest"})
    stage = finetune("few", tiny.digits(subset=EACH), rest, seeds=(0, 3))
    how = defaults.evaluate(tiny.digits(subset=EACH), rest)
    config = tiny.experiment(tiny.pretrain(), stage, evaluate=how)
    monkeypatch.setattr(subset, "open_chosen", None)
    assert seen.find_by_stage(config) == {}
    assert seen.find_in_probes(config.evaluate, {}) is None
    monkeypatch.undo()
    # Other draws of labels leave what this one was trained on, which is then not tested.
    assert seen.find_in_model(config, "few", config.evaluate, {}) is None
    assert seen.find_in_model(config, "pretrained", config.evaluate, {}) is None


def test_of_several_runs_it_is_the_one_that_has_seen_the_most():
    """The verdict joins all of them, and the test set is what the second one has learnt."""
    own = {**EACH, "seed": EACH["seed"] + 3, "draw": "fixed"}
    stage = finetune("few", tiny.digits(subset=EACH), tiny.digits(), seeds=(0, 3))
    how = defaults.evaluate(tiny.digits(), tiny.digits(subset=own))
    config = tiny.experiment(tiny.pretrain(), stage, evaluate=how)
    found = seen.find_in_model(config, "few", config.evaluate, {})
    assert found == dict(by=["few"], examples=40, of=40)


def test_a_draw_that_leaves_a_model_nothing_to_test_has_no_answers():
    rng = np.random.default_rng(0)
    columns = (rng.standard_normal((20, 4)), np.arange(20) % 2, np.arange(20))
    some = Features(*columns)
    none = Features(*(column[:0] for column in columns))
    names = np.array([f"{i:02}" for i in range(20)])
    sets = [
        answers.LabelledSets(some, none, names[:0]),
        answers.LabelledSets(some, some, names),
    ]
    section = tiny.experiment(evaluate=defaults.evaluate(*[tiny.digits()] * 2)).evaluate
    found = answers.answer(section, 0, sets)
    assert {metric: [*arm] for metric, arm in found.arms.items()} == {
        **{"knn": [1], "probe": [1], "shot_1": [1, 3], "shot_5": [1, 3], "shot_10": [1]}
    }
    assert set(found.accuracies()) >= {"knn", "probe", "shot_1"}


def test_it_is_in_the_row_the_table_the_text_and_the_card(tmp_path):
    config = tiny.experiment(tiny.pretrain(), finetune("all", *[tiny.digits()] * 2))
    row = dict(stage="all", metric="accuracy", seeds=[0], mean=0.5, std=0.0)
    row |= dict(seconds=1.0, gain=0.0)
    (said,) = leaks.add_shared(config, [row], seen.find_by_stage(config))
    assert said["seen"] == [dict(by=["all"], examples=1797, of=1797)]
    head, _, cells = recipe.table([said]).splitlines()
    assert (head.split()[-1], cells.split()[-3:]) == ("seen", ["1797", "of", "1797"])
    (line,) = verdicts.text([said])
    assert line.startswith("all: transductive")
    assert (
        f"1797 of the 1797 test examples are training examples of all, {WORDS}" in line
    )
    assert WORDS in card.write_card(config, said, tmp_path, {})
    (plain,) = leaks.add_shared(config, [row], {})
    assert "seen" not in plain


def test_a_finished_stage_needs_its_data_no_more(tmp_path):
    section = {**tiny.digits(), "source": f"folder:{tmp_path}/gone"}
    config = tiny.experiment(tiny.pretrain(), finetune("all", section, section))
    assert seen.find_by_stage(config) == {}


def count_shared(first, second):
    sections = [ConfigDict(one) for one in (first, second)]
    return len(subset.list_shared(*sections, {}))


def test_an_image_is_the_same_in_a_folder_and_in_tables(tmp_path):
    for number in range(6):
        file = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    paths = [f"images/{'ab'[number % 2]}/{number}.png" for number in range(6)]

    def table(name, rows):
        text = "\n".join(["path,label", *(f"{row},{row[7]}" for row in rows)])
        (tmp_path / name).write_text(text)
        return defaults.image_data(f"csv:{tmp_path / name}", "train", image_size=8)

    first, second = table("first.csv", paths[:4]), table("second.csv", paths[3:])
    folder = defaults.image_data(f"folder:{tmp_path}/images", "train", image_size=8)
    assert count_shared(first, second) == 1
    assert count_shared(folder, second) == 3


@pytest.mark.parametrize(("split", "file"), [("train", 5), ("test", 0)])
def test_a_row_is_the_same_in_a_folder_of_tables_and_in_its_file(split, file, tmp_path):
    tiny_text.corpus_folder(tmp_path)
    whole = tiny_text.section(f"jsonl:{tmp_path}", split=split)
    alone = tiny_text.section(f"jsonl:{tmp_path}/../{tmp_path.name}/train.jsonl")
    assert count_shared(whole, alone) == file


@pytest.mark.parametrize(
    ("one", "other", "may"),
    [
        ("train", "test", False),
        ("train", "train[:50%]", True),
        ("train[50%:]+test", "test", True),
        ("all", "validation", True),
    ],
)
def test_splits_of_a_prepared_set_may_overlap_where_they_name_the_same(one, other, may):
    sections = [
        configs.build(defaults.image_data("tfds:x", split)) for split in (one, other)
    ]
    assert source.may_share(*sections) == may
