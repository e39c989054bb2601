"""The theory of S1 in a linear model: laws of ridge self-distillation and fine-tuning."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

PATH = Path(__file__).parents[2] / "benchmarks/self_distill_theory.py"
ROUNDS = 5


@pytest.fixture(scope="module")
def theory():
    spec = importlib.util.spec_from_file_location("self_distill_theory", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


problems = given(
    seed=some.integers(0, 2**32 - 1),
    examples=some.integers(1, 12),
    width=some.integers(1, 12),
    ridge=some.floats(0.05, 20),
)
often = settings(max_examples=60, deadline=None)


def problem(seed, examples, width):
    """(features [n, d], labels [n], weights [d])"""
    rng = np.random.default_rng(seed)
    features, weights = (
        rng.standard_normal((examples, width)),
        rng.standard_normal(width),
    )
    return features, rng.standard_normal(examples), weights


def assert_falls_most_at_first(distance):
    """Strictly, by less and less."""
    falls = -np.diff(distance)
    scale = 1e-10 * distance[0]  # rounding, of what is as good as zero
    assert np.all(falls > -scale)
    assert np.all(falls[distance[:-1] > 1e-6 * distance[0]] > 0)
    assert np.all(falls[1:] <= falls[:-1] + scale)
    assert falls[0] == falls.max() > 0


@often
@problems
def test_the_distance_to_the_start_falls_strictly_and_most_at_the_first_round(
    theory, seed, examples, width, ridge
):
    features, _, weights = problem(seed, examples, width)
    rounds = theory.distil(features, weights, ridge, ROUNDS)
    assert_falls_most_at_first(np.linalg.norm(rounds, axis=1))


@often
@problems
def test_a_round_shrinks_every_direction_by_its_singular_value(
    theory, seed, examples, width, ridge
):
    features, _, weights = problem(seed, examples, width)
    rounds = theory.distil(features, weights, ridge, ROUNDS)
    _, s, directions = np.linalg.svd(features)
    shrink = np.zeros(width)
    shrink[: len(s)] = s**2 / (s**2 + ridge)
    for t, found in enumerate(rounds):
        expected = shrink**t * (directions @ weights)
        np.testing.assert_allclose(directions @ found, expected, atol=1e-9)
    unseen = directions[len(s) :]  # what no example looks at
    if len(unseen):
        assert np.linalg.norm(unseen @ rounds[0]) > 0
        assert np.linalg.norm(unseen @ rounds[1]) < 1e-9


@often
@problems
def test_after_fine_tuning_the_start_is_nearer_with_every_round(
    theory, seed, examples, width, ridge
):
    """What fine-tuning makes of w_t, less what it makes of the start itself, falls so;
    with that the bound on the distance to the start, which adds the same to all.
    """
    features, labels, weights = problem(seed, examples, width)
    rate = theory.largest_rate(features)
    rounds = theory.distil(features, weights, ridge, ROUNDS)
    of_start = theory.fine_tune(features, labels, np.zeros(width), rate, 7)
    tuned = [theory.fine_tune(features, labels, w, rate, 7) for w in rounds]
    apart = np.linalg.norm(np.stack(tuned) - of_start, axis=1)
    if apart[0] > 1e-6:
        assert_falls_most_at_first(apart)
    bound = apart + np.linalg.norm(of_start)
    assert np.all(np.linalg.norm(tuned, axis=1) <= bound + 1e-9)


def test_fine_tuned_to_the_end_only_the_first_round_matters(theory):
    """The data then settles all that it sees, and what it does not see is gone."""
    features, labels, weights = problem(3, 4, 9)
    rounds = theory.distil(features, weights, 2.0, ROUNDS)
    rate = theory.largest_rate(features)
    ends = [theory.fine_tune(features, labels, w, rate, 20_000) for w in rounds]
    distance = np.linalg.norm(ends, axis=1)
    settled = np.linalg.norm(np.linalg.pinv(features) @ labels)
    np.testing.assert_allclose(distance[1:], settled, rtol=1e-6)
    _, s, directions = np.linalg.svd(features)
    unseen = np.linalg.norm(directions[len(s) :] @ weights)
    np.testing.assert_allclose(distance[0], np.hypot(settled, unseen), rtol=1e-6)


def test_the_benchmark_measures_what_the_plot_shows(theory):
    found = theory.distances(0, 10.0)
    assert {len(values) for values in found.values()} == {theory.ROUNDS + 1}
    for name in ("distilled", "apart"):
        assert_falls_most_at_first(found[name])
    assert found["fine_tuned"][0] > found["fine_tuned"][1]
