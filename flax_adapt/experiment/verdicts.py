"""Verdicts on the stages of a run: each compared with the earlier ones that are tested alike.

They need the predictions that stages keep (`stage.predictions`). Stages that an earlier
version ran have none; then their verdict is left out.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import alike, leaks, watched
from flax_adapt.stage import draws, predictions

log = logging.getLogger(__name__)
# Draw of labels -> words, those that cover less first.
_COVERS = {
    "fixed": "covers test examples and training; the labels were the same for all seeds",
    "all": "covers test examples and training",
    "each_seed": "covers test examples, draws of labels and training",
    "one": "covers test examples alone: more seeds show the noise of labels and training",
}


def add(
    config: Any, rows: list[dict[str, Any]], results: Sequence[Any], workdir: Path
) -> list[dict[str, Any]]:
    """Returns the rows of results.json with verdicts.

    A row whose metric was measured on the same data by an earlier stage gets `verdicts`,
    one for each of these, whose `against` names the other stage. `verdict` is the one that
    `gain` is about: against the first that was trained alike from other weights, and then
    it has `weights`, the names of both; else against the first of all.
    """
    sections = {section.name: section for section in config.stages}
    earlier = alike.list_earlier(results)
    arms = {row["stage"]: _arm(row, sections, workdir) for row in rows}
    found, lacking = [], []
    for row in rows:
        name, metric = row["stage"], row["metric"]
        base = alike.find_base(sections, name, earlier[name])
        known = [other for other in earlier[name] if arms[other]] if arms[name] else []
        compared = [
            _compare(sections, name, other, arms, metric)
            for other in (known if metric in verdict.MEASURES else ())
            if verdict.can_compare(arms[other], arms[name])
        ]
        if known and not compared:
            lacking.append(name)
        main = [one for one in compared if one["against"] == base] or compared
        more = {"verdict": main[0], "verdicts": compared} if compared else {}
        found.append({**row, **more})
    if lacking:
        log.info("%s: no verdict, %s", ", ".join(lacking), verdict.TOO_FEW)
    return found


def text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each stage's verdict; what stages have watched comes first.

    A stage without a verdict has a line where training has seen its test examples.
    """
    lines = [line for row in rows for line in watched.describe(row)]
    for row in rows:
        notes = leaks.list_notes(row)
        if "verdict" in row:
            judged = row["verdict"]
            said = verdict.sentence(row["stage"], judged["against"], judged)
            lines.append("; ".join([said, *notes]))
        elif "seen" in row:
            lines.append(f"{row['stage']}: {'; '.join(notes)}")
    return [*lines, *_say_disagreements(rows)]


def _say_disagreements(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each pair of weights that help one way to train, and hurt another."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        one = row.get("verdict", {})
        if one.get("weights"):
            words = found.setdefault(tuple(one["weights"]), {})
            words.setdefault(one["word"], []).append(row["stage"])
    return [
        f"{after} against {before}: the stages disagree: "
        + "; ".join(f"{', '.join(names)} {word}" for word, names in words.items())
        for (before, after), words in found.items()
        if {verdict.HELPED, verdict.HURT} <= {*words}
    ]


def _arm(row: dict[str, Any], sections: Any, workdir: Path) -> verdict.Arm:
    """Returns the predictions of a stage by seed; {} where one of them is missing."""
    section = sections[row["stage"]]
    if section.eval is None or row["metric"] not in verdict.MEASURES:
        return {}
    folders = {
        seed: workdir / "stages" / draws.label(section, seed) for seed in row["seeds"]
    }
    found = {seed: predictions.read(folder) for seed, folder in folders.items()}
    missing = [seed for seed, one in found.items() if one is None]
    if missing and "gain" in row and "classify" in str(section.objective.name):
        log.info(
            "%s: no verdict, for the stage kept no predictions (an earlier version ran it)",
            row["stage"],
        )
    return {} if missing else found


def _compare(
    sections: Any, name: str, against: str, arms: Any, metric: str
) -> dict[str, Any]:
    section = sections[name]
    found = verdict.compare(arms[against], arms[name], metric)
    covers = describe_cover([section], len(found["seeds"]))
    found = {"against": against, **found, "covers": covers}
    if alike.train_alike(sections[against], section):
        ends = (against, name)
        found["weights"] = [alike.name_weights(sections, one) for one in ends]
        if len(found["seeds"]) > 1:
            found["covers"] += _describe_single(sections, found["weights"][1])
    return found


def _describe_single(sections: Any, weights: str) -> str:
    """Returns what to say where a stage without labels ran once, before several seeds."""
    is_single = weights in sections and len(sections[weights].seeds) == 1
    return f"; the weights of {weights} are of one run" if is_single else ""


def describe_cover(sections: Iterable[Any], seeds: int) -> str:
    """Returns which noise the interval of a verdict covers.

    sections: of the stages that are compared. Where they draw their labels in other ways, it
    is the noise that both have. seeds: how many are common.
    """
    if seeds == 1:
        return _COVERS["one"]
    known = {_name_draw(section) for section in sections}
    return next(text for draw, text in _COVERS.items() if draw in known)


def _name_draw(section: Any) -> str:
    if draws.has_own_labels(section):
        return "each_seed"
    return "fixed" if draws.has_few_labels(section) else "all"
