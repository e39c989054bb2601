"""Verdicts on the stages of a run: each compared with the earlier ones that are tested alike.

They need the predictions that stages keep (`stage.predictions`). Stages that an earlier
version ran have none; then their verdict is left out.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import leaks, watched
from flax_adapt.stage import draws, predictions

log = logging.getLogger(__name__)
_COVERS = {
    "each_seed": "covers test examples, draws of labels and training",
    "fixed": "covers test examples and training; the labels were the same for all seeds",
    "one": "covers test examples alone: more seeds show the noise of labels and training",
}


def add(
    config: Any, rows: list[dict[str, Any]], results: Sequence[Any], workdir: Path
) -> list[dict[str, Any]]:
    """Returns the rows of results.json with verdicts.

    A row whose metric was measured on the same data by an earlier stage gets `verdicts`,
    one for each of these, and `verdict`, that against the first. `against` names the other
    stage.
    """
    sections = {section.name: section for section in config.stages}
    alike: dict[Any, list[str]] = {}
    arms = {row["stage"]: _arm(row, sections, workdir) for row in rows}
    found = []
    for row in rows:
        name, metric = row["stage"], row["metric"]
        measured = next(one for one in results if one["stage"] == name)
        earlier = alike.setdefault((metric, measured["eval_data"]), [])
        known = [other for other in earlier if arms[other]] if arms[name] else []
        compared = [
            _compare(sections[name], arms[other], arms[name], metric, other)
            for other in (known if metric in verdict.MEASURES else ())
            if verdict.common_seeds(arms[other], arms[name])
        ]
        earlier.append(name)
        more = {"verdict": compared[0], "verdicts": compared} if compared else {}
        found.append({**row, **more})
    return found


def text(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each verdict against the first stage that is tested alike.

    What stages have watched comes first.
    """
    lines = [line for row in rows for line in watched.describe(row)]
    for row in rows:
        if "verdict" not in row:
            continue
        said = verdict.sentence(row["stage"], row["verdict"]["against"], row["verdict"])
        if "transductive" in row:
            said += f"; {leaks.describe_shared(row['transductive'])}"
        lines.append(said)
    return lines


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
    section: Any, first: verdict.Arm, second: verdict.Arm, metric: str, against: str
) -> dict[str, Any]:
    found = verdict.compare(first, second, metric)
    same_labels = draws.has_few_labels(section) and not draws.has_own_labels(section)
    draw = "fixed" if same_labels else "each_seed"
    covers = _COVERS["one" if len(found["seeds"]) == 1 else draw]
    return {"against": against, **found, "covers": covers}
