"""Saves weights to a folder or file, in any format that can be written."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax_adapt import models
from flax_adapt.base.errors import choose
from flax_adapt.base.hub import weights_path
from flax_adapt.base.paths import local_path
from flax_adapt.base.types import Params
from flax_adapt.weights import loading, strict
from flax_adapt.weights.files.reading import NOTHING
from flax_adapt.weights.formats import hf_vit
from flax_adapt.weights.formats.table import WRITERS
from flax_adapt.weights.loading import PathLike
from flax_adapt.weights.writable import Content


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
    reconstruction: Mapping[str, Any] | None = None,
    format: str = "huggingface",
) -> None:
    """Writes a folder or file in one of WRITERS, whole or not at all.

    format "timm" is a folder, "big_vision" a .npz file, "facebook_mae" and "torchvision" are
    files of safetensors. They cannot hold every config; a UserError then names the field.
    "orbax" is a folder for any config. "huggingface" is a folder for the transformers class
    of `task`: ViTMAEForPreTraining, BertForMaskedLM, ...; for "encoder" ViTModel, or
    ViTMAEModel where the config has a decoder, BertModel, RobertaModel or ResNetModel.
    pooling: used for "classify" only; transformers ignores one that is not its own,
    `from_pretrained` reads it. preprocessor: preprocessor_config.json, see `preprocessor`.
    tokenizer: a folder whose tokenizer is copied. class_names: of the first classes; the
    others are LABEL_i. reconstruction: how a masked autoencoder was trained,
    `normalize_patches` and `hidden_ratio` of the objective. Raises UserError also for
    parameters that do not fit the config, and for an unknown format.
    """
    leaves = strict.flatten(params)
    bias = leaves.get("head/bias")
    num_classes = 1 if bias is None else len(bias)
    model = loading.plain_model(config, task, pooling, num_classes)
    strict.adopt(loading.shapes(model), params)
    content = Content(
        models.complete(config),
        leaves,
        task,
        pooling=pooling,
        preprocessor=preprocessor,
        tokenizer=None if tokenizer is None else weights_path(tokenizer),
        class_names=None if class_names is None else tuple(class_names),
        reconstruction=reconstruction,
    )
    choose("format", format, WRITERS).write(local_path(path), content)


def preprocessor(
    config: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    reading: Mapping[str, Any] = NOTHING,
) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json, for `save`.

    config: the model's. mean, std: of pixels in [0, 1], one number a channel. reading: see
    `save_pretrained`.
    """
    size = config["image_size"]
    return hf_vit.preprocessor_json(size, tuple(mean), tuple(std), reading)
