"""Models with their weights, as users of the library read and write them."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt import models
from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import user_path
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
    """Returns (model, parameters, report) of a folder or file.

    fresh: leaves or prefixes that the source lacks, such as ("head",); `key` draws
    them, `num_classes` sizes a fresh head, `decoder` (width, depth, heads, mlp_dim) a
    fresh decoder; None: the paper's. image_size, patch_size, channels: of the model;
    `reshape` names what may be made to fit, such as ("position",), see `reshape`.
    Everything else that is None is the source's.
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
        or formats.find(user_path(path), format).pooling(user_path(path), known),
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


def save_pretrained(
    path: PathLike,
    model: nn.Module,
    params: Params,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tokenizer: PathLike | None = None,
    class_names: Sequence[str] | None = None,
    reconstruction: Mapping[str, Any] | None = None,
    format: str = "huggingface",
) -> None:
    """Writes model and parameters as a folder or file of a format (see `save`).

    mean, std of pixels in [0, 1], one a channel: also writes preprocessor_config.json.
    tokenizer: a model folder whose tokenizer is copied. class_names: of the head.
    reconstruction: how a masked autoencoder was trained, see `save`.
    """
    images = None
    if mean is not None and std is not None:
        images = saving.preprocessor(models.config_of(model), mean, std)
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
    """The size of the head in the folder; a task without a head has 0."""
    if task != "classify":
        return 0
    if "head" not in loaded:
        raise UserError(
            f"{path}: has no classifier; give num_classes, fresh=('head',) and key"
        )
    first = next(iter(strict.flatten(loaded["head"]).values()))
    return (1, *first.shape)[-1]
