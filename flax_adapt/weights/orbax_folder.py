"""Checkpoints of our own runs: the parameters alone, without the optimizer's state.

A path is WORKDIR/stages/NAME/checkpoints (its latest step) or .../checkpoints/STEP; the
WORKDIR's config.json tells what model it is.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flax_adapt.errors import UserError
from flax_adapt.weights import fields, reading, strict, translate

STATE, PARAMS, STAGES = "state", "params", "stages"
# Leaves that a task has no place for; a pooler belongs to some classifiers of text.
KEPT = {
    "mae": ("encoder", "decoder"),
    "mlm": ("encoder", "mlm"),
    "encoder": ("encoder",),
    "classify": ("encoder", "head", "pooler"),
}


def detect(path: Path) -> bool:
    """Whether it is a folder of checkpoints, or one of them."""
    return path.is_dir() and _step_folder(path) is not None


def _step_folder(path: Path) -> Path | None:
    """The folder of the step that a path means, if it means one."""
    if (path / STATE).is_dir() and path.name.isdecimal():
        return path
    steps = [p for p in path.iterdir() if p.name.isdecimal() and (p / STATE).is_dir()]
    return max(steps, key=lambda p: int(p.name), default=None)


def _found(path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Returns the folder of the state, the experiment's config and the stage's."""
    folder = _step_folder(path) if path.is_dir() else None
    if folder is None:
        raise UserError(f"{path}: holds no checkpoint; give .../checkpoints[/STEP]")
    parents = folder.absolute().parents
    workdir = next((p.parent for p in parents if p.name == STAGES), None)
    if workdir is None:
        raise UserError(
            f"{path}: is not in WORKDIR/{STAGES}, whose config.json is needed"
        )
    config = reading.read_json(workdir / reading.CONFIG)
    name = folder.absolute().relative_to(workdir / STAGES).parts[0]
    stages = config.get(STAGES)
    sections = stages if isinstance(stages, list) else []
    stage = next(
        (s for s in sections if isinstance(s, dict) and s.get("name") == name), None
    )
    if stage is None or not isinstance(config.get("model"), dict):
        raise UserError(
            f"{workdir}/{reading.CONFIG}: knows no model and stage {name!r}"
        )
    return folder / STATE, config, stage


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model config of the run."""
    fields.check_known(path, known, ())
    state, found, _ = _found(path)
    config = _without_absent(found["model"], _shapes(state))
    fields.check_model(f"{path}: the model of its run", config)
    return config


def _without_absent(model: dict[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The run's config, less the parts that this checkpoint does not have."""
    found = {leaf.split("/")[0] for leaf in shapes}
    absent = {"pooler": False, "decoder": None}
    return model | {k: v for k, v in absent.items() if k in model and k not in found}


def pooling(path: Path) -> str:
    """Returns the pooling of the stage."""
    model = _found(path)[2].get("model")
    return fields.text(model.get("pooling") if isinstance(model, dict) else model)


def class_names(path: Path) -> None:
    """A checkpoint has no names of classes; the stage's export has them."""
    del path


def pixel_statistics(path: Path) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of the stage's images."""
    section = _found(path)[2].get("data")
    if not isinstance(section, dict) or section.get("modality") != "image":
        return None
    names = {"image_mean": section.get("mean"), "image_std": section.get("std")}
    return fields.pixel_statistics(str(path), names)


def _shapes(state: Path) -> dict[str, Any]:
    """{leaf: shape and dtype} of the parameters."""
    try:
        tree = ocp.PyTreeCheckpointer().metadata(state).item_metadata.tree
        return strict.flatten(tree[PARAMS])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{state}: not a readable checkpoint ({type(error).__name__})"
        ) from None


@contextlib.contextmanager
def opened(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> Iterator[translate.Opened]:
    """Gives (model config, {leaf: what reads it}, fields of `strict.Report`).

    The first that is read reads all that `task` has a place for.
    """
    config = model_config(path, known)
    fields.check_task(path, config, task)
    state = _found(path)[0]
    shapes = _shapes(state)
    kept = [part for part in KEPT[task] if part != "pooler" or pooling == "pooler"]
    if config["pooler"] and task == "encoder":
        kept.append("pooler")
    wanted = {leaf: v for leaf, v in shapes.items() if leaf.split("/")[0] in kept}
    ignored = {
        leaf: f"{leaf.split('/')[0]} dropped for task {task}"
        for leaf in shapes
        if leaf not in wanted
    }
    restore = functools.cache(lambda: _restore(state, wanted))

    def lazy(leaf: str) -> translate.LazyLeaf:
        shape = tuple(wanted[leaf].shape)
        return translate.LazyLeaf(shape, lambda: restore()[leaf])

    report = dict(renamed={k: k for k in wanted}, ignored=ignored, converted={})
    yield config, {leaf: lazy(leaf) for leaf in wanted}, report


def _restore(state: Path, wanted: Mapping[str, Any]) -> translate.Leaves:
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in wanted.items()}
    item = {PARAMS: strict.unflatten(shapes)}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    arguments = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
    try:
        tree = ocp.PyTreeCheckpointer().restore(state, args=arguments)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{state}: not a readable checkpoint ({type(error).__name__})"
        ) from None
    return strict.flatten(tree[PARAMS])
