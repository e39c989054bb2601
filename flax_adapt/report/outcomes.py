"""The sections on results: the table of stages, and every pair of arms."""

from collections.abc import Mapping
from typing import Any

from flax_adapt.evals import verdict
from flax_adapt.experiment.measuring import leaks
from flax_adapt.report.workdir import Run

# Word of a verdict -> (class of the page's style, sign).
TONES = {
    verdict.HELPED: ("good", "▲"),
    verdict.HURT: ("bad", "▼"),
    verdict.UNCLEAR: ("open", "●"),
}


def notes(run: Run, stage: str) -> list[str]:
    """Returns what limits the verdict on a stage: test examples that training has seen."""
    return leaks.list_notes(next(row for row in run.rows if row["stage"] == stage))


def describe_interval(found: Mapping[str, Any]) -> str:
    """Returns the ends of an interval as text."""
    return f"{found['low']:+.4f} to {found['high']:+.4f}"


def bar(found: Mapping[str, Any], reach: float) -> dict[str, float]:
    """Returns percentages of an interval on a bar from -reach to reach."""
    left, middle, right = (
        round(50 + 50 * max(-1.0, min(1.0, found[name] / reach)), 2)
        for name in ("low", "difference", "high")
    )
    return {"left": left, "width": round(right - left, 2), "middle": middle}


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun: 1 seed, 3 seeds, 1,697 test examples."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def results(run: Run) -> dict[str, Any] | None:
    """Returns the table of the stages: value and spread, seeds, gain, verdict, seconds."""
    rows = []
    for row in run.rows:
        judged = row.get("verdict")
        rows.append(
            {
                **dict(stage=row["stage"], metric=row["metric"]),
                "mean": format_number(row["mean"]),
                "std": format_number(row["std"]) if len(row["seeds"]) > 1 else "",
                "values": [format_number(value) for value in row["values"]],
                "seeds": len(row["seeds"]),
                "gain": f"{row['gain']:+.4f}" if row.get("gain") is not None else "",
                "verdict": judged["word"] if judged else "",
                "tone": TONES[judged["word"]][0] if judged else "",
                "time": format_seconds(row["seconds"]),
            }
        )
    return {"rows": rows} if rows else None


def format_number(value: float | None) -> str:
    """Returns a number with four digits; a training that broke down has none."""
    return "" if value is None else f"{value:#.4g}".rstrip(".")


def format_seconds(seconds: float) -> str:
    """Returns a time in its unit: 12 s, 3.4 min, 2.1 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def pairs(run: Run) -> dict[str, Any] | None:
    """Returns the matrix of verdicts between all arms; None for fewer than three arms."""
    found: dict[str, dict[str, Any]] = {}
    for row in run.rows:
        for one in row.get("verdicts", ()):
            found.setdefault(row["stage"], {})[one["against"]] = one
    others = [name for name in run.names if any(name in row for row in found.values())]
    if len({*found, *others}) < 3:
        return None
    largest = max(
        abs(one["difference"]) for row in found.values() for one in row.values()
    )
    rows = [
        {
            "name": name,
            "cells": [_cell(row.get(other), largest or 1.0) for other in others],
        }
        for name, row in found.items()
    ]
    return {"columns": others, "rows": rows}


def _cell(found: dict[str, Any] | None, largest: float) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        **shade(found["difference"], largest),
        "text": f"{found['difference']:+.4f}",
        "interval": describe_interval(found),
        "word": found["word"],
    }


def shade(value: float, largest: float) -> dict[str, Any]:
    """Returns colour and strength (0 to 1) of a cell of a heat map of differences."""
    tone = "good" if value > 0 else "bad"
    return {"tone": tone, "strength": round(0.6 * min(1.0, abs(value) / largest), 3)}
