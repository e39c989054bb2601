"""Replay of several sources: a buffer drawn from all together, and where each row is of."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_files, tiny_replay, tiny_text

from flax_adapt import data
from flax_adapt.base import errors
from flax_adapt.data import base

ODD, EVEN = (
    dict(per_class=n, fraction=1.0, seed=s, part="chosen") for n, s in ((6, 2), (4, 3))
)

PLAIN = ConfigDict(tiny.digits())


def sources():
    """60 and 40 digits, of other seeds."""
    return tuple(ConfigDict(tiny.digits(subset=subset)) for subset in (ODD, EVEN))


def opened(**changes):
    fields = dict(source=sources(), sampling="stratified", ratio=0.5, buffer_size=24)
    return tiny_replay.digits(**{**fields, **changes})


def names_of(section):
    return list(data.open_examples(ConfigDict(section), "").names)


def test_a_buffer_has_its_size_whatever_the_ratio():
    for ratio in (0.1, 2.0):
        examples = opened(ratio=ratio)
        assert len(examples.source) == len(examples.origins) == 24
    # Without a size the ratio says how many: 0.5 of 20.
    assert len(opened(buffer_size=0).source) == 10


def test_a_row_is_of_the_source_that_origins_name():
    examples = opened(seed=5)
    assert set(examples.origins) == {0, 1}
    assert sorted(examples.origins) == list(examples.origins)
    drawn = examples.record()["names"]
    for number, section in enumerate(sources()):
        names = names_of(section)
        mine = [
            name for name, k in zip(drawn, examples.origins, strict=True) if k == number
        ]
        assert mine
        assert [names.index(name) for name in mine] == sorted(map(names.index, mine))


def test_every_row_has_the_image_and_the_label_of_its_own_source():
    examples, first = opened(), 20
    parts = [data.open_examples(ConfigDict(section), "") for section in sources()]
    drawn = examples.record()["names"]
    row = np.array([first + 3, first + 22, 1])
    batch = examples.batch(row, np.arange(3))
    np.testing.assert_array_equal(batch["domain"], [1, 1, 0])
    for place, index in enumerate(row[:2]):
        number = examples.origins[index - first]
        there = list(parts[number].names).index(drawn[index - first])
        alone = parts[number].batch(np.array([there]), np.array([0]))
        np.testing.assert_array_equal(batch["image"][place], alone["image"][0])
        assert batch["label"][place] == alone["label"][0] == examples.labels[index]


def test_the_buffer_is_uniform_over_the_union():
    """As a reservoir: a source has the share of its size, 60 to 40."""
    share = np.mean([opened(seed=seed).origins for seed in range(60)])
    deviation = np.sqrt(0.4 * 0.6 / (24 * 60))  # a little less: without replacement
    assert abs(share - 0.4) < 4 * deviation


@pytest.mark.parametrize("sampling", ["stratified", "uniform"])
def test_the_ratio_says_what_batches_hold_also_with_a_buffer(sampling):
    examples = opened(sampling=sampling, ratio=1 / 3)  # 24 beside 20 would be 4 of 8
    counts = tiny_replay.counts(tiny_replay.take(examples, 60, 8))
    assert np.mean(counts) == pytest.approx(2, abs=0.5)
    assert (set(counts) == {2}) == (sampling == "stratified")


def test_the_record_tells_all_sources_and_the_size():
    record = opened().record()
    assert record["source"] == ["builtin:digits"] * 2
    assert (record["split"], record["buffer_size"]) == (["train"] * 2, 24)


def test_texts_of_several_files_are_replayed_together(tmp_path):
    root = tiny_replay.corpus(tmp_path)
    fields = dict(split="train")
    ours, first, second = (
        tiny_text.section(f"jsonl:{root}", root / "model", **{**fields, "split": split})
        for split in ("train", "test", "train")
    )
    section = tiny_replay.replay((first, second), 0.5, buffer_size=8)
    examples = data.open_replay(ours, section, "", 4)
    assert list(examples.origins) == [0] * 3 + [1] * 5
    assert examples.same_classes
    batch = examples.batch(np.arange(len(examples)), np.arange(len(examples)))
    np.testing.assert_array_equal(batch["label"], examples.labels)
    twice = batch["text"].tokens_BL[:5]
    np.testing.assert_array_equal(batch["text"].tokens_BL[8:], twice)


def test_sources_of_other_classes_have_no_labels_together(tmp_path):
    root = tiny_files.image_folder(tmp_path)
    folder = ConfigDict({**tiny.digits(), "source": f"folder:{root}"})
    examples = opened(source=(sources()[0], folder), buffer_size=60)
    assert not examples.same_classes
    assert set(examples.labels[20:]) == {-1}


def test_a_union_of_one_source_is_that_source():
    source = data.open_examples(ConfigDict(sources()[0]), "").source
    assert base.join_sources([source]) is source
    np.testing.assert_array_equal(
        base.source_numbers(np.array([2, 5]), [0, 1, 2, 4]), [0, 0, 1, 1]
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(buffer_size=101), r"replay: buffer_size 101 asks for 101 of the 100 .*; "
                                "change the buffer_size"),
        (dict(buffer_size=-1), "replay.buffer_size=-1 must be the number"),
        (dict(source=()), r"replay.data=\(\) must name a source"),
        (
            dict(source=(PLAIN, ConfigDict({**PLAIN, "mean": (0.1,)}))),
            "replay.data.mean=.* must be that of the target",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_field(changes, text):
    section = ConfigDict(tiny_replay.few(2))
    fields = {**dict(source=sources(), ratio=0.5), **changes}
    with pytest.raises(errors.UserError, match=text):
        data.open_replay(section, tiny_replay.replay(**fields), "", 4)


def test_texts_whose_labels_are_of_another_kind_are_refused(tmp_path):
    root = tiny_replay.corpus(tmp_path)
    ours, other = (
        tiny_text.section(f"jsonl:{root}", root / "model", label_field=field)
        for field in ("label", "")
    )
    with pytest.raises(errors.UserError, match="having a label_field must be the same"):
        data.open_replay(ours, tiny_replay.replay((ours, other)), "", 4)
