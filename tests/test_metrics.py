"""Metrics are sums and counts: no split of the data changes the mean."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_adapt.metrics import Mean, Meter, accuracy

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


def test_a_meter_that_goes_through_json_gives_the_same_numbers():
    meter = Meter()
    meter.add({"loss": Mean(np.float32(0.1) * 3, np.float32(7))})
    again = Meter.from_plain(json.loads(json.dumps(meter.to_plain())))
    for each in (meter, again):
        each.add({"loss": Mean(np.float32(1.7), np.float32(2))})
    assert again.values() == meter.values()
