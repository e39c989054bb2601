"""What is drawn from the source of replay, and every mistake in a replay section."""

import json
import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny, tiny_files, tiny_replay, tiny_text
from support.tiny_replay import digits, few, replay

from flax_adapt import data
from flax_adapt.base import errors


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_replay.corpus(tmp_path_factory.mktemp("corpus"))


def drawn(ratio, **changes):
    return digits(ratio, **changes).record()["names"]


@pytest.mark.parametrize(
    ("ratio", "final_ratio", "count"),
    [
        (0.5, 0.5, 10),
        (0.13, 0.13, 3),
        (0.1, 1.5, 30),
        (1.5, 0.0, 30),
        (10.0, 10.0, 200),
    ],
)
def test_so_many_are_drawn_as_the_largest_ratio_asks(ratio, final_ratio, count):
    changes = dict(final_ratio=final_ratio, schedule="linear")
    examples = digits(ratio, **changes)
    assert (len(examples.target), len(examples.source)) == (20, count)
    assert len(examples) == len(examples.names) == len(examples.labels) == 20 + count
    assert len(set(drawn(ratio, **changes))) == count


def test_what_is_drawn_depends_on_the_seed_alone_and_grows_with_the_ratio():
    small, same, large = drawn(0.5), drawn(0.5, sampling="stratified"), drawn(2.0)
    assert small == same
    assert set(small) < set(large)
    assert len({tuple(drawn(0.5, seed=seed)) for seed in range(4)}) == 4


def test_the_drawn_are_spread_over_the_source_and_in_its_order():
    whole = list(data.open_examples(ConfigDict(few(20)), "").names)
    rows = [whole.index(name) for name in drawn(2.5)]
    assert rows == sorted(rows)
    assert 60 < np.mean(rows) < 140
    assert rows != list(range(rows[0], rows[0] + 50))


def test_the_record_is_json_and_names_what_batches_hold(caplog):
    caplog.set_level(logging.INFO)
    examples = digits(0.5, seed=3)
    record = examples.record()
    assert json.loads(json.dumps(record)) == record
    names = record.pop("names")
    assert (
        names
        == list(examples.names[20:])
        == [examples.names[-i] for i in range(10, 0, -1)]
    )
    assert record == dict(
        seed=3,
        ratio=0.5,
        final_ratio=0.5,
        schedule="constant",
        sampling="uniform",
        source="builtin:digits",
        split="train",
    )
    (line,) = [text for text in caplog.messages if text.startswith("replay: ")]
    assert line == (
        "replay: drew 10 of 200 examples of builtin:digits with seed 3, for a ratio of 0.5"
        " to 20 target examples"
    )


def test_a_source_with_other_classes_is_unlabelled(tmp_path):
    root = tiny_files.image_folder(tmp_path)
    fields = dict(split="train", num_threads=1)
    section = {**tiny.digits(), "source": f"folder:{root}", **fields}
    other = digits(0.5, source=section, sampling="stratified")
    same = digits(0.5)
    assert (same.same_classes, other.same_classes) == (True, False)
    assert other.class_names == same.class_names == other.target.class_names
    assert min(same.labels) == 0
    assert set(other.labels[20:]) == {-1}
    assert min(other.source.labels) == 0
    for batch in tiny_replay.take(other, 3):
        np.testing.assert_array_equal(batch["label"] < 0, batch["domain"] == 1)


def test_bad_files_of_both_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("target", "source"):
        (tmp_path / part).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{part}{i}.png")
        (tmp_path / part / f"{part}0.png").write_text("sorry")
    ours, theirs = (
        ConfigDict(
            {
                **tiny.digits(),
                "source": f"folder:{tmp_path / p}",
                "max_bad_fraction": 0.3,
            }
        )
        for p in ("target", "source")
    )
    log = tmp_path / "bad.log"
    examples = data.open_replay(ours, replay(theirs, 1.0), str(log), 4)
    assert len(examples.bad_files) == 0
    (batch,) = data.eval_batches(examples, 8, 0, 1)
    np.testing.assert_array_equal(batch["weight"], [0, 1, 1, 1] * 2)
    assert len(examples.bad_files) == 2
    assert examples.bad_files.names == ("target0.png", "source0.png")
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            dict(schedule="step"),
            r"replay\.schedule='step'.*\['constant', 'cosine', 'lin",
        ),
        (
            dict(sampling="all"),
            r"replay\.sampling='all'.*\['joint', 'stratified', 'uni",
        ),
        (
            dict(ratio=-1.0),
            r"replay\.ratio=-1\.0 and final_ratio=0\.5 must be numbers >=",
        ),
        (dict(final_ratio=float("nan")), r"final_ratio=nan must be numbers >= 0"),
        (dict(ratio=0.0, final_ratio=0.0), r"one of them > 0; .* set replay=None"),
        (dict(final_ratio=1.0), r"final_ratio=1\.0 differ, but .* is 'constant'"),
        (dict(seed=-1), r"replay\.seed=-1 must be >= 0"),
        (
            dict(ratio=11.0, final_ratio=11.0),
            r"^replay: ratio 11\.0 of 20 target examples asks for 220 of the 200 examples "
            r"of builtin:digits; change the ratio",
        ),
        (dict(ratio=0.02, final_ratio=0.02), r"asks for 0 of the 200 examples"),
    ],
)
def test_wrong_settings_are_named(changes, told):
    with pytest.raises(errors.UserError, match=told):
        digits(**{"ratio": 0.5, "final_ratio": 0.5, **changes})


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("image_size", 16),
        ("channels", 3),
        ("mean", (0.4,)),
        ("std", (0.4,)),
        ("modality", "text"),
        ("tokenizer", "elsewhere"),
        ("seq_len", 32),
        ("layout", "packed"),
        ("buckets", ()),
    ],
)
def test_what_must_agree_is_named_with_both_values(corpus, field, other):
    text = tiny_text.section(f"jsonl:{corpus}", corpus / "model")
    ours = text if field in text and field != "modality" else ConfigDict(tiny.digits())
    theirs = ConfigDict({**ours, field: other})
    with pytest.raises(errors.UserError) as caught:
        data.open_replay(ours, replay(theirs), "", 4)
    assert str(caught.value) == (
        f"replay.data.{field}={other!r} must be that of the target, "
        f"data.{field}={ours[field]!r}: one batch holds both"
    )


def test_a_mistake_in_the_section_of_the_source_says_that_it_is_of_replay(corpus):
    with pytest.raises(errors.UserError, match=r"^replay: data\.source='builtin'"):
        digits(source={**few(20), "source": "builtin"})
    bad = tiny_text.section(f"jsonl:{corpus}", corpus / "model", label_kind="rank")
    ours = tiny_text.section(f"jsonl:{corpus}", corpus / "model")
    with pytest.raises(errors.UserError, match=r"^replay: data\.label_kind='rank'"):
        data.open_replay(ours, replay(bad), "", 4)


@pytest.mark.parametrize(
    ("ratio", "batch_size", "counts"),
    [(0.5, 1, "1 target and 0 source"), (10.0, 4, "0 target and 4 source")],
)
def test_a_batch_too_small_for_both_domains_is_refused(ratio, batch_size, counts):
    examples = digits(ratio, sampling="stratified")
    told = rf"^batch_size={batch_size} at replay ratio {ratio} .* is {counts} examples"
    with pytest.raises(errors.UserError, match=told):
        data.make_batches(examples, batch_size, 0, 0, 1)
    digits(ratio, sampling="uniform").order(batch_size, 0)
