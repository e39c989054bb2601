"""The exact linear probe against scikit-learn, and how its penalty is chosen."""

import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from flax_adapt.train import linear, logistic


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


def theirs(x, y, l2):
    """scikit-learn's: C * (sum of cross-entropy) + |weights|^2 / 2, standardised before."""
    mean, scale = x.mean(axis=0), np.sqrt(x.var(axis=0) + 1e-6)
    fitted = LogisticRegression(C=1 / (l2 * len(x)), max_iter=10_000, tol=1e-8)
    fitted.fit((x - mean) / scale, y)
    return lambda rows: fitted.predict_proba((rows - mean) / scale)


@pytest.mark.parametrize("l2", [1e-4, 1e-3, 1.0])
def test_at_the_same_penalty_it_says_what_scikit_learn_says(digits, l2):
    (x, y), (rest, _) = digits
    logits, expected = linear.solve(x, y, 10, l2).logits(rest), theirs(x, y, l2)(rest)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p, expected, atol=3e-4)
    np.testing.assert_array_equal(p.argmax(axis=1), expected.argmax(axis=1))


def test_scikit_learn_chooses_the_same_penalty(digits):
    (x, y), _ = digits
    l2, tried = linear.choose_penalty(x, y, 10, folds=2)
    parts, losses = linear._parts(y, 2, seed=0), {}
    for one in tried:
        sums = []
        for part in range(2):
            out = parts == part
            p = theirs(x[~out], y[~out], one)(x[out])
            sums.append(-np.log(p[np.arange(len(p)), y[out]]).sum())
        losses[one] = np.sum(sums) / len(y)
        assert tried[one] == pytest.approx(losses[one], rel=2e-3)
    assert min(losses, key=losses.get) == l2


def test_the_search_is_short_whatever_the_scales_of_the_features(monkeypatch):
    """Features of pretrained models: a few directions have nearly all of the variance."""
    rng, calls = np.random.default_rng(0), []
    mixed = np.linalg.qr(rng.normal(size=(64, 64)))[0] * np.geomspace(100, 0.01, 64)
    x, y = rng.normal(size=(300, 64)) @ mixed.T, rng.integers(5, size=300)
    measure = logistic.cross_entropy

    def count(*args):
        calls.append(1)
        return measure(*args)

    monkeypatch.setattr(logistic, "cross_entropy", count)
    linear.solve(x, y, 5, 1e-4)
    assert len(calls) < 50  # 15; in units of the features themselves 934


def test_small_products_take_one_thread_and_others_keep_theirs(digits, monkeypatch):
    seen, measure = [], logistic.cross_entropy

    def count_threads():
        found = threadpool_info()
        return {one["num_threads"] for one in found if one["user_api"] == "blas"}

    def look(*args):
        seen.append(count_threads())
        return measure(*args)

    monkeypatch.setattr(logistic, "cross_entropy", look)
    with threadpool_limits(2, user_api="blas"):
        before = count_threads()
        linear.solve(*digits[0], 10, 1.0)
        linear.choose_penalty(*digits[0], 10, folds=2)
        assert count_threads() == before
        small = [*seen]
        monkeypatch.setattr(logistic, "_LARGE", 0)
        linear.solve(*digits[0], 10, 1.0)
    assert before == {2}
    assert all(one == {1} for one in small)
    assert seen[-1] == before


def test_the_penalty_of_100_labels_is_as_good_as_any_other(digits):
    (x, y), rest = digits
    chosen = linear.fit(x, y, 10, ConfigDict(dict(l2=0.0, folds=5)))
    others = [linear.solve(x, y, 10, l2) for l2 in (1e-4, 1e-3, 1e-1, 1.0)]
    assert accuracy(chosen, *rest) > max(accuracy(o, *rest) for o in others) - 0.01
    again = linear.fit(x, y, 10, ConfigDict(dict(l2=0.0, folds=5)))
    np.testing.assert_array_equal(chosen.kernel, again.kernel)


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
    assert beyond > linear.FIRST


@pytest.mark.parametrize("limits", [(1e-9, 1e5), (1e-2, 1e2)])
def test_a_best_penalty_at_the_edge_is_said(digits, caplog, monkeypatch, limits):
    caplog.set_level(logging.INFO, "flax_adapt")
    monkeypatch.setattr(linear, "LIMITS", limits)
    l2 = linear.choose_logged(*digits[0], 10, folds=5, seed=0)
    assert f"l2 {l2:g}, by the loss on held-out labels" in caplog.text
    edge = "0.01, is at the edge of those that are tried, 0.01 to 100"
    assert (edge in caplog.text) == (l2 == limits[0] == 1e-2)
    assert (l2 in limits) == ("WARNING" in caplog.text)


def test_of_many_rows_one_part_is_held_out(digits, monkeypatch):
    (x, y), _ = digits
    whole = linear.choose_penalty(x, y, 10)[1]
    monkeypatch.setattr(linear, "_MANY", 99)
    part = linear.choose_penalty(x, y, 10)[1]
    fits = linear._parts(y, 5, seed=0) != 0
    head = linear.solve(x[fits], y[fits], 10, 0.1)
    logits = head.logits(x[~fits])
    own = logits[np.arange(len(logits)), y[~fits]]
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - own)
    assert part[0.1] == pytest.approx(loss, rel=1e-3)
    assert part[0.1] != pytest.approx(whole[0.1], rel=1e-3)


def test_one_label_of_a_class_leaves_none_to_choose_by():
    x = np.random.default_rng(0).normal(size=(3, 4))
    assert linear.choose_penalty(x, np.arange(3), 3) == (linear.PENALTY, {})


def test_every_label_is_held_out_once_in_its_share_of_every_class():
    labels = np.repeat([0, 1, 2], [10, 10, 1])
    parts = linear._parts(labels, 5, seed=0)
    for label in (0, 1):
        counts = np.bincount(parts[labels == label], minlength=5)
        np.testing.assert_array_equal(counts, 2)
