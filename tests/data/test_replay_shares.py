"""What batches of replay hold of each domain, counted over whole epochs of them."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny_replay, tiny_text
from support.tiny_replay import few, texts

from flax_adapt import data
from flax_adapt.base import errors

TARGET = 20  # digits of `tiny_replay.digits`
SIZES = (10, 40, 90)  # of the sources


def opened(ratio, **changes):
    """20 digits; from three sources of 10, 40 and 90 digits some or all are replayed."""
    sources = tuple(ConfigDict(few(size // 10)) for size in SIZES)
    return tiny_replay.digits(ratio, source=sources, **changes)


def counts(examples, batch_size, first, last):
    """How often the batches first .. last - 1 hold each row of the examples, int [n]."""
    order = examples.order(batch_size, 7)
    held = np.concatenate([order[k] for k in range(first, last)])
    return np.bincount(held, minlength=len(examples))


def by_domain(examples, count):
    """What of `count` is of the target, and of each source."""
    target = len(examples.target)
    sources = np.bincount(examples.origins, count[target:], len(SIZES))
    return [int(count[:target].sum()), *sources.astype(int).tolist()]


def test_joint_draws_each_domain_in_proportion_to_its_size():
    """Every example of the target and of every source once an epoch, at one batch size
    that divides the epoch and at one that does not."""
    examples = opened(0.0, sampling="joint")
    assert len(examples) == TARGET + sum(SIZES) == 160
    epoch = counts(examples, 16, 0, 10)
    assert set(epoch) == {1}
    assert by_domain(examples, epoch) == [TARGET, *SIZES]
    later = counts(examples, 16, 30, 40)
    assert set(later) == {1}
    three = counts(examples, 7, 0, 3 * 160 // 7)
    assert set(three) <= {2, 3}
    assert three.sum() == 476


def test_joint_mixes_the_domains_within_a_batch():
    batches = np.stack(
        [opened(0.0, sampling="joint").order(16, s)[0] for s in range(40)]
    )
    assert np.mean(batches < TARGET) == pytest.approx(TARGET / 160, abs=0.06)


def test_joint_of_texts_counts_rows_of_every_document(tmp_path):
    root = tiny_replay.corpus(tmp_path)
    for layout in ("padded", "packed"):
        examples = texts(root, 0.0, sampling="joint", layout=layout)
        assert (examples.target.num_texts, examples.source.num_texts) == (5, 3)
        assert set(counts(examples, len(examples), 0, 2)) == {2}


def test_uniform_at_a_constant_ratio_has_every_drawn_example_as_often_as_the_target():
    examples = opened(3.0, sampling="uniform")
    assert len(examples.source) == 60
    epoch = counts(examples, 8, 0, 10)
    assert set(epoch) == {1}
    # What was drawn of each source is about its share of all 140: 4.3, 17.1, 38.6.
    np.testing.assert_allclose(
        by_domain(examples, epoch)[1:], [4.3, 17.1, 38.6], atol=6
    )


@pytest.mark.parametrize("sampling", ["stratified", "uniform"])
def test_a_buffer_is_drawn_at_the_ratio_and_every_part_of_it_as_often(sampling):
    """Of every batch r / (1 + r) = 3/4, however large the buffer."""
    examples = opened(3.0, sampling=sampling, buffer_size=28)
    count = counts(examples, 8, 0, 280)
    of_target, of_source = count[:TARGET], count[TARGET:]
    # Binomial(8, 3/4) each: 2 240 rows have a standard deviation of 20.5.
    spread = 0 if sampling == "stratified" else 4 * 20.5
    assert abs(of_source.sum() - 1680) <= spread
    # Each domain goes on in whole epochs: no example is more than one ahead.
    assert np.ptp(of_target) <= 1
    assert np.ptp(of_source) <= 1


def test_every_batch_of_a_stratified_schedule_is_counted():
    """r from 0 to 1 over 40 batches of 12: round(12 r / (1 + r)) rows of the source."""
    changes = dict(sampling="stratified", final_ratio=1.0, schedule="linear")
    examples = opened(0.0, num_steps=40, **changes)
    assert len(examples.source) == TARGET
    ratio = np.minimum(np.arange(60) / 40, 1.0)
    order = examples.order(12, 7)
    held = [int(np.sum(order[k] >= TARGET)) for k in range(60)]
    assert held == [round(12 * r / (1 + r)) for r in ratio.tolist()]
    assert np.ptp(counts(examples, 12, 0, 60)[TARGET:]) <= 1


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_the_drawn_number_is_the_ratio_of_the_target(ratio):
    examples = opened(ratio, sampling="stratified")
    assert len(examples.source) == round(ratio * TARGET)


def test_an_example_of_a_larger_source_is_not_drawn_more_often():
    """As a reservoir of a stream of all sources: 28 of 140, each with probability 1/5."""
    drawn = np.zeros(len(SIZES))
    for seed in range(60):
        origins = opened(1.0, buffer_size=28, seed=seed).origins
        drawn += np.bincount(origins, minlength=len(SIZES))
    share = drawn / 60 / SIZES
    deviation = np.sqrt(0.2 * 0.8 / (60 * np.array(SIZES)))
    assert np.all(np.abs(share - 0.2) < 4 * deviation)


@pytest.mark.parametrize(
    "changes",
    [dict(ratio=0.5), dict(buffer_size=4), dict(final_ratio=1.0), dict(ratio=np.nan)],
)
def test_joint_has_no_ratio_and_no_buffer(changes):
    told = "must all be 0 for replay.sampling='joint'"
    with pytest.raises(errors.UserError, match=told):
        opened(**{"ratio": 0.0, "sampling": "joint", **changes})


def test_joint_needs_no_ratio_to_count_texts_of_several_files(tmp_path):
    root = tiny_replay.corpus(tmp_path)
    ours, other = (
        tiny_text.section(f"jsonl:{root}", root / "model", split=split)
        for split in ("train", "test")
    )
    section = tiny_replay.replay((other, ours), 0.0, sampling="joint")
    examples = data.open_replay(ours, section, "", 4)
    assert list(examples.origins) == [0] * 3 + [1] * 5
    assert set(counts(examples, 13, 0, 1)) == {1}
