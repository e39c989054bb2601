"""Weights from any format to any other, tensor by tensor: memory does not limit them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt import models, weights
from flax_adapt.data import tokenizer
from flax_adapt.errors import UserError, choose

# Which part of the parameters a task is for; the first that a file has is taken.
PARTS = {"mae": "decoder", "mlm": "mlm", "classify": "head"}
# Formats of weights alone; what else a source knows stays behind, and is named.
BARE = ("facebook_mae", "big_vision")
NO_TOKENIZER = (*BARE, "timm")


class Converted(NamedTuple):
    """What was written: the report, and what the target has no place for."""

    task: str
    report: weights.Report
    left_out: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    source_format: str | None,
    target_format: str,
    task: str | None,
    known: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> Converted:
    """Writes the weights of `source` to `target`, a folder or file that is not there yet.

    source_format None: what it looks like. task None: the one that needs all that the
    source has. known: see `weights`. changes: fields of the model config that are written
    with another value, where the target's readers know one value only; no tensor changes.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: is there already; delete it or choose another")
    choose("--format", target_format, weights.WRITERS)
    one = weights.formats.find(source, source_format)
    task = task or _task(source, source_format, known)
    beside = _beside(source, one, source_format, known, task)
    pooling = one.pooling(source)
    fields: dict[str, Any] = dict(format=source_format, known=known, pooling=pooling)
    with weights.opened(source, task, **fields) as (config, params, report):
        bad = sorted(set(changes) - set(config))
        if bad:
            raise UserError(f"{source}: its model config has no {', '.join(bad)}")
        left_out = _left_out(target_format, beside)
        weights.save(
            target,
            {**config, **changes},
            params,
            task,
            pooling=pooling,
            format=target_format,
            **{k: None if k in left_out else value for k, value in beside.items()},
        )
    used = tuple(
        leaf for leaves in report.renamed.values() for leaf in leaves.split(", ")
    )
    return Converted(task, report.merge(weights.Report(used=used)), left_out)


def _task(source: Path, source_format: str | None, known: Mapping[str, Any]) -> str:
    """The task that has a place for all that the source has."""
    kind = weights.model_config(source, format=source_format, known=known)["kind"]
    for task in (task for task in PARTS if task in models.TASKS[kind]):
        fields: dict[str, Any] = dict(format=source_format, known=known, pooling=None)
        with weights.opened(source, task, **fields) as (_, params, _):
            if PARTS[task] in params:
                return task
    return "encoder"


def _beside(
    source: Path,
    one: weights.formats.Format,
    source_format: str | None,
    known: Mapping[str, Any],
    task: str,
) -> dict[str, Any]:
    """What a source holds beside its tensors, as `weights.save` takes it."""
    config = weights.model_config(source, format=source_format, known=known)
    statistics = one.pixel_statistics(source) if config["kind"] == "vit" else None
    own = any((source / name).is_file() for name in tokenizer.FILES)
    return {
        "class_names": one.class_names(source) if task == "classify" else None,
        "tokenizer": source if own else None,
        "preprocessor": weights.preprocessor(config, *statistics)
        if statistics
        else None,
    }


def _left_out(target_format: str, beside: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of what the target has no place for."""
    no_place = {
        "class_names": BARE,
        "tokenizer": NO_TOKENIZER,
        "preprocessor": BARE,
    }
    given = [name for name, value in beside.items() if value is not None]
    return tuple(name for name in given if target_format in no_place[name])
