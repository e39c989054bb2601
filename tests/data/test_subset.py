"""Subsets: exact shares, seeded, chosen and rest."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data import source, subset

LABELS = np.array([0] * 10 + [1] * 5 + [2] * 5, np.int32)[[*range(1, 20, 2), 0, 4, 8,
    2, 6, 10, 14, 18, 12, 16]]  # fmt: skip


def labelled(labels: np.ndarray) -> source.Source:
    return source.Source(
        where="here",
        names=[str(i) for i in range(len(labels))],
        class_names=("x", "y", "z"),
        read=lambda i: (bytes([i]), int(labels[i])),
        read_labels=lambda: labels,
        broken={},
    )


def pick(source_, per_class=0, fraction=1.0, seed=0, part="chosen") -> source.Source:
    names = ("per_class", "fraction", "seed", "part")
    values = (per_class, fraction, seed, part)
    return subset.select(source_, ConfigDict(dict(zip(names, values, strict=True))))


@pytest.mark.parametrize(
    ("per_class", "fraction", "counts"),
    [(3, 1.0, [3, 3, 3]), (0, 0.4, [4, 2, 2]), (2, 0.4, [2, 2, 2]), (0, 0.01, [1] * 3)],
)
def test_every_class_gets_its_exact_share(per_class, fraction, counts):
    chosen = pick(labelled(LABELS), per_class, fraction)
    np.testing.assert_array_equal(np.bincount(chosen.labels), counts)


@pytest.mark.parametrize(("per_class", "fraction"), [(3, 1.0), (0, 0.3), (1, 0.5)])
def test_chosen_and_rest_are_everything_once(per_class, fraction):
    whole = labelled(LABELS)
    chosen = pick(whole, per_class, fraction)
    rest = pick(whole, per_class, fraction, part="rest")
    assert sorted([*chosen.names, *rest.names]) == sorted(whole.names)
    for part in (chosen, rest):
        assert list(part.names) == sorted(part.names, key=int)
        for i, name in enumerate(part.names):
            assert part.read(i) == (bytes([int(name)]), LABELS[int(name)])
            assert part.labels[i] == LABELS[int(name)]


@pytest.mark.parametrize(
    ("per_class", "fraction", "held"),
    [
        (0, 1.0, [2, 1, 1]),
        (5, 1.0, [1, 1, 1]),
        (2, 1.0, [1, 1, 1]),
        (0, 0.4, [1, 1, 1]),
        (0, 0.2, [1, 0, 0]),
    ],
)
def test_a_fifth_of_each_class_of_what_is_chosen_is_held_out(per_class, fraction, held):
    """One at least, but never all of a class."""
    parts = [
        pick(labelled(LABELS), per_class, fraction, part=part)
        for part in ("fit", "held_out", "chosen")
    ]
    fit, held_out, chosen = (set(part.names) for part in parts)
    assert fit | held_out == chosen
    assert not fit & held_out
    np.testing.assert_array_equal(np.bincount(parts[1].labels, minlength=3), held)


def test_of_one_example_a_class_none_is_held_out():
    with pytest.raises(
        errors.UserError, match="to hold examples out takes two of a class"
    ):
        pick(labelled(LABELS), 1, part="held_out")


def test_seeds_choose_differently_and_more_keeps_the_fewer():
    whole = labelled(LABELS)
    assert list(pick(whole, 2).names) == list(pick(whole, 2).names)
    assert len({tuple(pick(whole, 2, seed=seed).names) for seed in range(5)}) == 5
    assert set(pick(whole, 2).names) < set(pick(whole, 4).names)
    assert set(pick(whole, fraction=0.3).names) < set(pick(whole, fraction=0.6).names)


def test_unlabelled_data_has_fractions_but_no_classes():
    whole = labelled(np.full(20, -1, np.int32))
    assert len(pick(whole, fraction=0.25)) == 5
    with pytest.raises(errors.UserError, match="per_class=2: here has no labels"):
        pick(whole, 2)


def test_labels_that_are_numbers_have_fractions_but_no_classes():
    whole = labelled(np.linspace(-2, 2, 20).astype(np.float32))
    quarter, half = pick(whole, fraction=0.25), pick(whole, fraction=0.5)
    assert (len(quarter), len(half)) == (5, 10)
    assert set(quarter.names) < set(half.names)
    with pytest.raises(errors.UserError, match="labels of here are numbers"):
        pick(whole, 2)


def test_everything_is_the_source_itself_and_leaves_no_rest():
    whole = labelled(LABELS)
    assert pick(whole) is whole
    with pytest.raises(errors.UserError, match="leaves no example of here"):
        pick(whole, part="rest")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"per_class": 6}, "per_class=6: class 'y' of here has only 5 examples"),
        ({"per_class": 3, "fraction": 0.4}, "'y' of here has only 2 examples"),
        ({"per_class": -1}, "per_class=-1 must be 0"),
        ({"fraction": 0.0}, "fraction=0.0 in"),
        ({"fraction": 1.1}, "fraction=1.1 in"),
        (
            {"part": "half"},
            r"data\.subset\.part='half'.*'chosen', 'first', 'fit', .*'without_watched'\]",
        ),
        ({"fraction": 0.5, "seed": -1}, "seed=-1"),
    ],
)
def test_subset_errors_name_the_class_and_the_setting(wrong, told):
    with pytest.raises(errors.UserError, match=told):
        pick(labelled(LABELS), **wrong)


def test_the_fraction_of_a_labelled_set_reads_labels_only_when_needed():
    def explode():
        raise AssertionError("labels were read")

    whole = source.Source("here", ["a", "b"], ("x",), lambda i: (b"", 0), explode, {})
    assert len(pick(whole)) == 2
