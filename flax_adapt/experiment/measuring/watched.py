"""Stages that watch metrics: how these are compared, and what is said of them.

How each metric is measured is in `measuring.meters`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flax_adapt import data
from flax_adapt.base.errors import UserError
from flax_adapt.evals import intervals, verdict
from flax_adapt.experiment import device_memory
from flax_adapt.experiment.measuring import meters
from flax_adapt.stage import loop
from flax_adapt.stage.stage import Stage
from flax_adapt.stage.watching import section as watching
from flax_adapt.stage.watching.measurements import Instruments
from flax_adapt.train.preemption import Preemption


@device_memory.explain
def train(stage: Stage, preemption: Preemption) -> dict[str, Any]:
    """Trains a stage, see `loop.train_and_evaluate`; it may watch a metric.

    Raises DoesNotFitError, too, where a device has too little memory for it.
    """
    needed = () if stage.config.watch is None else (INSTRUMENTS,)
    return loop.train_and_evaluate(stage, preemption, *needed)


def judge(before_N: np.ndarray, after_N: np.ndarray) -> dict[str, Any]:
    """Returns the verdict on paired numbers, of which higher ones are better.

    The fields are word, helped and hurt (whether the word says so), difference, low, high
    and units, the number of pairs.
    """
    if len(before_N) != len(after_N):
        raise ValueError(f"{len(before_N)} and {len(after_N)} numbers are no pairs")
    found = intervals.blended((after_N - before_N)[None], verdict.LEVEL)
    word = verdict.name_interval(found)
    mean, low, high = (float(value) for value in found)
    ends = dict(difference=mean, low=low, high=high)
    said = dict(word=word, helped=word == verdict.HELPED, hurt=word == verdict.HURT)
    return {**said, **ends, "units": len(before_N)}


INSTRUMENTS = Instruments(meters.open_meter, judge)


def drop_history(found: dict[str, Any]) -> dict[str, Any]:
    """Returns what results.json has of `Watch.describe`: all but the single measurements."""
    kept = {name: value for name, value in found.items() if name != "history"}
    if "others" in kept:
        others = kept["others"].items()
        kept["others"] = {metric: drop_history(one) for metric, one in others}
    return kept


def measured_sections(config: Any, section: Any) -> list[Any]:
    """Returns the data sections of `evaluate` that a stage is measured on as it trains."""
    found = [config.evaluate.train] if watching.reads_labels(section) else []
    return [*found, config.evaluate.source] if watching.reads_source(section) else found


def check_source(runs: Iterable[Stage]) -> None:
    """Raises UserError where a stage watches kNN on a source that has no two classes."""
    reading = [stage for stage in runs if watching.reads_source(stage.config)]
    if not reading:
        return
    section = reading[0].experiment.evaluate.source
    if len(data.source.open_source(section).class_names) < 2:
        raise UserError(meters.describe_lack(reading[0], watching.SOURCE))


def describe(row: dict[str, Any]) -> list[str]:
    """Returns a line for each run of a stage that watched a metric; row: of results.json."""
    return [_describe(row["stage"], seed, found) for seed, found in list_runs(row)]


def list_runs(row: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Returns (seed, `Watch.describe`) of the runs of a stage that watched a metric."""
    both = zip(row.get("seeds", ()), row.get("watch", ()), strict=False)
    return [(seed, found) for seed, found in both if found is not None]


def _describe(name: str, seed: int, found: dict[str, Any]) -> str:
    compared = found["verdict"]
    said = "no verdict, as the initial state was not measured"
    if compared:
        ends = " to ".join(f"{compared[end]:+.4f}" for end in ("low", "high"))
        said = f"{compared['word']} {compared['difference']:+.4f}, 95 % interval {ends}"
        if is_about_last(found):
            said += f" (the last state, of step {compared['step']}, as no state helped)"
    where = f"{name} (seed {seed}) against its start by {found['metric']}"
    return f"{where}: {said}; {describe_result(found)}"


def is_about_last(found: dict[str, Any]) -> bool:
    """Returns whether the verdict is about the last state: none helped, and that one hurt."""
    step = found["verdict"].get("step", found["best_step"])
    return bool(step != found["best_step"])


def describe_result(found: dict[str, Any]) -> str:
    """Returns which state a run that watched metrics has kept, and its further metrics."""
    if found["rolled_back"]:
        result = "rolled back: its result is the initial weights"
    else:
        result = f"its result is the best state, of step {found['best_step']}"
    stop = f"; stopped at step {found['last_step']}" if found["stopped"] else ""
    beside = "".join(
        f"; {metric} {_number(one['start'])} before, {_number(one['best'])} in the best state"
        for metric, one in found.get("others", {}).items()
    )
    return f"{result}{stop}{beside}"


def name_units(found: dict[str, Any]) -> str:
    """Returns what the numbers of a verdict on a watched metric are of, with their count."""
    of_each = found["metric"].endswith(("/knn", "/probe"))
    what = "examples" if of_each else "groups of examples"
    return f"{found['verdict']['units']} {what}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def shorten(found: Sequence[dict[str, Any] | None]) -> str:
    """Returns what the runs of a stage kept, as a cell of a table."""
    kept = [
        "initial weights" if one["rolled_back"] else f"step {one['kept_step']}"
        for one in found
        if one is not None
    ]
    return ", ".join(dict.fromkeys(kept))
