"""Test examples with the largest changes of their loss, and the worst that remain."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_adapt.report import arms, pictures
from flax_adapt.report.arms import Pair
from flax_adapt.report.outcomes import format_number
from flax_adapt.report.workdir import Run
from flax_adapt.stage.predictions import Predictions

# Of each kind: what a page shows without scrolling much.
SHOWN = 6


def examples(run: Run) -> dict[str, Any] | None:
    """Returns the most improved, the most hurt and the worst examples, with their pictures."""
    pair = arms.choose_pair(run)
    if pair is None:
        return None
    groups = group_names(pair)
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    looks = pictures.show_examples(run, pair.after, names)
    shown = [
        {"title": title, "rows": [_describe(pair, name, looks) for name in found]}
        for title, found in groups.items()
        if found
    ]
    return {"groups": shown, "before": pair.before, "after": pair.after}


def group_names(pair: Pair) -> dict[str, list[str]]:
    """Returns {kind: names of test examples}; an example is not listed twice."""
    after = mean_losses(pair.second)
    worst = sorted(after, key=lambda name: (-after[name], name))
    if not pair.first:
        return {"With the highest loss": worst[:SHOWN]}
    before = mean_losses(pair.first)
    change = {name: after[name] - before[name] for name in after if name in before}
    order = sorted(change, key=lambda name: (change[name], name))
    better = [name for name in order if change[name] < 0][:SHOWN]
    hurt = [name for name in reversed(order) if change[name] > 0][:SHOWN]
    rest = [name for name in worst if name not in {*better, *hurt}]
    return {
        "Most improved": better,
        "Most hurt": hurt,
        "Highest loss of the rest": rest[:SHOWN],
    }


def mean_losses(found: Mapping[int, Predictions]) -> dict[str, float]:
    """Returns the mean loss over seeds of each example by its name."""
    names = np.concatenate([one.names for one in found.values()])
    losses = np.concatenate([one.losses for one in found.values()])
    unique, places = np.unique(names, return_inverse=True)
    sums = np.bincount(places, weights=losses) / np.bincount(places)
    return dict(zip(unique.tolist(), sums.tolist(), strict=True))


def _describe(pair: Pair, name: str, looks: Mapping[str, Any]) -> dict[str, Any]:
    label, guess_after, loss_after = _say(pair.second, name, pair.class_names)
    _, guess_before, loss_before = _say(pair.first, name, pair.class_names)
    return {
        **dict(name=name, label=label, look=looks.get(name)),
        **dict(before=guess_before, after=guess_after),
        "right_before": guess_before == label,
        "right_after": guess_after == label,
        "losses": " → ".join(filter(None, (loss_before, loss_after))),
    }


def _say(
    found: Mapping[int, Predictions], name: str, classes: tuple[str, ...]
) -> tuple[str, str, str]:
    """Returns (label, the class that most seeds guess, mean loss) of an example."""
    label, guesses, losses = "", list[str](), list[float]()
    for one in found.values():
        for row in np.flatnonzero(one.names == name):
            label = classes[int(one.labels[row])]
            guesses.append(classes[int(one.guesses[row])])
            losses.append(float(one.losses[row]))
    if not guesses:
        return "", "", ""
    most = Counter(guesses).most_common(1)[0][0]
    return label, most, format_number(float(np.mean(losses)))
