"""Metrics of frozen features on target and source, from stage to stage."""

from collections import defaultdict
from typing import Any

from flax_adapt.experiment import interpolate
from flax_adapt.report import svg
from flax_adapt.report.outcomes import format_number
from flax_adapt.report.transfers import BETTER
from flax_adapt.report.workdir import Run, read_optional

# Metric -> data set -> the points of its line: (stage, value).
Lines = dict[str, dict[str, list[tuple[str, float]]]]
_TITLES = {"knn": "kNN", "probe": "linear probe"}


def over_stages(run: Run) -> dict[str, Any] | None:
    """Returns a chart for each metric with a line for each data set; two stages at least.

    From the verdicts of `eval`, differences to the initial model on target and source; in a
    workdir without them from the values in eval.json.
    """
    lines, against = _read_differences(run)
    lines = lines or _read_values(run)
    several = {
        metric: {name: points for name, points in found.items() if len(points) > 1}
        for metric, found in lines.items()
    }
    if not any(several.values()):
        return None
    with svg.settings():
        charts = [_draw(metric, found) for metric, found in several.items() if found]
    what = f"differences to {against}" if against else "accuracies"
    return {"text": f"Frozen features by stage: {what}.", "charts": charts}


def interpolated(run: Run) -> dict[str, Any] | None:
    """Returns the tables of `flax-adapt interpolate`: accuracies from start to adapted.

    There is one for each stage that was measured, in their order.
    """
    stages = run.folder / "stages"
    folders = (one for name in run.names for one in run.seed_folders(name).values())
    labels = (folder.relative_to(stages).as_posix() for folder in folders)
    found = (read_optional(interpolate.record_of(run.folder, one)) for one in labels)
    tables = [_tabulate(one) for one in found if one]
    return {"tables": tables} if tables else None


def _tabulate(found: dict[str, Any]) -> dict[str, Any]:
    best, rows = found["best"], found["rows"]
    names = [name for name in rows[0] if name != "a"]
    shown = [
        {
            "name": f"a = {row['a']:g}",
            "cells": [
                {
                    **dict(tone="good", interval="", word=""),
                    "strength": 0.3 if abs(row["a"] - best["a"]) < 1e-3 else 0,
                    "text": format_number(row[name]),
                }
                for name in names
            ],
        }
        for row in rows
    ]
    text = (
        f"start + a (adapted - start) of {found['stage']}; the best is a = "
        f"{best['a']:g}, {best['rule']}."
    )
    lines = interpolate.describe_other_half(best)
    return {"text": text, "lines": lines, "columns": names, "rows": shown}


def _read_differences(run: Run) -> tuple[Lines, str]:
    """Returns the lines, and the model that they are compared with, whose values are 0."""
    lines: Lines = defaultdict(lambda: defaultdict(list))
    against = ""
    for one in (one for row in run.rows for one in row.get("features", ())):
        against = one["against"]
        for metric, found in one["metrics"].items():
            points = lines[metric][f"{one['domain']}: {one['data']}"]
            points += [] if points else [(against, 0.0)]
            points.append((one["stage"], found["difference"]))
    return lines, against


def _read_values(run: Run) -> Lines:
    lines: Lines = defaultdict(lambda: defaultdict(list))
    for row in read_optional(run.folder / "eval.json") or ():
        for metric in BETTER & {*row}:
            if row[metric] is not None:
                data = row.get("data", run.experiment.evaluate.test.source)
                lines[metric][data].append((row["stage"], row[metric]))
    return dict(sorted(lines.items()))


def _draw(metric: str, lines: dict[str, list[tuple[str, float]]]) -> dict[str, str]:
    figure, axes = svg.new_axes(3.5, 2.9)
    for index, (data, points) in enumerate(lines.items()):
        stages, values = zip(*points, strict=True)
        colour = svg.SERIES[index % len(svg.SERIES)]
        axes.plot(stages, values, color=colour, marker="o", markersize=3, label=data)
    axes.tick_params("x", labelrotation=35)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    legend = axes.legend(fontsize=7, framealpha=0.0, edgecolor=svg.GRID)
    legend.get_frame().set_linewidth(0.0)
    title = _TITLES.get(metric, metric.replace("_", " "))
    text = f"{title} by stage on {', '.join(lines)}"
    return {"title": title, "of": "", "svg": svg.draw(figure, text)}
