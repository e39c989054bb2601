"""Loads and saves models with their weights, for users of the library."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.base.hub import weights_path
from flax_adapt.base.types import Key, Params
from flax_adapt.weights import loading, saving, strict
from flax_adapt.weights import reshape as reshaping
from flax_adapt.weights.files.reading import NOTHING
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.loading import Known, PathLike
from flax_adapt.weights.strict import Report


def from_pretrained(
    path: PathLike,
    task: str,
    *,
    fresh: Sequence[str] = (),
    key: Key | None = None,
    reshape: Sequence[str] = (),
    image_size: int | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    decoder: Mapping[str, int] | None = None,
    num_classes: int | None = None,
    pooling: str | None = None,
    dtype: str = "float32",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    format: str | None = None,
    known: Known = NOTHING,
) -> tuple[nn.Module, Params, Report]:
    """Returns (model, parameters, report) of a folder or file; parameters are float32.

    task: "encoder", "classify", "mae" or "mlm". fresh: names or prefixes of leaves to
    initialise anew, such as ("head",), in place of loading them; `key` draws them,
    `num_classes` sizes a fresh head, `decoder` (width, depth, heads, mlp_dim) a fresh
    decoder; None: the paper's. image_size, patch_size, channels: of the model; `reshape`
    names the rules by which weights of other sizes are resized, such as ("position",), see
    the module `reshape`. dtype: of the model's computation. format, known: see `weights`.
    Everything else that is None is taken from the source. Raises UserError for a source that
    is damaged or does not fit the model.
    """
    found, loaded, report = loading.load(
        path, task, pooling=pooling, format=format, known=known
    )
    sizes = dict(image_size=image_size, patch_size=patch_size, channels=channels)
    config = reshaping.resized_config(found, sizes, task, decoder)
    loaded, reshaped = loading.fit(found, loaded, config, reshape)
    model = models.build(
        config,
        task,
        dtype=dtype,
        dropout=dropout,
        drop_path=drop_path,
        pooling=pooling
        or formats.find(weights_path(path), format).pooling(weights_path(path), known),
        num_classes=num_classes or _num_classes(path, task, loaded),
    )
    if fresh and key is None:
        raise UserError(f"fresh={tuple(fresh)} needs a key, such as jax.random.key(0)")
    try:  # Shapes first: a wrong config could ask for parameters of any size.
        params, adopted = strict.adopt(loading.shapes(model), loaded, fresh)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if fresh:
        params, _ = strict.adopt(models.init_params(model, key), loaded, fresh)
    report = report.merge(reshaped).merge(adopted)
    return model, jax.tree.map(jnp.asarray, params), report


@contextlib.contextmanager
def open_params(
    path: PathLike,
    task: str,
    *,
    reshape: Sequence[str],
    sizes: Mapping[str, int],
    format: str | None = None,
    known: Known = NOTHING,
) -> Iterator[Params]:
    """Yields the parameters of `from_pretrained`; `numpy.asarray(parameter)` reads each.

    sizes: image_size, patch_size, channels. The files are open until the end of the
    context. Raises UserError as `from_pretrained` does, for NaN and infinities when a
    parameter is read.
    """
    own = formats.find(weights_path(path), format).pooling(weights_path(path), known)
    opened = loading.open_weights(path, task, pooling=None, format=format, known=known)
    with opened as (found, loaded, _):
        config = reshaping.resized_config(found, sizes, task, None)
        loaded, _ = loading.fit(found, loaded, config, reshape)
        classes = _num_classes(path, task, loaded)
        model = loading.plain_model(config, task, own, classes)
        try:
            params, _ = strict.adopt(loading.shapes(model), loaded)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        yield params


def save_pretrained(
    path: PathLike,
    model: nn.Module,
    params: Params,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    reading: Mapping[str, Any] = NOTHING,
    tokenizer: PathLike | None = None,
    class_names: Sequence[str] | None = None,
    reconstruction: Mapping[str, Any] | None = None,
    format: str = "huggingface",
) -> None:
    """Writes model and parameters as a folder or file of a format (see `save`).

    mean, std: of pixels in [0, 1], one number a channel; with both, preprocessor_config.json
    is written, too. reading: how image files were read where that is not the usual way: fit,
    bits, window, see `data.images.levels`; `image_reading` returns it. tokenizer: a model
    folder whose tokenizer is copied. class_names: of the head's classes. reconstruction: how
    a masked autoencoder was trained, see `save`. Raises UserError where the format cannot
    hold the model.
    """
    images = None
    if mean is not None and std is not None:
        images = saving.preprocessor(models.config_of(model), mean, std, reading)
    saving.save(
        path,
        models.config_of(model),
        params,
        models.task_of(model),
        pooling=getattr(model, "pooling", "cls"),
        preprocessor=images,
        tokenizer=tokenizer,
        class_names=class_names,
        reconstruction=reconstruction,
        format=format,
    )


def _num_classes(path: PathLike, task: str, loaded: Mapping[str, Any]) -> int:
    """Returns the number of outputs of the loaded head; 0 for a task without a head."""
    if task != "classify":
        return 0
    if "head" not in loaded:
        raise UserError(
            f"{path}: has no classifier; give num_classes, fresh=('head',) and key"
        )
    first = next(iter(strict.flatten(loaded["head"]).values()))
    return (1, *first.shape)[-1]
