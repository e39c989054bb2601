"""Embeddings of images or texts by a model on disk (a Hugging Face folder)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt import data, defaults, models, sharding, weights
from flax_adapt.data import image
from flax_adapt.evals import features
from flax_adapt.evals.features import Features

log = logging.getLogger(__name__)


def image_section(path: Path, source: str, split: str, **changes: Any) -> ConfigDict:
    """The data section that fits a ViT: its size, channels, mean and std."""
    arch = weights.model_config(path)
    channels = arch["channels"]
    mean, std = defaults.pixel_statistics(str(path), channels)
    if weights.pixel_statistics(path) is None:
        log.warning("%s has no preprocessor_config.json: mean %s", path, mean)
    fits = dict(
        image_size=arch["image_size"], channels=channels, mean=mean, std=std, **changes
    )
    return ConfigDict(defaults.image_data(source, split, **fits)).lock()


def text_section(path: Path, source: str, split: str, **changes: Any) -> ConfigDict:
    """The data section that fits a BERT: its own tokenizer."""
    return ConfigDict(defaults.text_data(source, split, str(path), **changes)).lock()


def extract(
    path: Path,
    examples: data.Examples,
    *,
    fit: Mapping[str, Any],
    pooling: str,
    batch_size: int,
    precision: str,
    mesh: Any,
) -> Features:
    """Returns the pooled states of the last layer, [n, D], of every example.

    fit: what of `from_pretrained` makes the weights fit other images, or {}.
    """
    model, params, _ = weights.from_pretrained(path, "encoder", dtype=precision, **fit)
    if isinstance(examples, data.TextExamples):
        models.check_fits(model.config, **examples.row_sizes)
    params = sharding.put(params, mesh)

    @jax.jit
    def encode(params, inputs):
        if model.modality == "image":
            inputs = image.preprocess(inputs, None, examples.config, False)
        return model.apply({"params": params}, inputs, pooling, method="embed")

    def encode_batch(batch):
        inputs = batch[model.modality]
        return encode(params, sharding.put_batch(inputs, mesh))

    batches = data.eval_batches(examples, batch_size, 0, 1)
    return features.extract(encode_batch, batches)
