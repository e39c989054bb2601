"""Metrics are sums and counts: no split of the data changes the mean."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_adapt.base import scores
from flax_adapt.base.metrics import (
    Loss,
    Mean,
    Meter,
    Perplexity,
    Spearman,
    Sum,
    accuracy,
    confusion,
)

# Quarters of small numbers: float32 adds them exactly, in any order.
QUARTERS = st.integers(-400, 400).map(lambda n: n / 4)
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 2.0])
ROWS = st.lists(st.tuples(QUARTERS, WEIGHTS), min_size=1, max_size=12)


def mean_of(rows):
    values, weights = np.array(rows, np.float32).reshape(-1, 2).T
    return Mean(np.sum(values * weights), np.sum(weights))


def test_a_weighted_mean_is_as_by_hand():
    mean = Mean.of(jnp.array([1.0, 4.0, 7.0]), jnp.array([1.0, 2.0, 0.0]))
    assert (float(mean.total), float(mean.count)) == (9, 3)
    assert float(mean.value()) == 3


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, data=st.data())
def test_merged_parts_are_the_mean_of_the_whole(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    merged = mean_of(rows[:cut]).merge(mean_of(rows[cut:]))
    values, weights = np.array(rows).T
    whole = np.sum(values * weights) / np.sum(weights) if np.sum(weights) else 0
    np.testing.assert_allclose(float(merged.value()), whole, rtol=1e-6)


def test_the_mean_of_nothing_is_zero():
    assert float(Mean.of(jnp.zeros(0), jnp.zeros(0)).value()) == 0
    assert float(Mean.of(jnp.array([5.0]), jnp.array([0.0])).value()) == 0


def test_accuracy_counts_the_largest_logit_of_rows_with_weight():
    logits = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    labels, weight = jnp.array([1, 0, 0, 1]), jnp.array([1.0, 1.0, 1.0, 0.0])
    assert float(accuracy(logits, labels, weight).value()) == pytest.approx(2 / 3)


def test_a_meter_adds_up_by_name():
    meter = Meter()
    meter.add({"loss": Mean(np.float32(3), np.float32(2))})
    meter.add(
        {
            "loss": Mean(np.float32(3), np.float32(1)),
            "late": Mean(np.float32(1), np.float32(4)),
        }
    )
    assert meter.values() == {"loss": 2.0, "late": 0.25}


def training_metrics(seed):
    """One of every kind that training has."""
    a, b, c, d = np.random.default_rng(seed).random(4, np.float32) + 1
    return {
        "mean": Mean(a, b),
        "loss": Loss.of(Mean(a, b)).plus(0.5, Mean(c, d)),
        "perplexity": Perplexity(a, b),
        "tokens": Sum(a),
    }


def test_a_meter_that_goes_through_json_gives_the_same_numbers():
    meter = Meter()
    meter.add(training_metrics(0))
    again = Meter.from_plain(json.loads(json.dumps(meter.to_plain())))
    for each in (meter, again):
        each.add(training_metrics(1))
    assert again.values() == meter.values()


def test_every_term_of_a_loss_is_divided_by_its_own_count():
    one = Loss.of(Mean(np.float32(6), np.float32(3))).plus(
        0.5, Mean(np.float32(8), np.float32(1))
    )
    other = Loss.of(Mean(np.float32(2), np.float32(1))).plus(
        0.5, Mean(np.float32(4), np.float32(2))
    )
    assert float(one.value()) == 6 / 3 + 0.5 * 8
    merged = one.merge(other)
    assert float(merged.value()) == (6 + 2) / (3 + 1) + 0.5 * (8 + 4) / (1 + 2)
    shares = [float(part.over(merged.counts)) for part in (one, other)]
    assert sum(shares) == pytest.approx(float(merged.value()))


def test_perplexity_is_of_all_tokens_together():
    merged = Perplexity(np.float32(2), np.float32(1)).merge(
        Perplexity(np.float32(4), np.float32(5))
    )
    assert merged.value() == pytest.approx(np.exp((2 + 4) / (1 + 5)))
    assert np.isfinite(Perplexity(np.float32(1e6), np.float32(1)).value())


# Labels and guesses of up to four classes; weights of 0 and 1.
DECISIONS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()),
    min_size=2,
    max_size=20,
).filter(lambda rows: any(counts for *_, counts in rows))


@settings(deadline=None, max_examples=60)
@given(rows=DECISIONS, data=st.data())
def test_scores_are_scikit_learns_whatever_the_batches(rows, data):
    labels, guesses, counts = (np.array(column) for column in zip(*rows, strict=True))
    logits, weight = np.eye(4, dtype=np.float32)[guesses], counts.astype(np.float32)
    meter, cut = Meter(), data.draw(st.integers(0, len(rows)))
    for part in (slice(None, cut), slice(cut, None)):
        meter.add(confusion(logits[part], labels[part], weight[part]))
    labels, guesses = labels[counts], guesses[counts]
    with warnings.catch_warnings():  # of a single label there is no correlation
        warnings.simplefilter("ignore")
        expected = {
            "macro_f1": sklearn.metrics.f1_score(labels, guesses, average="macro"),
            "micro_f1": sklearn.metrics.f1_score(labels, guesses, average="micro"),
            "matthews": sklearn.metrics.matthews_corrcoef(labels, guesses),
        }
    assert meter.values() == pytest.approx(expected, abs=1e-6)


def test_spearman_ranks_all_batches_together_and_skips_padding():
    first = Spearman(np.array([1.0, 9.0]), np.array([10.0, 0.0]), np.array([1, 0]))
    second = Spearman(np.array([3.0, 2.0]), np.array([12.0, 11.0]), np.array([1, 1]))
    merged = first.merge(second)
    assert merged.value() == pytest.approx(1.0)
    # Ranks (1, 2, 3) and (2, 1, 3): 1 - 6 (1 + 1 + 0) / (3 (9 - 1)) = 0.5.
    assert scores.spearman(np.array([1, 2, 3]), np.array([5, 4, 6])) == 0.5
    assert scores.spearman(np.ones(3), np.array([5, 4, 6])) == 0
