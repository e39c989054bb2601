"""Curves of a run: loss, learning rate and metrics over steps, stage by stage."""

import statistics
from collections import defaultdict
from typing import Any

from flax_adapt.report import svg
from flax_adapt.report.outcomes import count_of, format_number, format_seconds
from flax_adapt.report.recipe import stage_colours
from flax_adapt.report.workdir import Run

# Metrics that have no curve: counts, and what another curve shows.
_SKIPPED = {"stage", "step", "bad_files", "grad_norm", "examples_per_second"}
_TITLES = {
    "lr": "learning rate",
}
_FIRST = ("loss", "", "lr")
# The most points that a line is drawn with: a page of a long run stays small.
MOST_POINTS = 300
# The most curves of a page; further metrics are in metrics.jsonl.
MOST_CHARTS = 12

Line = list[tuple[int, float]]
# (objective, metric) -> run of a stage (NAME or NAME/seed_S) -> its points.
Lines = dict[tuple[str, str], dict[str, Line]]


def charts(run: Run) -> dict[str, Any] | None:
    """Returns the charts, and the stages of the legend with their colours."""
    lines = collect_lines(run)
    if not lines:
        return None
    colours = stage_colours(run)
    with svg.settings():
        drawn = [_chart(key, lines[key], colours) for key in order(lines)]
    shown = {label.split("/")[0] for one in lines.values() for label in one}
    legend = [
        {"stage": name, "colour": colour}
        for name, colour in colours.items()
        if name in shown
    ]
    return {"charts": drawn, "legend": legend}


def collect_lines(run: Run) -> Lines:
    """Returns the lines that have two points or more.

    Losses and metrics are grouped by objective, since those of different ones cannot be
    compared. Learning rates are of all stages.
    """
    found: Lines = defaultdict(lambda: defaultdict(list))
    for line in run.metrics:
        name = line["stage"].split("/")[0]
        if name not in run.sections:
            continue
        objective = run.sections[name]["objective"]["name"]
        for metric, value in line.items():
            if metric in _SKIPPED or value is None:
                continue
            group = "" if metric == "lr" else objective
            found[group, metric][line["stage"]].append((line["step"], value))
    several = {
        key: {label: points for label, points in lines.items() if len(points) > 1}
        for key, lines in found.items()
    }
    return {
        key: lines
        for key, lines in several.items()
        if lines and _is_new(key, lines, several)
    }


def _is_new(key: tuple[str, str], lines: dict[str, Line], found: Lines) -> bool:
    """Returns whether the lines are not those of the loss under another name."""
    objective, metric = key
    return metric == "loss" or lines != found.get((objective, "loss"))


def order(lines: Lines) -> list[tuple[str, str]]:
    """Returns the keys of the charts: losses first, what is tested before what is trained."""

    def rank(key: tuple[str, str]) -> tuple[int, bool]:
        metric = key[1]
        place = _FIRST.index(metric) if metric in _FIRST else 1
        first = metric.startswith(("eval_", "watch_"))
        return (0 if first else place, not metric.endswith("loss"))

    return sorted(lines, key=rank)[:MOST_CHARTS]


def _chart(
    key: tuple[str, str], lines: dict[str, Line], colours: dict[str, int]
) -> dict[str, str]:
    objective, metric = key
    tested = metric.startswith("eval_")
    base = metric.removeprefix("eval_")
    title = _TITLES.get(base, base.removeprefix("watch_").replace("_", " "))
    if tested:
        title += " on test data"
    elif base.startswith("watch_"):
        title += ", watched"
    figure, axes = svg.new_axes()
    for label, points in lines.items():
        name, _, seed = label.partition("/")
        thinned = thin(points)
        axes.plot(
            *zip(*thinned, strict=True),
            color=svg.SERIES[colours[name]],
            linewidth=1.6 if not seed else 1.1,
            marker="o" if len(thinned) < 8 else "",
            markersize=2.5,
        )
    axes.set_xlabel("step")
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    if low > 0 and high > 50 * low and base != "lr":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    text = (
        f"{title}: {count_of(len(lines), 'line')}, from {format_number(low)} to "
        f"{format_number(high)}"
    )
    return {"title": title, "of": objective, "svg": svg.draw(figure, text)}


def thin(points: Line) -> Line:
    """Returns at most MOST_POINTS of the points, the last one included."""
    stride = -(-len(points) // MOST_POINTS)
    return points[::-1][::stride][::-1]


def throughput(run: Run) -> dict[str, Any] | None:
    """Returns the median examples per second of each stage, and its share of the time."""
    speeds = defaultdict(list)
    for line in run.metrics:
        if line.get("examples_per_second"):
            speeds[line["stage"].split("/")[0]].append(line["examples_per_second"])
    whole = sum(row["seconds"] for row in run.rows) or 1.0
    colours = stage_colours(run)
    rows = [
        {
            **dict(stage=row["stage"], colour=colours[row["stage"]]),
            "speed": f"{statistics.median(speeds[row['stage']]):,.0f}"
            if speeds[row["stage"]]
            else "",
            "share": round(100 * row["seconds"] / whole, 1),
            "time": format_seconds(row["seconds"]),
        }
        for row in run.rows
    ]
    return {"rows": rows, "whole": format_seconds(whole)} if rows else None
