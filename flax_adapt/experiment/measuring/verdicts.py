"""Verdicts on frozen features: each measured model compared with the initial one.

`eval` writes them as eval_verdicts.json, and into the rows of results.json as `features`.
Metrics that disagree are said to: kNN, linear probe and few shots of a stage, and the
verdict on what was fine-tuned from it.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import leaks
from flax_adapt.experiment.measuring.answers import Answers

FILE = "eval_verdicts.json"
TARGET, SOURCE = "target", "source"
log = logging.getLogger(__name__)
_TITLES = {"knn": "kNN", "probe": "linear probe"}
# (whether runs are pairs, whether labels are drawn anew for each pair, whether a part of the
# same labels is) -> what an interval covers.
_COVERS = {
    (False, False, False): "covers test examples alone: the labels were the same",
    (False, True, False): "covers test examples and draws of labels",
    (False, False, True): "covers test examples and draws from the same labels",
    (True, False, False): "covers test examples and training; the labels were the same",
    (True, True, False): "covers test examples, draws of labels and training",
    (
        True,
        False,
        True,
    ): "covers test examples, training and draws from the same labels",
}
_FEW = "shot_"  # metrics of a few of the labels

T = TypeVar("T")
# The name of a stage (or what else is measured) and the seed of its run.
RunName = tuple[str, int]


def compare(
    runs: Sequence[RunName],
    answers: Sequence[Answers],
    data: str,
    domain: str,
    *,
    is_drawn: bool,
) -> list[dict[str, Any]]:
    """Returns an entry for each name but the first, which it is compared with.

    The runs of a stage are one arm: each is a pair with the initial model (or with the run
    of the same seed) by the labels of one draw, that of its seed where there is one. A
    single run has a pair for each draw.

    runs: of the models. data: the source of the test examples. domain: TARGET or SOURCE,
    where a loss is forgetting. is_drawn: each draw has labels of its own. An entry has
    stage, against, data, domain and `metrics`, {metric: the verdict of
    `evals.verdict.compare`, of several runs with `runs`, {word: how many runs have it
    alone}}. A name has none where too few test examples are common
    (`verdict.can_compare`).
    """
    arms: dict[str, dict[int, Answers]] = {}
    for (name, seed), one in zip(runs, answers, strict=True):
        arms.setdefault(name, {})[seed] = one
    first, *others = arms
    found = []
    for name in others:
        metrics = _compare_arms(arms[first], arms[name], is_drawn)
        if not metrics:
            log.info("%s: no verdict, %s", name, verdict.TOO_FEW)
            continue
        where = dict(stage=name, against=first, data=data, domain=domain)
        found.append({**where, "metrics": metrics})
    return found


def _compare_arms(
    first: Mapping[int, Answers], second: Mapping[int, Answers], is_drawn: bool
) -> dict[str, Any]:
    found = {}
    for metric in next(iter(second.values())).arms:
        before, after = _pair(first, second, metric)
        if not verdict.can_compare(before, after):
            continue
        one = verdict.compare(before, after, "accuracy")
        is_few = metric.startswith(_FEW) and len(one["seeds"]) > 1 and not is_drawn
        covers = _COVERS[max(len(first), len(second)) > 1, is_drawn, is_few]
        found[metric] = {**one, "covers": covers}
        if len(second) > 1:
            found[metric]["runs"] = _count_words(first, second, metric)
    return found


def _count_words(
    first: Mapping[int, Answers], second: Mapping[int, Answers], metric: str
) -> dict[str, int]:
    """Returns how many runs have which verdict alone, which says nothing of other runs."""
    words = []
    for seed, run in second.items():
        before, after = _take(first, seed).arms[metric], run.arms[metric]
        if verdict.can_compare(before, after):
            words.append(verdict.difference(before, after, "accuracy").word)
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _take(side: Mapping[int, T], seed: int) -> T:
    """Returns the run of a seed, else the first: a single one is compared with all others."""
    return side.get(seed) or next(iter(side.values()))


def _pair(
    first: Mapping[int, Answers], second: Mapping[int, Answers], metric: str
) -> tuple[verdict.Arm, verdict.Arm]:
    """Returns the predictions of both sides by draw, or by seed where there are several."""
    sides = [
        {s: one.arms[metric] for s, one in side.items()} for side in (first, second)
    ]
    if max(map(len, sides)) == 1:
        before, after = (next(iter(side.values())) for side in sides)
        return before, after
    several = [side for side in sides if len(side) > 1]
    seeds = [seed for seed in several[0] if seed in several[-1]]
    arms: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    for number, seed in enumerate(seeds):
        one, other = (_take(side, seed) for side in sides)
        known = [draw for draw in one if draw in other]
        draw = seed if seed in known else known[number % len(known)]
        arms[0][seed], arms[1][seed] = one[draw], other[draw]
    return arms


def join_finetuned(
    config: Any, entries: Iterable[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the entries with `finetuned`, and `disagree`: one helped and another hurt.

    rows: of results.json. finetuned: the verdicts on stages that start from the entry's
    stage, against such that start from the initial model, where both are trained and tested
    alike.
    """
    starts = {section.name: section.init_from for section in config.stages}
    found = []
    for entry in entries:
        both = [_reference(entry[side]) for side in ("stage", "against")]
        tuned = [
            {"stage": row["stage"], **one}
            for row in rows
            for one in row.get("verdicts", ())
            if entry["domain"] == TARGET
            and [starts.get(row["stage"]), starts.get(one["against"])] == both
            and "weights" in one
        ]
        words = {one["word"] for one in [*entry["metrics"].values(), *tuned]}
        disagree = {verdict.HELPED, verdict.HURT} <= words
        found.append({**entry, "finetuned": tuned, "disagree": disagree})
    return found


