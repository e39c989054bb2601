"""Did it help? The difference of two arms on the same test examples, with its noise.

An arm is a stage with its seeds. Both arms have predictions of every test example for every
seed; seeds are pairs, since they have the same labels. The interval of the difference
covers two sources of noise: which examples were in the test set, and which labels were
drawn, with all that is random in training (`intervals`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_adapt.evals import intervals

LEVEL = 0.95
HELPED, HURT, UNCLEAR = "helped", "hurt", "no evidence either way"

# What is said where `can_compare` is false.
TOO_FEW = "for it takes a seed and two test examples that both arms have"

# Arm: seed -> `stage.predictions.Predictions`.
Arm = Mapping[int, Any]


class Difference(NamedTuple):
    """How much better the second arm is by one metric; below 0: worse.

    The loss counts downwards. word: HELPED, HURT or UNCLEAR, by whether [low, high] has 0
    in it.
    """

    metric: str
    difference: float
    low: float
    high: float
    word: str


def _correct(found: Any) -> np.ndarray:
    return (found.labels == found.guesses).astype(np.float64)


def _losses(found: Any) -> np.ndarray:
    return -np.asarray(found.losses, np.float64)


def _shares_of_f1(found: Any) -> np.ndarray:
    """Returns float64 [N], whose mean is macro-F1: the first-order effect of each example.

    F1 of class c is 2 tp / b, with b the examples and predictions of c. The derivative by
    the weight of example i is (2 [tp] - F1 ([label is c] + [guess is c])) / b.
    """
    labels, guesses = np.asarray(found.labels), np.asarray(found.guesses)
    classes = np.union1d(labels, guesses)
    true_NC, taken_NC = (x[:, None] == classes for x in (labels, guesses))
    both_C = true_NC.sum(axis=0) + taken_NC.sum(axis=0)
    f1_C = 2 * (true_NC & taken_NC).sum(axis=0) / both_C
    effect_NC = (
        2.0 * (true_NC & taken_NC) - f1_C * (true_NC * 1.0 + taken_NC)
    ) / both_C
    return f1_C.mean() + len(labels) * effect_NC.mean(axis=1)


# Metric -> numbers of the examples, whose mean is the metric; higher is better.
MEASURES: dict[str, Callable[[Any], np.ndarray]] = {
    "accuracy": _correct,
    "micro_f1": _correct,
    "macro_f1": _shares_of_f1,
    "loss": _losses,
}
# The further metrics that a verdict on one of MEASURES looks at, where labels are classes.
OTHERS = ("accuracy", "macro_f1", "loss")


def common_seeds(first: Arm, second: Arm) -> list[int]:
    """Returns the seeds that both arms have."""
    return [seed for seed in first if seed in second]


def can_compare(first: Arm, second: Arm) -> bool:
    """Returns whether there is a verdict on the arms.

    It takes a common seed, a common test example for each of these, and two in all.
    """
    shared = [
        np.intersect1d(first[seed].names, second[seed].names)
        for seed in common_seeds(first, second)
    ]
    counts = [len(names) for names in shared]
    return min(counts, default=0) > 0 and len(np.unique(np.concatenate(shared))) > 1


def table(first: Arm, second: Arm, metric: str) -> np.ndarray:
    """Returns float64 [S, N]: what the second arm has more than the first, by `metric`.

    N are the examples that any seed was tested on, in the order of their names; NaN: not by
    this seed. Raises ValueError for arms without a common seed, and for a metric that is
    none of MEASURES.
    """
    measure, seeds = MEASURES[metric], common_seeds(first, second)
    if not seeds:
        raise ValueError("the arms have no common seed")
    names = np.unique(np.concatenate([first[seed].names for seed in seeds]))
    rows = np.full((len(seeds), len(names)), np.nan)
    for row, seed in zip(rows, seeds, strict=True):
        before, after = first[seed], second[seed]
        shared, i, j = np.intersect1d(before.names, after.names, return_indices=True)
        places = np.searchsorted(names, shared)
        row[places] = measure(after)[j] - measure(before)[i]
    return rows[:, ~np.all(np.isnan(rows), axis=0)]


def difference(first: Arm, second: Arm, metric: str) -> Difference:
    """Returns how much better the second arm is by `metric`, and the word for it."""
    found = intervals.blended(table(first, second, metric), LEVEL)
    mean, low, high = (float(value) for value in found)
    return Difference(metric, mean, low, high, name_interval(found))


def name_interval(found: intervals.Interval) -> str:
    """Returns HELPED, HURT or UNCLEAR for the interval of a difference."""
    if found.low > 0 or found.high < 0:
        return HELPED if found.low > 0 else HURT
    return UNCLEAR


def mcnemar(first: Arm, second: Arm) -> list[dict[str, Any]]:
    """Returns McNemar's test of the accuracies for each seed, see `intervals.mcnemar`."""
    found = []
    for seed in common_seeds(first, second):
        differences = table({seed: first[seed]}, {seed: second[seed]}, "accuracy")
        counts = [int(np.sum(differences == sign)) for sign in (-1, 1)]
        named = dict(zip(("only_first", "only_second"), counts, strict=True))
        found.append({"seed": seed, **named, "p": intervals.mcnemar(*counts)})
    return found


def compare(first: Arm, second: Arm, metric: str) -> dict[str, Any]:
    """Returns the verdict on the second arm as JSON values.

    The fields of `Difference`, seeds, examples (the number of test examples), `also` with
    the other metrics, `disagree` (one says it helped and another it hurt), and for classes
    `mcnemar`. Raises ValueError for arms that do not fulfil `can_compare`.
    """
    main = difference(first, second, metric)
    seeds = common_seeds(first, second)
    some = first[seeds[0]]
    of_classes = np.issubdtype(np.asarray(some.labels).dtype, np.integer)
    # Votes of neighbours and class means have no loss.
    has_loss = bool(np.all(np.isfinite(some.losses)))
    others = [
        name for name in OTHERS if name != metric and (name != "loss" or has_loss)
    ]
    names = others if of_classes else []
    also = [difference(first, second, name) for name in names]
    words = {one.word for one in (main, *also)}
    found: dict[str, Any] = {
        **main._asdict(),
        "seeds": seeds,
        "examples": table(first, second, metric).shape[1],
        "also": [one._asdict() for one in also],
        "disagree": {HELPED, HURT} <= words,
    }
    return {**found, "mcnemar": mcnemar(first, second)} if of_classes else found


def short(verdict: Mapping[str, Any]) -> str:
    """Returns a verdict as a cell of a table: the word and the interval."""
    ends = " to ".join(f"{verdict[end]:+.3f}" for end in ("low", "high"))
    return f"{verdict['word']} ({ends})"


def sentence(name: str, against: str, verdict: Mapping[str, Any]) -> str:
    """Returns a verdict on the arm `name`, compared with the arm `against`, as one line."""
    ends = " to ".join(f"{verdict[end]:+.4f}" for end in ("low", "high"))
    count = len(verdict["seeds"])
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    text = (
        f"{name} against {against}: {verdict['word']}; {verdict['metric']} "
        f"{verdict['difference']:+.4f}, 95 % interval {ends} ({seeds}, "
        f"{verdict['examples']} test examples; {verdict['covers']})"
    )
    if "mcnemar" in verdict:
        values = ", ".join(f"{one['p']:.2g}" for one in verdict["mcnemar"])
        text += f"; McNemar p by seed {values}"
    if verdict["disagree"]:
        words = [f"{one['metric']} {one['word']}" for one in verdict["also"]]
        text += f"; the metrics disagree: {', '.join(words)}"
    return text
