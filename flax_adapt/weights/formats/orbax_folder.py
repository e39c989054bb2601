"""Checkpoints of our own runs, and folders with one checkpoint that `save` writes.

The path of a run's checkpoint is WORKDIR/stages/NAME/checkpoints (the latest step) or
.../checkpoints/STEP. The model config is in the WORKDIR's config.json; the optimizer's state is
not read. The parameters are the trained ones, not their average (`ema`). A folder of `save`
has a model.json and the parameters.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.models import batch_stats
from flax_adapt.weights import extras, fields, lora, writable
from flax_adapt.weights.files import files, reading, writing
from flax_adapt.weights.files.files import LazyTensor
from flax_adapt.weights.names import translate
from flax_adapt.weights.writable import Content

STAGES, RECONSTRUCTION = "stages", "reconstruction"
# Task -> parts of the parameters that it has; "pooler" only in some classifiers of text.
KEPT = {
    "mae": ("encoder", "decoder"),
    "mlm": ("encoder", "mlm"),
    "encoder": ("encoder", batch_stats.NAME),
    "classify": ("encoder", "head", "pooler", batch_stats.NAME),
}


class _Folder(NamedTuple):
    """A checkpoint and its description in the config of its run.

    where: the JSON file with the config. state: the folder of the arrays. pixels: image_mean
    and image_std, or None. labels: has the names of classes, if any. lora: the stage's
    section, or None. reconstruction: fields of the stage's objective.
    """

    where: Path
    state: Path
    model: dict[str, Any]
    pooling: Any
    pixels: dict[str, Any] | None
    labels: dict[str, Any]
    lora: Any
    reconstruction: dict[str, Any]

    def tensors(self) -> dict[str, LazyTensor]:
        """Returns {leaf: LazyTensor}; low-rank adaptors are merged into their kernels."""
        from flax_adapt.weights.files import orbax_arrays  # imports Orbax

        return lora.merge_lazy(
            self.state, orbax_arrays.open_tensors(self.state), self.lora
        )


def detect(path: Path) -> bool:
    """Whether a path is a folder of checkpoints, or one checkpoint."""
    return path.is_dir() and (_is_written(path) or _step_folder(path) is not None)


def _is_written(path: Path) -> bool:
    return (path / writing.STATE).is_dir() and files.is_file(path / writing.MODEL)


def _step_folder(path: Path) -> Path | None:
    """Returns the folder of one step: the path itself, or the latest in it; else None."""
    if (path / writing.STATE).is_dir() and path.name.isdecimal():
        return path
    steps = [
        step
        for step in path.iterdir()
        if step.name.isdecimal() and (step / writing.STATE).is_dir()
    ]
    return max(steps, key=lambda step: int(step.name), default=None)


def _read_folder(path: Path) -> _Folder:
    if path.is_dir() and _is_written(path):
        return _read_written(path)
    folder = _step_folder(path) if path.is_dir() else None
    if folder is None:
        raise UserError(f"{path}: holds no checkpoint; give .../checkpoints[/STEP]")
    parents = folder.absolute().parents
    workdir = next((p.parent for p in parents if p.name == STAGES), None)
    if workdir is None:
        raise UserError(
            f"{path}: is not in WORKDIR/{STAGES}, whose config.json is needed"
        )
    where = workdir / reading.CONFIG
    config = reading.read_json(where)
    name = folder.absolute().relative_to(workdir / STAGES).parts[0]
    stages = config.get(STAGES)
    sections = stages if isinstance(stages, list) else []
    named = (s for s in sections if isinstance(s, dict) and s.get("name") == name)
    stage = next(named, None)
    if stage is None or not isinstance(config.get("model"), dict):
        raise UserError(f"{where}: knows no model and stage {name!r}")
    options, pixels = _section(stage, "model"), None
    model = _model_of(config["model"], options)
    data = _section(stage, "data")
    if data.get("modality") == "image":
        pixels = {"image_mean": data.get("mean"), "image_std": data.get("std")}
    state = folder / writing.STATE
    pooling, section = options.get("pooling"), options.get("lora")
    masked = _masked_fields(_section(stage, "objective"))
    return _Folder(where, state, model, pooling, pixels, {}, section, masked)


def _masked_fields(objective: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields OF_RECONSTRUCTION of an objective with a part of MAE; else {}."""
    reconstructs = objective.get("name") == "reconstruct"
    part = objective if reconstructs else _section(objective, "masked")
    return {name: part[name] for name in fields.OF_RECONSTRUCTION if name in part}


