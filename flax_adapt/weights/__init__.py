"""Weights in and out: Hugging Face folders, strictly checked.

    config, loaded, report = weights.load(path, "classify", pooling="cls")  # renames
    params, report = weights.adopt(init, loaded, ("head",))   # judges, strictly

`from_pretrained` and `save_pretrained` do all of it for library users.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt import models
from flax_adapt.errors import UserError
from flax_adapt.types import Key, Params
from flax_adapt.weights import hf_vit, huggingface, reading, strict
from flax_adapt.weights.strict import Report, adopt

__all__ = [
    "Report",
    "adopt",
    "class_names",
    "from_pretrained",
    "load",
    "model_config",
    "parts",
    "pixel_statistics",
    "save",
    "save_pretrained",
]

PathLike = str | Path


def model_config(path: PathLike) -> dict[str, Any]:
    """Returns the model config (see `models`) of a Hugging Face folder."""
    return huggingface.model_config(Path(path))


def class_names(path: PathLike) -> tuple[str, ...] | None:
    """Returns the names of a folder's classes; None where they are only LABEL_i."""
    return huggingface.class_names(Path(path))


def parts(path: PathLike) -> set[str]:
    """What a folder holds of encoder, decoder, mlm, pooler, head; no tensor is read."""
    return huggingface.parts(Path(path))


def load(
    path: PathLike, task: str, *, pooling: str | None
) -> tuple[dict[str, Any], dict[str, Any], Report]:
    """Returns (model config, parameters as float32 numpy arrays, report) of a folder.

    What `task` has no place for is ignored by a rule that the report names. A tensor of
    an unknown name is carried along; `adopt` then says that it is unexpected.
    pooling: of a classifier; one of text has a pooler with "pooler" only. None: the
    folder's.
    """
    path = Path(path)
    pooling = pooling or huggingface.pooling(path)
    config, leaves, found = huggingface.read(path, task, pooling)
    return config, strict.unflatten(leaves), Report(**found)


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
) -> None:
    """Writes a Hugging Face folder, whole or not at all.

    The class is that of `task` in transformers: ViTMAEForPreTraining,
    ViTForImageClassification, BertForMaskedLM, ...; "encoder" is ViTModel, or
    ViTMAEModel where the config has a decoder, BertModel or RobertaModel.
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
    strict.adopt(_shapes(model), params)
    huggingface.write(
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
    pooling = pooling or huggingface.pooling(Path(path))
    config, loaded, report = load(path, task, pooling=pooling)
    model = models.build(
        config,
        task,
        dtype=dtype,
        dropout=dropout,
        drop_path=drop_path,
        pooling=pooling,
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
    tokenizer: PathLike | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes model and parameters as a Hugging Face folder (see `save`).

    mean, std of pixels in [0, 1], one a channel: also writes preprocessor_config.json.
    tokenizer: a model folder whose tokenizer is copied. class_names: of the head.
    """
    preprocessor = None
    if mean is not None and std is not None:
        size = model.config.image_size
        preprocessor = hf_vit.preprocessor_json(size, tuple(mean), tuple(std))
    save(
        path,
        models.config_of(model),
        params,
        models.task_of(model),
        pooling=getattr(model, "pooling", "cls"),
        preprocessor=preprocessor,
        tokenizer=tokenizer,
        class_names=class_names,
    )


def _shapes(model: nn.Module) -> Params:
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


def pixel_statistics(path: PathLike) -> tuple[list[float], list[float]] | None:
    """(mean, std) of pixels in [0, 1] of a folder's preprocessor_config.json, if any."""
    file = Path(path) / reading.PREPROCESSOR
    if not file.is_file():
        return None
    theirs = reading.read_json(file)
    return theirs["image_mean"], theirs["image_std"]
