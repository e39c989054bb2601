"""Heat maps of differences to the initial model: transfer matrices, and measures of `eval`."""

from typing import Any

import numpy as np

from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import verdicts
from flax_adapt.report.outcomes import describe_interval, format_number, shade
from flax_adapt.report.workdir import Run, read_optional

_TITLES = {"finetune": "fine-tuned", "probe": "linear probe", "knn": "kNN"}
# Columns of eval.json that are compared: the larger the better. Others are shown as they are.
BETTER = {"knn", "probe", "binarised", "mlp"}
_SKIPPED = {"stage", "data", "probe_l2", "binarised_l2"}


def matrices(run: Run) -> dict[str, Any] | None:
    """Returns the transfer matrices as differences to their first row, the initial model.

    Fine-tuned cells have 95 % intervals, where both stages kept their predictions, and those
    of kNN and probes have the ones in eval_verdicts.json.
    """
    found = read_optional(run.folder / "transfer.json")
    if not found:
        return None
    return {
        "matrices": [
            {
                "title": _TITLES.get(name, name),
                "columns": one["columns"],
                "first": _first(one),
                "rows": _compare_rows(run, name, one),
            }
            for name, one in found.items()
        ]
    }


def _first(one: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of the initial model with its values."""
    cells = [format_number(value) for value in one["matrix"][0]]
    return {"name": one["rows"][0], "cells": cells}


def _compare_rows(run: Run, name: str, one: dict[str, Any]) -> list[dict[str, Any]]:
    matrix = np.asarray(one["matrix"], np.float64)
    change = matrix - matrix[0]
    largest = float(np.abs(change).max()) or 1.0
    section = run.config["transfer"]
    entries = [] if name == "finetune" else verdicts.read(run.folder)
    rows = []
    for i, stage in enumerate(one["rows"][1:], start=1):
        cells = []
        for j, value in enumerate(change[i].tolist()):
            if name == "finetune":
                stages = section["finetuned"]
                interval = _find_interval(run, stages[0][j], stages[i][j])
            else:
                pair, source = (one["rows"][0], stage), section["sources"][j]
                found = _find_verdict(entries, pair, source, name)
                value = found["difference"] if found else value
                interval = describe_interval(found) if found else ""
            shown = dict(text=f"{value:+.4f}", interval=interval, word="")
            cells.append({**shade(value, largest), **shown})
        rows.append({"name": stage, "cells": cells})
    return rows


def _find_verdict(
    entries: list[dict[str, Any]], pair: tuple[str, str], source: str, metric: str
) -> dict[str, Any] | None:
    """Returns the verdict of eval_verdicts.json on a cell of frozen features.

    pair: names of the first row and the cell's. None where there is none, or where several
    runs of a stage have one each: their mean in the cell has no interval.
    """
    found = [
        one["metrics"][metric]
        for one in entries
        if (one["against"].split("/")[0], one["stage"].split("/")[0]) == pair
        and (one["domain"], one["data"]) == (verdicts.TARGET, source)
        and metric in one["metrics"]
    ]
    return found[0] if len(found) == 1 else None


def _find_interval(run: Run, first: str, second: str) -> str:
    """Returns the interval of a difference as text; "" where predictions are missing."""
    known = {row["stage"]: row["metric"] for row in run.rows}
    if first == second or not {first, second} <= known.keys():
        return ""
    before, after = (run.predictions(name) for name in (first, second))
    metric = known[second]
    if metric not in verdict.MEASURES or not verdict.can_compare(before, after):
        return ""
    return describe_interval(verdict.difference(before, after, metric)._asdict())


def features(run: Run) -> dict[str, Any] | None:
    """Returns the verdicts of `eval` on frozen features, on target and source.

    Each row is a stage on a data set, each cell its difference to the initial model.
    """
    entries = [one for row in run.rows for one in row.get("features", ())]
    if not entries:
        return None
    names = list(dict.fromkeys(name for one in entries for name in one["metrics"]))
    every = [found for one in entries for found in one["metrics"].values()]
    largest = max(abs(found["difference"]) for found in every) or 1.0
    rows = [
        {
            "name": f"{one['stage']} on {one['domain']} {one['data']}",
            "cells": [_judge(one["metrics"].get(name), largest) for name in names],
        }
        for one in entries
    ]
    return {"against": entries[0]["against"], "columns": names, "rows": rows}


def _judge(found: dict[str, Any] | None, largest: float) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        **shade(found["difference"], largest),
        **dict(text=f"{found['difference']:+.4f}", interval=describe_interval(found)),
        "word": found["word"],
    }


def measures(run: Run) -> dict[str, Any] | None:
    """Returns the rows of eval.json; accuracies are compared with the first model's."""
    rows = read_optional(run.folder / "eval.json")
    if not rows:
        return None
    names = list(dict.fromkeys(k for row in rows for k in row if k not in _SKIPPED))
    first: dict[Any, dict[str, Any]] = {}
    largest = _find_largest(rows, names)
    shown = []
    for row in rows:
        start = first.setdefault(row.get("data"), row)
        cells = [_measure(row, start, name, largest) for name in names]
        label = f"{row['stage']} on {row['data']}" if "data" in row else row["stage"]
        shown.append({"name": label, "cells": cells})
    return {"columns": names, "rows": shown}


def _find_largest(rows: list[dict[str, Any]], names: list[str]) -> float:
    first: dict[Any, dict[str, Any]] = {}
    changes = [0.0]
    for row in rows:
        start = first.setdefault(row.get("data"), row)
        both = [
            n for n in names if n in BETTER and None not in (row.get(n), start.get(n))
        ]
        changes += [abs(row[name] - start[name]) for name in both]
    return max(changes) or 1.0


def _measure(
    row: dict[str, Any], start: dict[str, Any], name: str, largest: float
) -> dict[str, Any] | None:
    value, before = row.get(name), start.get(name)
    if value is None:
        return None
    plain = {"tone": "open", "strength": 0, "interval": "", "word": ""}
    if name not in BETTER or row is start or before is None:
        return {**plain, "text": format_number(value)}
    change = value - before
    return {**plain, **shade(change, largest), "text": f"{change:+.4f}"}
