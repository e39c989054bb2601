"""Replaces the last block of loaded weights by that of a stage's `model.resize`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flax_adapt import data, models, weights
from flax_adapt.base.types import Array, Batch, Params
from flax_adapt.data.images import image
from flax_adapt.surgery import SURGERY, TrainedBlock, last_block, moments
from flax_adapt.train import sharding
from flax_adapt.weights import strict

_DRAW = 0x7FFFFFFD  # no step has this number, so the new block has a key of its own


def resize(
    loaded_config: Mapping[str, Any],
    loaded: Params,
    init: Params,
    section: Any,
    components_dD: np.ndarray | None,
    seed: int,
) -> tuple[dict[str, Any], weights.Report, tuple[str, ...]]:
    """Returns (parameters, report, names of new leaves, which have their values in `init`).

    loaded_config: the model config of `loaded`. init: randomly initialised parameters of the new
    model. section: `model.resize`. components_dD: see `principal_components`.
    """
    key = jax.random.fold_in(jax.random.key(seed), _DRAW)
    leaves = (strict.flatten(loaded), strict.flatten(init))
    trained = TrainedBlock(*leaves, loaded_config, section, key, components_dD)
    done = SURGERY[loaded_config["kind"]].resize(trained)
    return (
        strict.unflatten(done.leaves),
        weights.Report(reshaped=done.rules),
        done.fresh,
    )


def principal_components(
    loaded_config: Mapping[str, Any],
    loaded: Params,
    section: Any,
    examples: data.Examples,
    *,
    batch_size: int,
    precision: str,
    mesh: Mesh,
) -> np.ndarray | None:
    """Returns principal components float64 [D, width] for the init "pca", None for others.

    They are of the features of all `examples`, in one pass without augmentation or masks.
    loaded_config: the model config of `loaded`. section: `model.resize`.
    """
    if section.init != "pca":
        return None
    encoder = {"encoder": loaded["encoder"]}
    params = sharding.put(encoder, mesh)
    of_batch = jax.jit(
        _batch_moments(loaded_config, section, examples.config, precision, mesh)
    )
    total = moments.empty(loaded_config["width"])
    batches = data.eval_batches(examples, batch_size, *sharding.share_of_process(mesh))
    for batch in batches:
        parts = of_batch(params, sharding.put_batch(batch, mesh))
        total = total.merge(moments.fetch(*jax.device_get(parts)))
    return moments.principal_components(total, section.width)


def _batch_moments(
    loaded_config: Mapping[str, Any],
    section: Any,
    config_data: Any,
    precision: str,
    mesh: Mesh,
) -> Callable[[Params, Batch], tuple[Array, Array, Array]]:
    """Returns (params, batch) -> `moments.of_batch` of the last block's features."""
    model = models.build(
        models.encoder_config(loaded_config),
        "encoder",
        dtype=precision,
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
    )

    def of_batch(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        inputs = batch[model.modality]
        if model.modality == "image":
            inputs = image.preprocess(inputs, None, config_data, None)
        with sharding.placing(mesh):
            states, sums = model.apply(
                {"params": params}, inputs, None, method="encode", mutable=[models.SUMS]
            )
        x_BLD = last_block.features_of(states, sums[models.SUMS], section)
        counts_BL = last_block.TOKENS[section.tokens](model.layout(inputs))
        return moments.of_batch(x_BLD, counts_BL * batch["weight"][:, None])

    return of_batch
