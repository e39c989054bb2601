"""Several workdirs side by side: one table, and one page.

Stages of the same name are compared with those of the first workdir, where both were tested
on the same examples by the same seeds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.version import __version__
from flax_adapt.evals import verdict
from flax_adapt.report import outcomes, page, workdir
from flax_adapt.report.workdir import Run

COLUMNS = ("workdir", "stage", "metric", "seeds", "mean", "std", "gain", "to the first")
# Fields in which two configs differ that are listed; a chain has thousands of fields.
MOST_FIELDS = 40


def read_all(folders: Mapping[str, Path]) -> dict[str, Run]:
    """Returns {name: workdir}; raises UserError for fewer than two."""
    if len(folders) < 2:
        raise UserError(
            "compare needs two different workdirs or more: compare DIR1 DIR2"
        )
    return {name: workdir.read(folder) for name, folder in folders.items()}


def list_rows(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Returns a row for each stage of each run, stages of the same name one below another.

    A row is {workdir, stage, metric, seeds, mean, std, gain, verdict}; verdict: of
    `evals.verdict.compare` with the same stage of the first run, None where they cannot be
    compared.
    """
    stages = dict.fromkeys(name for run in runs.values() for name in run.names)
    first, *_ = runs.values()
    rows = []
    for stage in stages:
        for name, run in runs.items():
            row = next((row for row in run.rows if row["stage"] == stage), None)
            if row is None:
                continue
            shown = {key: row[key] for key in ("stage", "metric", "mean", "std")}
            more = {"gain": row["gain"]} if row.get("gain") is not None else {}
            against = None if run is first else compare_stage(first, run, row)
            shown |= {**more, "workdir": name, "seeds": len(row["seeds"])}
            rows.append({**shown, "verdict": against})
    return rows


def compare_stage(
    first: Run, second: Run, row: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the verdict on a stage of the second run against that of the first.

    None where one has no such stage, another metric or no predictions, or where no seed
    or fewer than two test examples are common.
    """
    name, metric = row["stage"], row["metric"]
    known = {one["stage"]: one["metric"] for one in first.rows}
    if known.get(name) != metric or metric not in verdict.MEASURES:
        return None
    before, after = (run.predictions(name) for run in (first, second))
    if not verdict.can_compare(before, after):
        return None
    return verdict.compare(before, after, metric)


def format_text(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table on screen."""
    shown = [
        {**row, "to the first": verdict.short(row["verdict"]) if row["verdict"] else ""}
        for row in rows
    ]
    return logs.format_table(shown, COLUMNS)


def list_differences(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Returns the fields in which the config of each run differs from that of the first."""
    names = list(runs)
    first = runs[names[0]].config
    found = []
    for name in names[1:]:
        lines = configs.difference(first, runs[name].config)
        left_out = max(0, len(lines) - MOST_FIELDS)
        shown = lines[:MOST_FIELDS]
        found.append({"workdir": name, "lines": shown, "left_out": left_out})
    return found


def write(runs: Mapping[str, Run], rows: list[dict[str, Any]], target: Path) -> None:
    """Writes the page of a comparison, whole or not at all."""
    text = page.render_template(
        "compare.html",
        title="Comparison",
        runs=list(runs),
        headlines=describe_runs(rows),
        groups=_group(_describe(rows)),
        differences=list_differences(runs),
        version=__version__,
    )
    with logs.replace_file(target) as file:
        file.write(text.encode("utf-8"))


def describe_runs(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns what each workdir did to the stages of the first, in one sentence each."""
    judged: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["verdict"]:
            judged.setdefault(row["workdir"], []).append(row)
    return [
        {"workdir": name, **outcomes.headline(found)} for name, found in judged.items()
    ]


def _group(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of each stage; those of one stage follow each other."""
    stages = dict.fromkeys(row["stage"] for row in rows)
    return [
        {"stage": stage, "members": [row for row in rows if row["stage"] == stage]}
        for stage in stages
    ]


def _describe(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    judged = [row["verdict"] for row in rows if row["verdict"]]
    widest = max([abs(one[end]) for one in judged for end in ("low", "high")] or [1.0])
    return [_describe_row(row, (widest or 1.0) / 0.92) for row in rows]


def _describe_row(row: dict[str, Any], reach: float) -> dict[str, Any]:
    found = row["verdict"]
    shown = {
        **{key: row[key] for key in ("workdir", "stage", "metric", "seeds")},
        "mean": outcomes.format_number(row["mean"]),
        "std": outcomes.format_number(row["std"]) if row["seeds"] > 1 else "",
        "gain": f"{row['gain']:+.4f}" if "gain" in row else "",
        **dict(difference="", interval="", word="", tone="open", bar=None),
    }
    if found is None:
        return shown
    return {
        **shown,
        "difference": f"{found['difference']:+.4f}",
        "interval": outcomes.describe_interval(found),
        "word": found["word"],
        "tone": outcomes.TONES[found["word"]][0],
        "bar": outcomes.bar(found, reach),
    }