def _model_of(model: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the model config of a stage, with its own last block and adaptors, if any."""
    parts = {name: options.get(name) for name in ("resize", "adaptor")}
    try:
        return models.of_stage(model, parts)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"a stage's model={fields.show(parts)} is not complete"
        ) from None


def _section(stage: dict[str, Any], name: str) -> dict[str, Any]:
    found = stage.get(name)
    return found if isinstance(found, dict) else {}


def _read_written(path: Path) -> _Folder:
    where, pixels = path / writing.MODEL, None
    content = reading.read_json(where)
    if not isinstance(content.get("model"), dict):
        raise UserError(f"{where}: has no model")
    if files.is_file(path / reading.PREPROCESSOR):
        pixels = reading.read_json(path / reading.PREPROCESSOR)
    state = path / writing.STATE
    masked = _section(content, RECONSTRUCTION)
    pooling = content.get("pooling")
    return _Folder(
        where, state, content["model"], pooling, pixels, content, None, masked
    )


def model_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model config of the run."""
    fields.check_known(path, known, ())
    found = _read_folder(path)
    return _config(path, found, found.tensors())


def _config(
    path: Path, found: _Folder, tensors: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    """Returns the model config of the run, without parts that the checkpoint lacks."""
    parts = {leaf.split("/")[0] for leaf in tensors}
    absent = {"pooler": False, "decoder": None}
    absent = {k: v for k, v in absent.items() if k in found.model and k not in parts}
    config = found.model | absent
    where = f"{path}: the model of its run"
    fields.check_model(where, config)
    config = models.complete(config)
    extras.check(where, config)
    return config


def pooling(path: Path, known: Mapping[str, Any]) -> str:
    """Returns the pooling of the stage."""
    del known
    return fields.text(_read_folder(path).pooling)


def class_names(path: Path) -> tuple[str, ...] | None:
    """Returns the names of classes or None. A run's checkpoint has none, but the export has."""
    found = _read_folder(path)
    return fields.class_names(str(found.where), found.labels)


def pixel_statistics(path: Path) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of the stage's images, or None."""
    pixels = _read_folder(path).pixels
    return None if pixels is None else fields.pixel_statistics(str(path), pixels)


def reconstruction(path: Path) -> dict[str, Any]:
    """Returns the settings that a masked autoencoder was trained with, if the folder has them."""
    found = _read_folder(path)
    names = {name: name for name in fields.OF_RECONSTRUCTION}
    fields.check_reconstruction(str(found.where), found.reconstruction, names)
    return found.reconstruction


@contextlib.contextmanager
def open_source(
    path: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> Iterator[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    fields.check_known(path, known, ())
    found = _read_folder(path)
    tensors = found.tensors()
    config = _config(path, found, tensors)
    fields.check_task(path, config, task)
    kept = [part for part in KEPT[task] if part != "pooler" or pooling == "pooler"]
    if task == "encoder" and config.get("pooler"):
        kept.append("pooler")
    wanted = {k: tensor for k, tensor in tensors.items() if k.split("/")[0] in kept}
    ignored = {
        leaf: f"{leaf.split('/')[0]} dropped for task {task}"
        for leaf in tensors
        if leaf not in wanted
    }
    dtypes = {leaf: tensor.dtype for leaf, tensor in wanted.items()}
    report = dict(
        renamed={leaf: leaf for leaf in wanted},
        ignored=ignored,
        converted={leaf: dtype for leaf, dtype in dtypes.items() if dtype != "float32"},
    )
    lazy = {k: translate.LazyLeaf(one.shape, one.get) for k, one in wanted.items()}
    yield config, lazy, report


def write(path: Path, content: Content) -> None:
    """Writes a folder with the model config in it; it can hold any config and task."""
    from flax_adapt.weights.files import orbax_arrays  # imports Orbax

    writable.check_class_names(path, content)
    model: dict[str, Any] = {"model": dict(content.config), "pooling": content.pooling}
    if content.class_names:
        model |= fields.labels_json(content.num_classes, content.class_names)
    if content.reconstruction is not None:
        model[RECONSTRUCTION] = dict(content.reconstruction)
    jsons = {writing.MODEL: model}
    if content.preprocessor is not None:
        jsons[reading.PREPROCESSOR] = dict(content.preprocessor)
    tokenizer = content.tokenizer
    copied = writing.tokenizer_files(tokenizer) if tokenizer else []
    writing.write_folder(
        path,
        lambda folder: orbax_arrays.write(folder / writing.STATE, content.leaves),
        jsons,
        copied,
    )
