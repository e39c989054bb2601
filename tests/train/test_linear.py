"""The exact linear probe against scikit-learn, and how its penalty is chosen."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from flax_adapt.evals import probe
from flax_adapt.train import linear


@pytest.fixture(scope="module")
def digits():
    """(features, labels) of 100 digits, ten of each class, and of the others."""
    from sklearn.datasets import load_digits

    data, rng = load_digits(), np.random.default_rng(0)
    features = np.tanh(data.data / 16 @ rng.normal(size=(64, 128)) * 0.3)
    order = rng.permutation(len(features))
    few = [order[data.target[order] == label][:10] for label in range(10)]
    fit = np.concatenate(few)
    rest = np.setdiff1d(order, fit)
    return tuple((features[rows], data.target[rows]) for rows in (fit, rest))


def accuracy(head, x, y):
    return np.mean(head.logits(x).argmax(axis=1) == y)


def test_a_probe_of_100_labels_is_that_of_scikit_learn(digits):
    (x, y), rest = digits
    ours = linear.solve(x, y, 10, 1e-3)
    theirs = probe.accuracy(x, y, *rest, l2=1e-3, max_iterations=5_000)
    assert accuracy(ours, *rest) == pytest.approx(theirs, abs=0.01)
    chosen = linear.fit(x, y, 10, ConfigDict(dict(l2=0.0, folds=5)))
    assert accuracy(chosen, *rest) > theirs - 0.01


@pytest.mark.parametrize("count", [40, 400])  # fewer rows than features, and more
def test_the_solution_has_no_slope_left(count):
    rng = np.random.default_rng(1)
    x, y, l2 = rng.normal(3, 2, size=(count, 60)), rng.integers(3, size=count), 0.01
    head = linear.solve(x, y, 3, l2)
    logits = head.logits(x)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(count), y]).mean()
    assert head.loss == pytest.approx(loss, rel=1e-9)
    p[np.arange(count), y] -= 1
    standard = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-6)
    slope = standard.T @ p / count + l2 * head.kernel
    assert np.abs(slope).max() < 1e-5
    assert np.abs(p.mean(axis=0)).max() < 1e-5


def test_the_penalty_is_chosen_on_held_out_labels_and_lies_inside_the_grid(digits):
    (x, y), _ = digits
    l2, tried = linear.choose_penalty(x, y, 10)
    assert min(tried) < l2 < max(tried)
    assert tried[l2] == min(tried.values())
    noise = np.random.default_rng(0).integers(2, size=60)
    beyond, tried = linear.choose_penalty(x[:60], noise, 2)  # nothing to be learnt
    assert max(linear.PENALTIES) < beyond or beyond < max(tried)


def test_one_label_of_a_class_leaves_none_to_choose_by():
    x = np.random.default_rng(0).normal(size=(3, 4))
    assert linear.choose_penalty(x, np.arange(3), 3) == (linear.PENALTY, {})


def test_every_label_is_held_out_once_in_its_share_of_every_class():
    labels = np.repeat([0, 1, 2], [10, 10, 1])
    parts = linear._parts(labels, 5, seed=0)
    for label in (0, 1):
        counts = np.bincount(parts[labels == label], minlength=5)
        np.testing.assert_array_equal(counts, 2)
