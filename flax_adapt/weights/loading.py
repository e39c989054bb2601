"""Weights from a folder or file of any format: model config, parameters, report."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flax_adapt import models
from flax_adapt.base.paths import user_path
from flax_adapt.base.types import Params
from flax_adapt.weights import reshape, strict
from flax_adapt.weights.files.reading import NOTHING
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.strict import Report

PathLike = str | Path
Known = Mapping[str, Any]


def model_config(
    path: PathLike, *, format: str | None = None, known: Known = NOTHING
) -> dict[str, Any]:
    """Returns the model config (see `models`) of a folder or file."""
    return formats.find(user_path(path), format).model_config(user_path(path), known)


def class_names(path: PathLike) -> tuple[str, ...] | None:
    """Returns the names of a model's classes; None where they are only LABEL_i."""
    return formats.find(user_path(path), None).class_names(user_path(path))


def parts(
    path: PathLike, task: str, *, format: str | None = None, known: Known = NOTHING
) -> set[str]:
    """Returns the parts of `task` that a source holds: encoder, mlm, ...; reads no tensor."""
    with open_weights(path, task, pooling=None, format=format, known=known) as found:
        return set(found[1])


def load(
    path: PathLike,
    task: str,
    *,
    pooling: str | None,
    format: str | None = None,
    known: Known = NOTHING,
) -> tuple[dict[str, Any], dict[str, Any], Report]:
    """Returns (model config, parameters as float32 numpy arrays, report).

    Tensors that `task` has no place for are ignored by a rule that the report names. A
    tensor of an unknown name is carried along; `adopt` then says that it is unexpected.
    pooling: of a classifier; one of text has a pooler with "pooler" only. None: the
    source's. Raises UserError for a source that is damaged, holds NaN or infinities, or a
    model that ours cannot compute.
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
    """As `load`, for files larger than memory: `numpy.asarray` reads a parameter.

    Until then a parameter has a shape alone, which is enough for `adopt` and `save`.
    """
    path = user_path(path)
    source = formats.find(path, format)
    own = source.pooling(path, known)
    pooling = formats.pooling_of(own, task, pooling)
    with source.open_source(path, task, pooling, known) as (config, leaves, found):
        if own == formats.AFTER != pooling:
            leaves, found = formats.without_norm(leaves, found)
        sets = Report(**formats.other_sets(path, known))
        yield config, strict.unflatten(leaves), Report(**found).merge(sets)


def fit(
    found: Mapping[str, Any],
    loaded_params: Params,
    wanted: Mapping[str, Any],
    rules: Sequence[str],
) -> tuple[dict[str, Any], Report]:
    """Returns the parameters of a model config `found`, resized for the config `wanted`.

    rules: names of what may be resized, see `reshape`; the report lists what was.
    """
    leaves = strict.flatten(loaded_params)
    fitted, reshaped = reshape.fit(leaves, found, wanted, rules)
    return strict.unflatten(fitted), Report(reshaped=reshaped)


def plain_model(
    config: Mapping[str, Any], task: str, pooling: str, num_classes: int
) -> nn.Module:
    """Returns the model of a task in float32, which drops nothing."""
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
    """Returns the parameters of a model as shapes and dtypes alone."""
    return jax.eval_shape(lambda key: models.init_params(model, key), jax.random.key(0))


def reconstruction(path: PathLike, *, format: str | None = None) -> dict[str, Any]:
    """Returns how a masked autoencoder was trained, as far as the source tells.

    normalize_patches: whether the pixels of each patch were normalised (norm_pix_loss);
    hidden_ratio: the share of patches that were hidden (mask_ratio). {}: nothing.
    """
    return formats.reconstruction(user_path(path), format)


def pixel_statistics(
    path: PathLike, *, format: str | None = None
) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1] that a model was trained with, if known."""
    return formats.find(user_path(path), format).pixel_statistics(user_path(path))
