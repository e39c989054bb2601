"""Verdicts on frozen features: each measured model compared with the initial one.

`eval` writes them as eval_verdicts.json, and into the rows of results.json as `features`.
Metrics that disagree are said to: kNN, linear probe and few shots of a stage, and the
verdict on what was fine-tuned from it.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import leaks
from flax_adapt.experiment.measuring.answers import Answers

FILE = "eval_verdicts.json"
TARGET, SOURCE = "target", "source"
log = logging.getLogger(__name__)
_TITLES = {"knn": "kNN", "probe": "linear probe"}
_COVERS = {
    True: "covers test examples and draws of labels",
    False: "covers test examples alone: the labels were the same",
}


def compare(
    labels: Sequence[str], answers: Sequence[Answers], data: str, domain: str
) -> list[dict[str, Any]]:
    """Returns an entry for each model but the first, which it is compared with.

    labels: of the models. data: the source of the test examples. domain: TARGET or SOURCE,
    where a loss is forgetting. An entry has stage, against, data, domain and `metrics`,
    {metric: the verdict of `evals.verdict.compare`}.
    """
    found = []
    for label, mine in zip(labels[1:], answers[1:], strict=True):
        metrics = {
            metric: _compare(answers[0].arms[metric], arm)
            for metric, arm in mine.arms.items()
        }
        where = dict(stage=label, against=labels[0], data=data, domain=domain)
        found.append({**where, "metrics": metrics})
    return found


def _compare(first: verdict.Arm, second: verdict.Arm) -> dict[str, Any]:
    found = verdict.compare(first, second, "accuracy")
    return {**found, "covers": _COVERS[len(found["seeds"]) > 1]}


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
        f"({some['examples']} test examples; {some['covers']})"
    )
    if "transductive" in entry:
        text += f"; {leaks.describe_shared(entry['transductive'])}"
    return f"{text}; the metrics disagree" if entry["disagree"] else text


def name_metric(name: str) -> str:
    """Returns a metric of frozen features in words: kNN, linear probe, 5-shot."""
    return _TITLES.get(name, f"{name.removeprefix('shot_')}-shot")


def _describe(one: Mapping[str, Any]) -> str:
    ends = " to ".join(f"{one[end]:+.4f}" for end in ("low", "high"))
    return f"{one['word']} {one['difference']:+.4f}, 95 % interval {ends}"
