"""One head for a sequence of tasks: classes by name, and a head that gets more of them."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_files

from flax_adapt import data, defaults, weights
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import check
from flax_adapt.surgery import heads

pytestmark = pytest.mark.usefixtures("compile_fast")
DIGITS = tuple("0123456789")


def digits(**changes):
    return data.open_examples(ConfigDict(tiny.digits(**changes)), "")


def test_labels_are_counted_in_the_classes_that_are_listed():
    plain, named = digits(), digits(classes=("new", *reversed(DIGITS)))
    assert plain.class_names == DIGITS
    assert named.class_names == ("new", *reversed(DIGITS))
    np.testing.assert_array_equal(named.labels, 10 - plain.labels)
    rows = np.arange(5)
    np.testing.assert_array_equal(
        named.batch(rows, rows)["label"], 10 - plain.labels[:5]
    )


@pytest.mark.parametrize("classes", [DIGITS[:9], (*DIGITS, "9")])
def test_every_class_must_be_listed_once(classes):
    with pytest.raises(UserError, match=r"data.classes=.* must list every class"):
        digits(classes=classes)


def test_the_old_logits_stay_and_the_new_ones_begin_as_fresh():
    rng = np.random.default_rng(0)
    old = {"head/kernel": rng.random((3, 2)), "head/bias": rng.random(2), "x": 1}
    init = {"head/kernel": rng.random((3, 4)), "head/bias": rng.random(4)}
    grown, done = heads.grow(old, init, ("a", "b"), ("a", "b", "c", "d"))
    for name in heads.LEAVES:
        np.testing.assert_array_equal(grown[name][..., :2], np.float32(old[name]))
        np.testing.assert_array_equal(
            grown[name][..., 2:], np.float32(init[name][..., 2:])
        )
        assert done[name] == "grown from 2 to 4 classes"
    assert grown["x"] == 1
    with pytest.raises(UserError, match=r"must come first among \('b', 'a'\)"):
        heads.grow(old, init, ("a", "b"), ("b", "a"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks: ants and bees, then ants and cats."""
    root = tmp_path_factory.mktemp("tasks")
    for task, (_, other) in dict(first="ab", second="ac").items():
        tiny_files.image_folder(root / task)
        for split in ("train", "test"):
            (root / task / split / "bee").rename(root / task / split / other)
    return root


def section(tasks, task, classes, split="train"):
    fits = dict(image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3, num_threads=1)
    source = f"folder:{tasks / task}"
    return defaults.image_data(source, split, classes=classes, **fits)


def stage(tasks, name, task, classes, **model):
    options = {
        "num_steps": 2,
        "batch_size": 8,
        "seeds": (0,),
        **model.pop("options", {}),
    }
    evaluation = dict(
        every_steps=0,
        batch_size=8,
        data=section(tasks, task, classes, "test"),
        metric="accuracy",
        mode="max",
    )
    return defaults.finetune_stage(
        name,
        section(tasks, task, classes),
        {},
        eval=evaluation,
        optim=defaults.finetune_optim(lr=1e-3, warmup_steps=1),
        model=defaults.stage_model(**model),
        **options,
    )


BOTH = ("ant", "b", "c")


@pytest.fixture(scope="module")
def run(tasks, tmp_path_factory):
    """(workdir) of a task, of one whose head has grown, and of one with adaptors.

    The last two are held by the predictions of the one before. The second does not learn.
    """
    first = stage(tasks, "first", "first", BOTH[:2], fresh=("head",),
                  options=dict(init_from="scratch"))  # fmt: skip
    held = dict(init_from="stage:first", penalties=(defaults.lwf("stage:first"),))
    second = stage(tasks, "second", "second", BOTH, grow_head=True,
                   options=dict(num_steps=1, **held))  # fmt: skip
    second["optim"] = defaults.finetune_optim(lr=0.0, warmup_steps=0)
    held = dict(init_from="stage:second", penalties=(defaults.lwf("stage:second"),))
    third = stage(tasks, "third", "second", BOTH, adaptor=defaults.adaptor(),
                  options=dict(objective=defaults.glad(), **held))  # fmt: skip
    third["optim"] = defaults.finetune_optim(lr=1e-2, warmup_steps=0)
    config = tiny.experiment(first, second, third, model=tiny_files.MODEL)
    workdir = tmp_path_factory.mktemp("run")
    recipe.run(config, workdir, force=False)
    return workdir


def test_a_stage_goes_on_with_the_head_it_gets_and_the_classes_of_its_own(run):
    old, new = (
        weights.load(run / "stages" / name / "export", "classify", pooling=None)[1]
        for name in ("first", "second")
    )
    np.testing.assert_array_equal(new["head"]["kernel"][:, :2], old["head"]["kernel"])
    assert new["head"]["kernel"].shape == (16, 3)
    assert np.any(new["head"]["kernel"][:, 2] != 0)
    assert weights.class_names(run / "stages/second/export") == BOTH


def test_a_head_that_has_grown_is_held_by_the_old_classes_alone(run):
    """At the start their logits are the old ones, whatever the new class has."""
    second, third = (
        json.loads((run / "stages" / name / "result.json").read_text())["train"]
        for name in ("second", "third")
    )
    assert abs(second["lwf"]) < 1e-6
    assert second["loss"] > 0.1
    # The adapted path by one step away from what it started as.
    assert third["lwf"] > 1e-6
    assert third["loss"] == pytest.approx(
        third["ce"] + third["preserve"] + 0.5 * third["lwf"], rel=1e-5
    )


@pytest.mark.parametrize(
    "model",
    [
        dict(grow_head=True, fresh=("head",)),
        dict(grow_head=True, adaptor=defaults.adaptor()),
    ],
)
def test_what_is_new_or_dropped_does_not_grow(tasks, model):
    config = tiny.experiment(
        stage(tasks, "a", "first", (), options=dict(init_from="scratch"), **model)
    )
    with pytest.raises(UserError, match=r"model.grow_head is of objective 'classify'"):
        check.experiment(config)
