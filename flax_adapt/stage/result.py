"""The result of a stage, result.json: a stage is done if it and the export exist."""

from typing import Any

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
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