def _reference(label: str) -> str:
    """Returns how `init_from` refers to a measured model."""
    return "pretrained" if label.startswith("pretrained") else f"stage:{label}"


def store(config: Any, workdir: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Writes eval_verdicts.json, and the entries into results.json where there is one."""
    path = workdir / "results.json"
    try:
        rows = logs.read_json(path) if path.exists() else []
    except UserError as error:
        log.warning("%s; the verdicts are in %s alone", error, FILE)
        rows = []
    logs.write_json(workdir / FILE, join_finetuned(config, entries, rows))
    if rows:
        logs.write_json(path, add_features(rows, workdir))


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the entries of the file; [] without such a file, or where it is damaged."""
    path = workdir / FILE
    found: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):
        found = logs.read_json(path) if path.exists() else []
    return found


def add_features(rows: Sequence[dict[str, Any]], workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of results.json with `features`, the entries of each stage."""
    entries = read(workdir)
    found = []
    for row in rows:
        mine = [one for one in entries if one["stage"].split("/")[0] == row["stage"]]
        found.append({**row, "features": mine} if mine else row)
    return found


def list_lines(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns a line for each entry."""
    return [describe(entry) for entry in entries]


def describe(entry: Mapping[str, Any]) -> str:
    """Returns the verdicts of an entry as one line, the fine-tuned ones included."""
    said = [
        f"{name_metric(name)} {_describe(one)}"
        for name, one in entry["metrics"].items()
    ]
    said += [
        f"fine-tuned ({one['stage']} against {one['against']}) {_describe(one)}"
        for one in entry["finetuned"]
    ]
    where = f"on {entry['data']}"
    if entry["domain"] == SOURCE:
        where = f"on the source {entry['data']} (forgetting)"
    some = next(iter(entry["metrics"].values()))
    text = (
        f"{entry['stage']} against {entry['against']} {where}: {'; '.join(said)} "
        f"({some['examples']} test examples; {describe_covers(entry['metrics'])})"
    )
    text = "; ".join([text, *leaks.list_notes(entry)])
    return f"{text}; the metrics disagree" if entry["disagree"] else text


def name_metric(name: str) -> str:
    """Returns a metric of frozen features in words: kNN, linear probe, 5-shot."""
    return _TITLES.get(name, f"{name.removeprefix(_FEW)}-shot")


def describe_covers(metrics: Mapping[str, Any]) -> str:
    """Returns what the intervals cover, by metric where that differs."""
    titles: dict[str, list[str]] = {}
    for name, one in metrics.items():
        titles.setdefault(one["covers"], []).append(name_metric(name))
    if len(titles) == 1:
        return next(iter(titles))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in titles.items())


def _describe(one: Mapping[str, Any]) -> str:
    ends = " to ".join(f"{one[end]:+.4f}" for end in ("low", "high"))
    text = f"{one['word']} {one['difference']:+.4f}, 95 % interval {ends}"
    runs = ", ".join(f"{count} {word}" for word, count in one.get("runs", {}).items())
    return f"{text} (each run alone: {runs})" if runs else text
