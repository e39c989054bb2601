"""What training has seen of the test set is said: transductive pools, and near-copies."""

import csv

import numpy as np
import pytest
from PIL import Image
from support import tiny

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.data import duplicates, source, subset
from flax_adapt.experiment import recipe, verdicts
from flax_adapt.experiment.measuring import leaks
from flax_adapt.stage import draws

REST = {**tiny.FEW, "part": "rest"}


def experiment(pool):
    return tiny.experiment(
        tiny.pretrain(data=pool), tiny.distill(data=pool), tiny.finetune()
    )


def names(section):
    return {*subset.select(source.open_source(section), section.subset).names}


def test_a_pool_with_the_test_examples_is_transductive_and_its_rest_is_not():
    whole = experiment(tiny.digits())
    tested = whole.stages[2].eval.data
    held = {"pools": ["pretrain"], "examples": 1757, "of": 1757}
    assert leaks.find_shared(whole, "finetune", tested) == held
    assert leaks.find_shared(whole, "distill", tested)["pools"] == [
        *("distill", "pretrain")
    ]
    part = experiment(tiny.digits(subset=tiny.FEW))
    assert leaks.find_shared(part, "finetune", tested) is None
    # The last 697 digits have the same names in a split of their own.
    with part.unlocked():
        part.stages[0].data = {**tiny.digits(), "split": "held_out"}
    known = names(configs.build(part.stages[0].data)) & names(tested)
    assert leaks.find_shared(part, "finetune", tested)["examples"] == len(known) > 600


def test_transductive_is_said_beside_the_gain_and_in_the_verdict():
    row = dict(stage="finetune", metric="accuracy", seeds=[0], mean=0.5, std=0.0)
    row |= dict(seconds=1.0, gain=0.1)
    judged = dict(against="x", word="helped", metric="accuracy", difference=0.1)
    judged |= dict(low=0.05, high=0.2, seeds=[0], examples=9, covers="all", also=[])
    rows = [{**row, "verdict": {**judged, "disagree": False}}]
    (said,) = leaks.add_shared(experiment(tiny.digits()), rows, {})
    assert said["transductive"]["examples"] == 1757
    head, _, cells = recipe.table([said]).splitlines()
    assert head.split()[-2:] == ["pool", "verdict"]
    assert " transductive  helped" in cells
    text = "transductive: the pool of pretrain holds 1757 of the 1757 test examples"
    assert text in verdicts.text([said])[0]
    (plain,) = leaks.add_shared(experiment(tiny.digits(subset=tiny.FEW)), rows, {})
    assert plain == rows[0]


def test_pool_without_test_takes_the_test_examples_out_of_pools_alone():
    before, after = (
        configs.load(f"quickstart:{more}") for more in ("", "pool=without_test")
    )
    tested = names(after.evaluate.test)
    for old, new in zip(before.stages, after.stages, strict=True):
        if new.data.source != "builtin:digits" or new.objective.name == "classify":
            assert old == new
            continue
        assert names(old.data) & tested
        assert names(new.data) == names(old.data) - tested
        assert leaks.find_shared(after, new.name, after.evaluate.test) is None
    with pytest.raises(UserError, match=r"pool='all'.*without_test"):
        configs.load("quickstart:pool=all")


def test_pool_without_test_is_refused_where_each_seed_has_its_own_test():
    drawn = defaults.few(4, "each_seed")
    stage = tiny.finetune()
    stage["eval"] = {**stage["eval"], "data": tiny.digits(subset=drawn)}
    whole = dict(stages=(tiny.pretrain(), stage))
    whole["evaluate"] = defaults.evaluate(stage["data"], tiny.digits(subset=REST))
    settings = {**defaults.SETTINGS, "pool": "without_test"}
    with pytest.raises(UserError, match="add labels=fixed"):
        defaults.settings.apply_settings(whole, settings)


def test_sets_of_one_split_have_different_names():
    drawn, few = ({**tiny.FEW, "draw": draw} for draw in ("each_seed", "fixed"))
    stage = tiny.finetune(seeds=(0, 2))
    stage["data"] = tiny.digits(subset=drawn)
    stage["eval"] = {**stage["eval"], "data": tiny.digits(subset=REST)}
    how = defaults.evaluate(tiny.digits(subset=few), tiny.digits())
    sets = leaks.list_sets(tiny.experiment(tiny.pretrain(), stage, evaluate=how))
    said = [one.describe() for one in sets]
    assert said == [
        "the pool builtin:digits train",
        "the training set builtin:digits train (4 a class, seeds 0, 2)",
        "the test set builtin:digits train (all but 4 a class, seed 0)",
        "the training set builtin:digits train (4 a class, seed 0)",
        "the test set builtin:digits train",
    ]
    part = configs.load("quickstart:pool=without_test")
    pools = [one.describe() for one in leaks.list_sets(part) if one.role == "pool"]
    assert "without what other sets hold, of all" in " ".join(pools)


