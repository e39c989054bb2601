"""Weights in and out, strictly checked, in every format of `formats.FORMATS`.

    config, loaded, report = weights.load(path, "classify", pooling="cls")  # renames
    params, report = weights.adopt(init, loaded, ("head",))   # judges, strictly

`fit` between the two makes weights of another image size, patch size or number of channels
fit. `from_pretrained` and `save_pretrained` do all of it for library users.

format: one of FORMATS; None is what `path` looks like. known: what a file of a ViT
without a config does not tell, of "heads", "decoder_heads", "gelu", "layer_norm_eps".
"""

import contextlib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Key, Params
from flax_adapt.weights import reshape as reshaping
from flax_adapt.weights import strict
from flax_adapt.weights.fields import KNOWN
from flax_adapt.weights.formats import hf_vit
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.formats.table import FORMATS, WRITERS, told
from flax_adapt.weights.strict import Report, adopt

__all__ = [
    "FORMATS",
    "KNOWN",
    "WRITERS",
    "Report",
    "adopt",
    "class_names",
    "fit",
    "from_pretrained",
    "load",
    "model_config",
    "opened",
    "parts",
    "pixel_statistics",
    "preprocessor",
    "save",
    "save_pretrained",
    "shapes",
    "told",
]

PathLike = str | Path
Known = Mapping[str, Any]
NOTHING: Known = types.MappingProxyType({})


def model_config(
    path: PathLike, *, format: str | None = None, known: Known = NOTHING
) -> dict[str, Any]:
    """Returns the model config (see `models`) of a folder or file."""
    return formats.find(Path(path), format).model_config(Path(path), known)


def class_names(path: PathLike) -> tuple[str, ...] | None:
    """Returns the names of a model's classes; None where they are only LABEL_i."""
    return formats.find(Path(path), None).class_names(Path(path))


def parts(
    path: PathLike, task: str, *, format: str | None = None, known: Known = NOTHING
) -> set[str]:
    """What a model holds of what `task` needs: encoder, mlm, ...; no tensor is read."""
    with opened(path, task, pooling=None, format=format, known=known) as found:
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

    What `task` has no place for is ignored by a rule that the report names. A tensor of
    an unknown name is carried along; `adopt` then says that it is unexpected.
    pooling: of a classifier; one of text has a pooler with "pooler" only. None: the
    source's.
    """
    with opened(path, task, pooling=pooling, format=format, known=known) as found:
        config, params, report = found
        return config, jax.tree.map(np.asarray, params), report


@contextlib.contextmanager
def opened(
    path: PathLike,
    task: str,
    *,
    pooling: str | None,
    format: str | None = None,
    known: Known = NOTHING,
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Report]]:
    """As `load`, for files larger than memory: `numpy.asarray` reads a parameter.

    Before that it has its shape alone, with which `adopt` and `save` work as well.
    """
    path = Path(path)
    source = formats.find(path, format)
    own = source.pooling(path)
    pooling = formats.pooling_of(own, task, pooling)
    with source.opened(path, task, pooling, known) as (config, leaves, found):
        if own == formats.AFTER != pooling:
            leaves, found = formats.without_norm(leaves, found)
        yield config, strict.unflatten(leaves), Report(**found)


def fit(
    found: Mapping[str, Any],
    loaded_params: Params,
    wanted: Mapping[str, Any],
    rules: Sequence[str],
) -> tuple[dict[str, Any], Report]:
    """Returns parameters of the model config `found` made to fit `wanted`.

    rules: what may be done, see `reshape`; the report says what was done.
    """
    leaves = strict.flatten(loaded_params)
    fitted, reshaped = reshaping.fit(leaves, found, wanted, rules)
    return strict.unflatten(fitted), Report(reshaped=reshaped)


def save(
    path: PathLike,
    config: Mapping[str, Any],
    params: Params,
    task: str,
    *,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
    tokenizer: PathLike | None,
    class_names: Sequence[str] | None,
    format: str = "huggingface",
) -> None:
    """Writes a folder or file, one of WRITERS, whole or not at all.

    "timm" is a folder, "big_vision" a .npz file, "facebook_mae" and "torchvision" are ones
    of safetensors; they cannot hold every config, and the error says which field. "orbax"
    is a folder that holds all. Of "huggingface" the class is that of `task` in
    transformers: ViTMAEForPreTraining, BertForMaskedLM, ...; "encoder" is ViTModel, or
    ViTMAEModel where the config has a decoder, BertModel, RobertaModel or ResNetModel.
    pooling: matters to "classify" only; transformers ignores one that is not its own,
    `from_pretrained` does not. tokenizer: a folder whose tokenizer is copied.
    class_names: of the first classes; the others are LABEL_i.
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
    strict.adopt(shapes(model), params)
    choose("format", format, WRITERS).write(
        Path(path),
        config,
        leaves,
        task,
        pooling=pooling,
        preprocessor=preprocessor,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        class_names=None if class_names is None else tuple(class_names),
    )


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
    found, loaded, report = load(
        path, task, pooling=pooling, format=format, known=known
    )
    sizes = dict(image_size=image_size, patch_size=patch_size, channels=channels)
    config = reshaping.wanted_config(found, sizes, task, decoder)
    loaded, reshaped = fit(found, loaded, config, reshape)
    model = models.build(
        config,
        task,
        dtype=dtype,
        dropout=dropout,
        drop_path=drop_path,
        pooling=pooling or formats.find(Path(path), format).pooling(Path(path)),
        num_classes=num_classes or _num_classes(path, task, loaded),
    )
    if fresh and key is None:
        raise UserError(f"fresh={tuple(fresh)} needs a key, such as jax.random.key(0)")
    try:  # Shapes first: a wrong config could ask for parameters of any size.
        params, adopted = adopt(shapes(model), loaded, fresh)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if fresh:
        params, _ = adopt(models.init_params(model, key), loaded, fresh)
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
    format: str = "huggingface",
) -> None:
    """Writes model and parameters as a folder or file of a format (see `save`).

    mean, std of pixels in [0, 1], one a channel: also writes preprocessor_config.json.
    tokenizer: a model folder whose tokenizer is copied. class_names: of the head.
    """
    images = None
    if mean is not None and std is not None:
        images = preprocessor(models.config_of(model), mean, std)
    save(
        path,
        models.config_of(model),
        params,
        models.task_of(model),
        pooling=getattr(model, "pooling", "cls"),
        preprocessor=images,
        tokenizer=tokenizer,
        class_names=class_names,
        format=format,
    )


def preprocessor(
    config: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Returns preprocessor_config.json, as `save` takes it; `config` is the model's."""
    return hf_vit.preprocessor_json(config["image_size"], tuple(mean), tuple(std))


def shapes(model: nn.Module) -> Params:
    """Returns the parameters of a model as shapes and dtypes alone."""
    return jax.eval_shape(lambda key: models.init_params(model, key), jax.random.key(0))


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


def pixel_statistics(
    path: PathLike, *, format: str | None = None
) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1] that a model was trained with, if known."""
    return formats.find(Path(path), format).pixel_statistics(Path(path))
