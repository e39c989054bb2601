"""The result of a stage: with its export it says that the stage is done."""

from typing import Any

from flax_adapt.base import logs
from flax_adapt.base.errors import UserError
from flax_adapt.stage.stage import Stage

RESULT = "result.json"
RESULT_FIELDS = ("stage", "seed", "metric", "value", "mode", "seconds", "train", "eval")


def has_export(stage: Stage) -> bool:
    """Whether the folder of weights that the stage left is there."""
    export = stage.folder / "export"
    return (export / "config.json").exists() and any(export.glob("*.safetensors"))


def is_done(stage: Stage) -> bool:
    """Whether there is a result and the export that belongs to it.

    An export that was deleted is made again from the last checkpoint. Raises UserError
    where there is none.
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
