"""Weights in and out: Hugging Face folders, strictly checked.

    config, loaded, report = weights.load(path, "classify")   # renames, converts
    params, report = weights.adopt(init, loaded, ("head",))   # judges, strictly

`from_pretrained` and `save_pretrained` do all of it for library users.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt import models
from flax_adapt.errors import UserError, choose
from flax_adapt.types import Key, Params
from flax_adapt.weights import huggingface, safetensors_folder, strict
from flax_adapt.weights.strict import Report, adopt

__all__ = [
    "Report",
    "adopt",
    "from_pretrained",
    "load",
    "model_config",
    "save",
    "save_pretrained",
]

PathLike = str | Path


def model_config(path: PathLike) -> dict[str, Any]:
    """Returns the model config (see `models`) of a Hugging Face folder."""
    return huggingface.model_config(Path(path))


def load(path: PathLike, task: str) -> tuple[dict[str, Any], dict[str, Any], Report]:
    """Returns (model config, parameters as float32 numpy arrays, report) of a folder.

    What `task` has no place for is ignored by a rule that the report names. A tensor of
    an unknown name is carried along; `adopt` then says that it is unexpected.
    """
    choose("task", task, models.TASKS)
    config, leaves, found = huggingface.read(Path(path), task)
    return config, strict.unflatten(leaves), Report(**found)


def save(
    path: PathLike,
    config: Mapping[str, Any],
    params: Params,
    task: str,
    *,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
) -> None:
    """Writes a Hugging Face folder, whole or not at all.

    Task "mae" becomes ViTMAEForPreTraining, "classify" ViTForImageClassification,
    "encoder" ViTModel, or ViTMAEModel where the config has a decoder. `pooling` matters
    to "classify" only; transformers ignores "mean", `from_pretrained` does not.
    """
    leaves = strict.flatten(params)
    bias = leaves.get("head/bias")
    model = models.build(
        config,
        task,
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling=pooling,
        num_classes=1 if bias is None else len(bias),
    )
    strict.adopt(_shapes(model), params)
    huggingface.write(
        Path(path), config, leaves, task, pooling=pooling, preprocessor=preprocessor
    )


def from_pretrained(
    path: PathLike,
    task: str,
    *,
    fresh: Sequence[str] = (),
    key: Key | None = None,
    num_classes: int | None = None,
    pooling: str | None = None,
    dtype: str = "float32",
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> tuple[nn.Module, Params, Report]:
    """Returns (model, parameters, report) of a Hugging Face folder.

    fresh: leaves or prefixes that the folder lacks, such as ("head",); `key` draws
    them, `num_classes` sizes a fresh head. num_classes, pooling None: the folder's.
    """
    config, loaded, report = load(path, task)
    model = models.build(
        config,
        task,
        dtype=dtype,
        dropout=dropout,
        drop_path=drop_path,
        pooling=pooling or _pooling(path),
        num_classes=num_classes or _num_classes(path, task, loaded),
    )
    if fresh and key is None:
        raise UserError(f"fresh={tuple(fresh)} needs a key, such as jax.random.key(0)")
    init = models.init_params(model, key) if fresh else _shapes(model)
    try:
        params, adopted = adopt(init, loaded, fresh)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return model, jax.tree.map(jnp.asarray, params), report.merge(adopted)


def save_pretrained(
    path: PathLike,
    model: nn.Module,
    params: Params,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Writes model and parameters as a Hugging Face folder (see `save`).

    mean, std of pixels in [0, 1], one a channel: also writes preprocessor_config.json.
    """
    decoder = model.decoder_config if isinstance(model, models.MAE) else None
    config = dataclasses.asdict(model.config)
    config["decoder"] = None if decoder is None else dataclasses.asdict(decoder)
    preprocessor = None
    if mean is not None and std is not None:
        size = model.config.image_size
        preprocessor = huggingface.preprocessor_json(size, tuple(mean), tuple(std))
    pooling = model.pooling if isinstance(model, models.Classifier) else "cls"
    task = models.task_of(model)
    save(path, config, params, task, pooling=pooling, preprocessor=preprocessor)


def _shapes(model: nn.Module) -> Params:
    return jax.eval_shape(lambda key: models.init_params(model, key), jax.random.key(0))


def _pooling(path: PathLike) -> str:
    """What our own export says; every other classifier pools by CLS."""
    theirs = safetensors_folder.read_json(Path(path) / safetensors_folder.CONFIG)
    return theirs.get("pooling", "cls")


def _num_classes(path: PathLike, task: str, loaded: Mapping[str, Any]) -> int:
    """The size of the head in the folder; a task without a head has 0."""
    if task != "classify":
        return 0
    if "head" not in loaded:
        raise UserError(
            f"{path}: has no classifier; give num_classes, fresh=('head',) and key"
        )
    return next(iter(loaded["head"].values())).shape[-1]


def pixel_statistics(path: PathLike) -> tuple[list[float], list[float]] | None:
    """(mean, std) of pixels in [0, 1] of a folder's preprocessor_config.json, if any."""
    file = Path(path) / safetensors_folder.PREPROCESSOR
    if not file.is_file():
        return None
    theirs = safetensors_folder.read_json(file)
    return theirs["image_mean"], theirs["image_std"]
