"""What a stage writes: its metrics, and result.json.

A stage is done if result.json and the export exist.
"""

from typing import Any

import jax

from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.base.trackers import TrackedRun, Trackers
from flax_adapt.stage.stage import Stage

RESULT = "result.json"
RESULT_FIELDS = ("stage", "seed", "metric", "value", "mode", "seconds", "train", "eval")


def has_export(stage: Stage) -> bool:
    """Returns whether the exported weights of the stage exist."""
    export = stage.folder / "export"
    return (export / "config.json").exists() and any(export.glob("*.safetensors"))


def is_done(stage: Stage) -> bool:
    """Returns whether the result of the stage and its export exist.

    An export that was deleted can be made again from the last checkpoint. Raises UserError
    where the export and all checkpoints are missing.
    """
    if not (stage.folder / RESULT).exists():
        return False
    if has_export(stage):
        return True
    if not any(stage.folder.glob("checkpoints/*")):
        raise UserError(
            f"stage {stage.label} has a result, but {stage.folder / 'export'} is missing, "
            f"and there is no checkpoint to make it from; delete {stage.folder} to train "
            "the stage again"
        )
    return False


def read_result(stage: Stage) -> dict[str, Any]:
    """Returns the stored result of a stage; raises UserError where it is damaged."""
    path = stage.folder / RESULT
    result = logs.read_json(path)
    if not isinstance(result, dict) or not set(RESULT_FIELDS) <= result.keys():
        raise UserError(
            f"{path} is damaged, it lacks some of {', '.join(RESULT_FIELDS)}: delete it, "
            "then the same command makes it again from the last checkpoint"
        )
    return result


def begin_progress(stage: Stage) -> dict[str, Any]:
    """Returns the initial `progress` of a checkpoint.

    The config is stored for human readers; it names the folders that `frozen` came from.
    """
    config = configs.plain(stage.experiment)
    done = {"seconds": 0.0, "evaluated": -1, "train": {}, "eval": {}, "meter": {}}
    return {**done, "watch": {}, "stage": stage.label, "config": config}


def describe_result(
    stage: Stage, progress: dict[str, Any], metric: str, mode: str
) -> dict[str, Any]:
    """Returns what result.json says of the metrics of a run.

    metric, mode: what the stage is judged by, and whether "max" or "min" is better.
    """
    measured = progress["eval"] or progress["train"]
    return {
        "stage": stage.config.name,
        "seed": stage.run_seed,
        "metric": metric,
        "value": measured[metric],
        "mode": mode,
        "num_steps": stage.config.num_steps,
        "train": progress["train"],
        "eval": progress["eval"],
    }


def open_writer(stage: Stage, step: int) -> logs.MetricWriter:
    """Returns the writer of a stage's metrics, after `step`; process 0 alone writes."""
    is_writer = jax.process_index() == 0
    others = [Trackers(stage.experiment.log, _describe_run(stage))] if is_writer else []
    return logs.MetricWriter(
        stage.workdir, stage.label, step=step, is_writer=is_writer, others=others
    )


def _describe_run(stage: Stage) -> TrackedRun:
    fields = configs.plain(stage.config)
    return TrackedRun(stage.workdir, stage.label, stage.folder, fields)