def test_pool_without_test_looks_at_the_examples_and_not_at_how_they_are_named(
    tmp_path,
):
    """A table may list images of the pool's folder; other parts of a set share nothing."""
    for number in range(6):
        file = tmp_path / "pool" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    rows = "".join(f"pool/{number}.png,{number % 2}\n" for number in range(4))
    (tmp_path / "test.csv").write_text(f"path,label\n{rows}")
    how = dict(image_size=8)
    pool = defaults.image_data(
        f"folder:{tmp_path}/pool", "train", **how, label_field=""
    )
    listed = defaults.image_data(f"csv:{tmp_path}/test.csv", "train", **how)
    apart = {
        **tiny.digits(),
        "split": "held_out",
        "subset": defaults.few(4, "each_seed"),
    }
    stage = tiny.pretrain(data=pool)
    assert defaults.settings._leave_out(stage, [apart]) == stage
    left = defaults.settings._leave_out(stage, [apart, listed])
    assert sorted(names(configs.build(left["data"]))) == ["4.png", "5.png"]
    digits = tiny.pretrain(data={**tiny.digits(), "split": "unlabelled"})
    assert defaults.settings._leave_out(digits, [apart]) == digits


def write_pictures(root):
    """Folders pool, train and test; three copies of tests in the pool, and one in train."""
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 200, (6, 6, 3)).astype(np.uint8)).resize(
            (48, 48), Image.Resampling.BICUBIC
        )
        for _ in range(40)
    ]
    parts = {"pool": pictures[:20], "train": pictures[20:30], "test": pictures[30:]}
    parts["pool"] = [*parts["pool"], *(p.resize((64, 40)) for p in pictures[31:34])]
    parts["train"] = [*parts["train"], pictures[39].point(lambda x: min(255, x + 30))]
    for part, some in parts.items():
        for number, one in enumerate(some):
            folder = root / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            one.save(folder / f"{number:02}.jpg", quality=70)
    return pictures, parts


def test_near_copies_are_counted_listed_and_not_looked_for_twice(tmp_path, monkeypatch):
    pictures, parts = write_pictures(tmp_path / "images")

    def section(split):
        return defaults.image_data(f"folder:{tmp_path / 'images'}", split, image_size=8)

    stage = tiny.finetune()
    stage |= dict(data=section("train"))
    stage["eval"] = {**stage["eval"], "data": section("test")}
    how = defaults.evaluate(section("train"), section("test"))
    config = tiny.experiment(tiny.pretrain(data=section("pool")), stage, evaluate=how)
    lines = leaks.list_copies(config, tmp_path)
    assert [line.partition(" examples")[0] for line in lines] == [
        "near-copies: 3 of 10",
        "near-copies: 1 of 10",
        "near-copies: none of 11",
    ]
    assert lines[0].count(" ~ ") == 3
    text = (tmp_path / leaks.FILE).read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert sorted(row["name"][-6:] for row in rows) == [
        *("01.jpg", "02.jpg", "03.jpg", "09.jpg")
    ]
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "describe", None)
        assert leaks.list_copies(config, tmp_path) == lines
    # What an earlier version has written did not count what both sets have.
    record = logs.read_json(tmp_path / leaks.RECORD)
    old = {"sets": record["sets"], "lines": ["near-copies: none"]}
    logs.write_json(tmp_path / leaks.RECORD, old)
    assert leaks.list_copies(config, tmp_path) == lines
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "describe", None)
        config.stages[0].data.fit = "pad"
        with pytest.raises(TypeError):  # read in another way: they are compared again
            leaks.list_copies(config, tmp_path)
        config.stages[0].data.fit = "squash"
    # Other files in the folder: they are looked for again.
    (tmp_path / "images/pool/a/00.jpg").unlink()
    assert leaks.list_copies(config, tmp_path)[0].startswith("near-copies: 3 of 10")
    pictures[0].save(tmp_path / "images/test/a/00.jpg", quality=70)
    pictures[0].save(tmp_path / "images/pool/a/00.jpg", quality=71)
    assert leaks.list_copies(config, tmp_path)[0].startswith("near-copies: 4 of 10")
    # A folder by another path is the same folder.
    tested = draws.change_fields(
        section("test"),
        source=f"folder:{tmp_path}/images/../images/pool/",
        split="train",
    )
    held = leaks.find_shared(config, "pretrain", tested)
    assert (held["examples"], held["of"]) == (len(parts["pool"]), len(parts["pool"]))


@pytest.mark.parametrize(
    ("few", "said"),
    [
        ({"per_class": 4}, "besides the 10 that are in both, in one draw"),
        ({}, "besides the 10 that are in both"),
    ],
)
def test_what_both_sets_have_is_no_near_copy_and_is_counted(tmp_path, few, said):
    test = tiny.digits(subset={**tiny.FEW, "per_class": 1})
    known = tiny.digits(subset={**defaults.ALL, "draw": "each_seed", **few})
    stage = {**tiny.finetune(init_from="scratch"), "data": known, "seeds": (0, 1)}
    stage["eval"] = {**stage["eval"], "data": test}
    how = defaults.evaluate(known, test)
    config = tiny.experiment(stage, evaluate={**how, "draws": 2})
    (line,) = leaks.list_copies(config, tmp_path)
    assert f", {said}" in line
    assert line.endswith("both") == (not few)
