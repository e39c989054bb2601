"""Intervals and words of verdicts, by hand, scipy, scikit-learn, and simulated experiments."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from flax_adapt.evals import intervals, verdict
from flax_adapt.stage.predictions import Predictions


def arm(accuracies, num_examples=200, classes=3, seed=0):
    """{seed: predictions} of random guesses that are right with these probabilities."""
    rng = np.random.default_rng(seed)
    labels = (
        np.random.default_rng(9).integers(0, classes, num_examples).astype(np.int32)
    )
    found = {}
    for run, accuracy in enumerate(accuracies):
        is_right = rng.random(num_examples) < accuracy
        guesses = np.where(is_right, labels, (labels + 1) % classes).astype(np.int32)
        losses = rng.random(num_examples).astype(np.float32)
        all_names = np.array([f"{i:04}" for i in range(num_examples)])
        found[run] = Predictions(all_names, labels, guesses, losses)
    return found


def test_one_seed_gives_the_paired_t_interval_over_examples():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 50))
    found = intervals.blended((second - first)[None], 0.95)
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-12)
    np.testing.assert_allclose(found.mean, (second - first).mean())


def test_where_examples_have_no_noise_it_is_the_t_interval_over_seeds():
    seeds = np.array([0.1, 0.3, 0.8])
    table_SN = np.repeat(seeds[:, None], 40, axis=1)
    expected = stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
    for method in ("blended", "two_terms", "satterthwaite", "seeds_alone"):
        found = intervals.METHODS[method](table_SN, 0.95)
        np.testing.assert_allclose(found[1:], expected, rtol=1e-9, err_msg=method)


def test_components_are_those_of_a_two_way_analysis_of_variance():
    """By hand: mean squares 26, 24 and 6 of the rows (0, 2), (2, 4), (4, 12)."""
    table_SN = np.array([[0.0, 2.0], [2.0, 4.0], [4.0, 12.0]])
    found = intervals.components(table_SN)
    grand = 4.0
    seed_S, example_N = np.array([1.0, 3.0, 8.0]), np.array([2.0, 6.0])
    residual_SN = table_SN - seed_S[:, None] - example_N + grand
    squares = {
        "seed": 2 * ((seed_S - grand) ** 2).sum() / 2,
        "example": 3 * ((example_N - grand) ** 2).sum() / 1,
        "residual": (residual_SN**2).sum() / 2,
    }
    assert squares == {"seed": 26.0, "example": 24.0, "residual": 6.0}
    assert found == pytest.approx((grand, 26 / 6, (24 - 6) / 6, 2, 1))


def test_a_seed_that_was_not_tested_on_an_example_says_nothing_about_it():
    rng = np.random.default_rng(1)
    table_SN = rng.standard_normal((4, 500)) + rng.standard_normal(500)
    whole = intervals.blended(table_SN, 0.95)
    holed_SN = table_SN.copy()
    holed_SN[rng.random(table_SN.shape) < 0.03] = np.nan
    holed = intervals.blended(holed_SN, 0.95)
    np.testing.assert_allclose(holed.mean, np.nanmean(holed_SN, axis=1).mean())
    assert holed.high - holed.low == pytest.approx(whole.high - whole.low, rel=0.1)


def test_the_bootstrap_of_equal_numbers_is_that_number():
    found = intervals.bootstrap(np.full((3, 40), 0.25), 0.95)
    np.testing.assert_allclose(found, [0.25] * 3, rtol=1e-12)


@pytest.mark.parametrize(
    ("ones", "level", "low", "high"),
    [
        # 0 and 1: the mean of two draws is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
        *(([0, 1], 0.4, 0.5, 0.5), ([0, 1], 0.6, 0.0, 1.0)),
        # Ten times the mean is binomial, of 10 tosses at 0.3: at most 0 with probability
        # 0.028, 1: 0.149, 4: 0.850, 5: 0.953.
        ([1] * 3 + [0] * 7, 0.8, 0.1, 0.5),
    ],
)
def test_the_bootstrap_over_seeds_alone_has_the_percentiles_of_a_binomial(
    ones, level, low, high
):
    """Each tail is 4 % or more from a step of the distribution, ten times its error."""
    table_SN = np.repeat(np.array(ones, float)[:, None], 30, axis=1)
    found = intervals.bootstrap(table_SN, level, resamples=20_000)
    np.testing.assert_allclose(found, [np.mean(ones), low, high], atol=1e-9)


@pytest.mark.parametrize(
    ("seed_noise", "level"), [(0.0, 0.95), (0.3, 0.95), (0.3, 0.8)]
)
def test_the_bootstrap_over_seeds_and_examples_is_scipys(seed_noise, level):
    """Of a_s + b_i the mean is a sum of two independent means.

    With R resamples the error of an end is sqrt(p (1 - p) / R) / f = 0.019 standard
    deviations of the mean at 95 %: the tolerance of 0.1 is four times that of both.
    """
    rng = np.random.default_rng(0)
    seed_S, example_N = seed_noise * rng.standard_normal(12), rng.standard_normal(300)
    found = intervals.bootstrap(
        seed_S[:, None] + example_N, level, resamples=20_000, seed=1
    )
    expected = stats.bootstrap(
        (seed_S, example_N),
        lambda a, b, axis: a.mean(axis=axis) + b.mean(axis=axis),
        confidence_level=level,
        n_resamples=20_000,
        method="percentile",
        random_state=2,
    )
    assert found.mean == pytest.approx(seed_S.mean() + example_N.mean())
    ends = expected.confidence_interval
    np.testing.assert_allclose(found[1:], ends, atol=0.1 * expected.standard_error)


@pytest.mark.parametrize(("one", "two"), [(3, 9), (0, 0), (0, 6), (20, 4)])
def test_mcnemar_is_scipys_binomial_test(one, two):
    expected = stats.binomtest(one, one + two).pvalue if one + two else 1.0
    assert intervals.mcnemar(one, two) == pytest.approx(expected)
    assert intervals.mcnemar(two, one) == pytest.approx(expected)
    if (one, two) == (3, 9):
        assert intervals.mcnemar(one, two) == pytest.approx(598 / 4096)


@pytest.mark.parametrize("count", range(2, 12))
def test_examples_that_all_turned_are_evidence_where_mcnemars_test_says_so(count):
    """The other end of the interval is Clopper's and Pearson's of `count` in `count`."""
    low, high = stats.binomtest(count, count).proportion_ci(0.95, method="exact")
    for seeds in (1, 3):
        better = intervals.blended(np.ones((seeds, count)), 0.95)
        assert better == pytest.approx((1.0, 2 * low - 1, high))
        assert (better.low > 0) == (intervals.mcnemar(0, count) < 0.05)
        worse = intervals.blended(-np.ones((seeds, count)), 0.95)
        assert worse == pytest.approx((-1.0, -high, 1 - 2 * low))
        assert intervals.blended(np.zeros((seeds, count)), 0.95) == (0.0, 0.0, 0.0)


def test_a_table_that_varies_without_a_part_by_seeds_or_examples_has_a_wide_interval():
    """Two seeds and two examples that cross: t of one degree of freedom, deviation 1/2."""
    found = intervals.blended(np.array([[1.0, 0.0], [0.0, 1.0]]), 0.95)
    half = stats.t.isf(0.025, 1) / 2
    assert found == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_rounding_is_no_variance():
    """The mean of three numbers of 0.1 is not 0.1."""
    assert intervals.blended(np.full((3, 4), 0.1), 0.95).low < 0 < 0.1


def test_numbers_of_the_examples_have_the_metric_as_their_mean():
    found = arm([0.6], classes=4)[0]
    for name, expected in (
        ("accuracy", metrics.accuracy_score(found.labels, found.guesses)),
        ("micro_f1", metrics.f1_score(found.labels, found.guesses, average="micro")),
        ("macro_f1", metrics.f1_score(found.labels, found.guesses, average="macro")),
        ("loss", -found.losses.mean()),
    ):
        assert verdict.MEASURES[name](found).mean() == pytest.approx(expected), name


def test_the_share_of_an_example_in_macro_f1_is_what_its_weight_changes():
    found, step = arm([0.6], num_examples=30)[0], 1e-6
    shares = verdict.MEASURES["macro_f1"](found)
    whole = metrics.f1_score(found.labels, found.guesses, average="macro")
    for i in (0, 7, 29):
        weights = np.ones(30)
        weights[i] += step
        more = metrics.f1_score(
            found.labels, found.guesses, average="macro", sample_weight=weights
        )
        slope = 30 * (more - whole) / step
        assert shares[i] - whole == pytest.approx(slope, abs=1e-4)


def test_clear_differences_are_called_by_their_sign_and_equal_arms_are_unclear():
    low, high = arm([0.5] * 3), arm([0.8] * 3, seed=1)
    assert verdict.compare(low, high, "accuracy")["word"] == verdict.HELPED
    assert verdict.compare(high, low, "accuracy")["word"] == verdict.HURT
    same = verdict.compare(low, low, "accuracy")
    assert (same["word"], same["difference"]) == (verdict.UNCLEAR, 0.0)
    assert [one["p"] for one in same["mcnemar"]] == [1.0] * 3


def test_metrics_that_disagree_are_said_to():
    low, high = arm([0.5] * 3), arm([0.8] * 3, seed=1)
    worse = {run: one._replace(losses=one.losses + 1) for run, one in high.items()}
    assert not verdict.compare(low, high, "accuracy")["disagree"]
    found = verdict.compare(low, worse, "accuracy")
    assert found["disagree"]
    text = verdict.sentence("b", "a", {**found, "covers": "all"})
    assert text.startswith("b against a: helped; accuracy +0.")
    assert "the metrics disagree: macro_f1 helped, loss hurt" in text


def test_examples_are_paired_by_name_and_seeds_by_number():
    first, second = arm([0.5, 0.5]), arm([0.8, 0.8], seed=1)
    order = np.random.default_rng(0).permutation(200)
    shuffled = {
        run: Predictions(*(column[order] for column in one))
        for run, one in second.items()
    }
    expected = verdict.compare(first, second, "accuracy")
    assert (
        verdict.compare(first, {1: shuffled[1], 0: shuffled[0]}, "accuracy") == expected
    )
    part = {0: Predictions(*(column[:150] for column in second[0]))}
    assert verdict.table(first, part, "accuracy").shape == (1, 150)
    one = {run: Predictions(*(c[run : run + 1] for c in x)) for run, x in part.items()}
    assert verdict.can_compare(first, part)
    assert not verdict.can_compare(first, one)
    assert not verdict.can_compare({0: first[0]}, {1: second[1]})
    with pytest.raises(ValueError, match="no common seed"):
        verdict.table({0: first[0]}, {1: second[1]}, "accuracy")


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    coverage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coverage)
    return coverage


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("noise", ["with", "without"])
def test_the_interval_covers_the_truth_as_often_as_it_says(simulation, seeds, noise):
    """400 experiments of 100 examples: 95 % within three standard deviations."""
    cell = simulation.Cell(seeds, 100, noise)
    found = simulation.coverage(cell, {"blended": intervals.blended}, 400)
    assert 0.915 <= found["blended"][0] <= 0.985
