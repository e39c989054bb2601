"""Loads weights from a folder or file of any format: model config, parameters, report."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flax_adapt import models
from flax_adapt.base import hub
from flax_adapt.base.errors import UserError
from flax_adapt.base.hub import weights_path
from flax_adapt.base.types import Params
from flax_adapt.weights import fields, reshape, strict
from flax_adapt.weights.files import reading
from flax_adapt.weights.files.reading import NOTHING
from flax_adapt.weights.formats import hf_vit
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.strict import Report

PathLike = str | Path
Known = Mapping[str, Any]


# Task -> the part of the parameters that only it has. `convert` takes the first one whose part
# is in a file.
PARTS = {"mae": "decoder", "mlm": "mlm", "classify": "head"}


def model_config(
    path: PathLike, *, format: str | None = None, known: Known = NOTHING
) -> dict[str, Any]:
    """Returns the model config (see `models`) of a folder or file.

    Raises UserError for a source that is damaged, or whose model ours cannot compute.
    """
    return formats.find(weights_path(path), format).model_config(
        weights_path(path), known
    )


def class_names(path: PathLike) -> tuple[str, ...] | None:
    """Returns the names of a model's classes; None where they are only LABEL_i."""
    return formats.find(weights_path(path), None).class_names(weights_path(path))


# The pooling of features that means that of a model's own library.
AUTO = "auto"
# Pooling of classifiers with a tanh layer in their head -> the state which that layer reads.
_STATES = {"pooler": "cls"}


def resolve_pooling(
    pooling: str,
    path: PathLike,
    *,
    format: str | None = None,
    known: Known = NOTHING,
) -> str:
    """Returns a pooling of features; for AUTO that of the model's own library.

    The latter is what its classifier reads: CLS for a ViT, CLS and the mean of the patches
    for DINOv2, CLS for BERT, whose classifier reads it through a tanh layer.
    """
    if pooling != AUTO:
        return pooling
    found = formats.find(weights_path(path), format).pooling(weights_path(path), known)
    return _STATES.get(found, found)


def parts(
    path: PathLike, task: str, *, format: str | None = None, known: Known = NOTHING
) -> set[str]:
    """Returns the parts of a model of `task` that a source has, such as "encoder" and "mlm".

    Reads no values of tensors.
    """
    with open_weights(path, task, pooling=None, format=format, known=known) as found:
        return set(found[1])


def does_task(
    path: PathLike, task: str, *, format: str | None = None, known: Known = NOTHING
) -> bool:
    """Returns whether a model has a task, and its weights the part that only that task has."""
    kind = model_config(path, format=format, known=known)["kind"]
    if task not in models.TASKS[kind]:
        return False
    if task not in PARTS:
        return True
    return PARTS[task] in parts(path, task, format=format, known=known)


def load(
    path: PathLike,
    task: str,
    *,
    pooling: str | None,
    format: str | None = None,
    known: Known = NOTHING,
) -> tuple[dict[str, Any], dict[str, Any], Report]:
    """Returns (model config, parameters as float32 numpy arrays, report).

    Tensors of parts that `task` does not have are ignored; the report names the rule. A tensor
    of an unknown name stays among the parameters, and `adopt` reports it as unexpected.
    pooling: of a classifier; None: the source's. A classifier of text has a pooler only with
    pooling "pooler". Raises UserError for a source that is damaged, that holds NaN or
    infinities, or whose model ours cannot compute.
    """
    with open_weights(path, task, pooling=pooling, format=format, known=known) as found:
        config, params, report = found
        return config, jax.tree.map(np.asarray, params), report


@contextlib.contextmanager
def open_weights(
    path: PathLike,
    task: str,
    *,
    pooling: str | None,
    format: str | None = None,
    known: Known = NOTHING,
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Report]]:
    """Yields what `load` returns, but `numpy.asarray(parameter)` reads each parameter.

    This is for files larger than memory. A parameter that is not read has a shape, which is
    enough for `adopt` and `save`. The files are open until the end of the context.
    """
    path = weights_path(path)
    origin = Report(origin=hub.describe_origin(path))
    source = formats.find(path, format)
    own = source.pooling(path, known)
    pooling = formats.pooling_of(own, task, pooling)
    with source.open_source(path, task, pooling, known) as (config, leaves, found):
        if own == formats.AFTER != pooling:
            leaves, found = formats.without_norm(leaves, found)
        sets = Report(**formats.other_sets(path, known))
        yield (
            config,
            strict.unflatten(leaves),
            Report(**found).merge(sets).merge(origin),
        )


def fit(
    old_config: Mapping[str, Any],
    loaded_params: Params,
    new_config: Mapping[str, Any],
    rules: Sequence[str],
) -> tuple[dict[str, Any], Report]:
    """Returns (parameters resized from config `old_config` to config `new_config`, report).

    rules: names of rules of `reshape`; the report lists the resized leaves. Leaves of
    `open_weights` that no rule can resize are not read.
    """
    leaves = strict.flatten(loaded_params)
    for name in (*reshape.POSITIONS, reshape.KERNEL) if rules else ():
        if name in leaves:
            leaves[name] = np.asarray(leaves[name])
    fitted, reshaped = reshape.fit(leaves, old_config, new_config, rules)
    return strict.unflatten(fitted), Report(reshaped=reshaped)


def plain_model(
    config: Mapping[str, Any], task: str, pooling: str, num_classes: int
) -> nn.Module:
    """Returns the model of a task in float32, without dropout."""
    return models.build(
        config,
        task,
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling=pooling,
        num_classes=num_classes,
    )


def shapes(model: nn.Module) -> Params:
    """Returns the tree of a model's parameters, as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda key: models.init_params(model, key), jax.random.key(0))


def reconstruction(path: PathLike, *, format: str | None = None) -> dict[str, Any]:
    """Returns the settings that a masked autoencoder was trained with, if the source has any.

    Keys: normalize_patches, whether the pixels of each patch were normalised
    (norm_pix_loss); hidden_ratio, the share of hidden patches (mask_ratio).
    """
    return formats.reconstruction(weights_path(path), format)


def pixel_statistics(
    path: PathLike, *, format: str | None = None
) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1] that a model was trained with, or None."""
    return formats.find(weights_path(path), format).pixel_statistics(weights_path(path))


def image_reading(path: PathLike) -> dict[str, Any]:
    """Returns how image files were read for a model: fit, bits, window; {}: not told.

    Raises UserError for other fields or types.
    """
    file = weights_path(path) / reading.PREPROCESSOR
    if not file.is_file():
        return {}
    found = reading.read_json(file).get(hf_vit.READING, {})
    kinds = {name: type(value) for name, value in hf_vit.USUAL_READING.items()}
    if not isinstance(found, dict) or any(
        type(value) is not kinds.get(name) for name, value in found.items()
    ):
        raise UserError(
            f"{file}: {hf_vit.READING}={fields.show(found)} must be an object of fit, bits "
            "and window"
        )
    return found
