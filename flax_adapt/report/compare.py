"""Several workdirs side by side: one table, and one page.

Stages of the same name are compared with those of the first workdir, where both were tested
on the same examples by the same seeds; else it is said why not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.version import __version__
from flax_adapt.evals import verdict
from flax_adapt.experiment import verdicts
from flax_adapt.experiment.measuring import leaks
from flax_adapt.report import outcomes, page, workdir
from flax_adapt.report.verdicts import claims, comparable
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

    A row is {workdir, stage, metric, seeds, mean, std, gain, transductive, seen, against,
    verdict, reason}. against: the name of the first run, "" in its own rows. verdict,
    reason: of `compare_stage`.
    """
    stages = dict.fromkeys(name for run in runs.values() for name in run.names)
    start, first = next(iter(runs.items()))
    rows = []
    for stage in stages:
        for name, run in runs.items():
            row = next((row for row in run.rows if row["stage"] == stage), None)
            if row is None:
                continue
            shown = {key: row[key] for key in ("stage", "metric", "mean", "std")}
            more = {"gain": row["gain"]} if row.get("gain") is not None else {}
            found, reason = (None, "")
            if run is not first:
                found, reason = compare_stage(first, run, row)
            shown |= {**more, "workdir": name, "seeds": len(row["seeds"])}
            shown |= {"against": "" if run is first else start}
            shown |= {name: row.get(name) for name in ("transductive", "seen")}
            rows.append({**shown, "verdict": found, "reason": reason})
    return rows


def compare_stage(
    first: Run, second: Run, row: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """Returns (the verdict on a stage of the second run against that of the first, "").

    (None, the reason) where they cannot be compared, see `comparable.find_reason`. The
    verdict is that of `evals.verdict.compare`, and `covers`.
    """
    name = row["stage"]
    if reason := comparable.find_reason(first, second, row):
        return None, reason
    found = verdict.compare(
        first.predictions(name), second.predictions(name), row["metric"]
    )
    sections = [configs.build(run.sections[name]) for run in (first, second)]
    covers = verdicts.describe_cover(sections, len(found["seeds"]))
    return {**found, "covers": covers}, ""


def format_text(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a table on screen, with a line for each verdict below it.

    Stages of a workdir that have none for the same reason share a line.
    """
    shown = [
        {**row, "to the first": verdict.short(row["verdict"]) if row["verdict"] else ""}
        | ({"pool": "transductive"} if row["transductive"] else {})
        for row in rows
    ]
    more = ("pool",) if any("pool" in row for row in shown) else ()
    lines = [_describe_verdict(row) for row in rows if row["verdict"]]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["reason"]:
            key = (row["workdir"], row["reason"])
            reasons.setdefault(key, []).append(row["stage"])
    lines += [
        f"{name}: no verdict on {', '.join(stages)}: {reason}"
        for (name, reason), stages in reasons.items()
    ]
    return "\n".join([logs.format_table(shown, (*COLUMNS, *more)), *lines])


def _describe_verdict(row: Mapping[str, Any]) -> str:
    names = (f"{row['stage']} of {row['workdir']}", f"that of {row['against']}")
    text = verdict.sentence(*names, row["verdict"])
    return "; ".join([text, *leaks.list_notes(row)])


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
    found = []
    for name in dict.fromkeys(row["workdir"] for row in rows if row["against"]):
        mine = [row for row in rows if row["workdir"] == name]
        if judged := [row for row in mine if row["verdict"]]:
            head = claims.headline(claims.of_stages(judged))
        else:
            head = {"text": f"No verdict: {_choose_reason(mine)}", "tone": "open"}
        found.append({"workdir": name, **head})
    return found


def _choose_reason(rows: list[dict[str, Any]]) -> str:
    """Returns why a workdir has no verdict: of a stage that was tested, if there is one."""
    reasons = [row["reason"] for row in rows]
    return next((one for one in reasons if one != comparable.UNTESTED), reasons[0])


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
        **{key: row[key] for key in ("workdir", "stage", "metric", "seeds", "reason")},
        "mean": outcomes.format_number(row["mean"]),
        "std": outcomes.format_number(row["std"]) if row["seeds"] > 1 else "",
        "gain": f"{row['gain']:+.4f}" if "gain" in row else "",
        "note": "; ".join(leaks.list_notes(row)),
        **dict(difference="", interval="", word="", tone="open", bar=None, covers=""),
    }
    if found is None:
        return shown
    return {
        **shown,
        "difference": f"{found['difference']:+.4f}",
        "interval": outcomes.describe_interval(found),
        "covers": found["covers"],
        "word": found["word"],
        "tone": outcomes.TONES[found["word"]][0],
        "bar": outcomes.bar(found, reach),
    }
