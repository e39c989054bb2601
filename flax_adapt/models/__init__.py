"""Models by table: `build(config.model, task, ...)`.

A model config is a plain mapping: the fields of `ViTConfig`, and `decoder`, the fields
of `DecoderConfig` or None. `vit_config` and `mae_config` make one.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.errors import UserError, choose
from flax_adapt.models.layers import GELU, ViTConfig
from flax_adapt.models.mae import MAE, DecoderConfig
from flax_adapt.models.vit import (
    POOLING,
    SIZES,
    Classifier,
    Encoder,
    ViT,
    patchify,
    pool,
    sincos_position,
    unpatchify,
)
from flax_adapt.types import Key, Params

__all__ = [
    "DTYPES",
    "GELU",
    "MAE",
    "POOLING",
    "SIZES",
    "TASKS",
    "Classifier",
    "DecoderConfig",
    "Encoder",
    "ViT",
    "ViTConfig",
    "build",
    "init_params",
    "mae_config",
    "patchify",
    "pool",
    "sincos_position",
    "task_of",
    "unpatchify",
    "vit_config",
]

TASKS = {"mae": MAE, "encoder": ViT, "classify": Classifier}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# The decoder of the paper's models (He et al. 2022, section 4).
PAPER_DECODER = dict(width=512, depth=8, heads=16, mlp_dim=2048)


def vit_config(
    size: str, *, image_size: int, patch_size: int, channels: int
) -> dict[str, Any]:
    """Returns the model config of a ViT without decoder, `size` one of SIZES.

    layer_norm_eps, qkv_bias and gelu as in Hugging Face's ViTConfig.
    """
    return dict(
        image_size=image_size,
        patch_size=patch_size,
        channels=channels,
        **choose("size", size, SIZES),
        layer_norm_eps=1e-12,
        qkv_bias=True,
        gelu="erf",
        pooler=False,
        decoder=None,
    )


def mae_config(
    size: str, *, image_size: int, patch_size: int, channels: int
) -> dict[str, Any]:
    """Returns `vit_config` with the decoder of the paper."""
    config = vit_config(
        size, image_size=image_size, patch_size=patch_size, channels=channels
    )
    return {**config, "decoder": dict(PAPER_DECODER)}


def build(
    config_model: Mapping[str, Any],
    task: str,
    *,
    dtype: str,
    dropout: float,
    drop_path: float,
    pooling: str,
    num_classes: int,
) -> nn.Module:
    """Returns the module of `task`.

    dtype: "float32" or "bfloat16", what is computed in; parameters are float32 always.
    pooling, num_classes: matter to "classify" only.
    """
    choose("task", task, TASKS)
    config = make_config(ViTConfig, config_model, "model")
    common = (config, choose("dtype", dtype, DTYPES), dropout, drop_path)
    if task == "classify":
        choose("pooling", pooling, POOLING)
        if num_classes < 1:
            raise UserError(f"num_classes={num_classes} must be at least 1")
        return Classifier(*common, pooling, num_classes)
    if task == "mae":
        if config_model["decoder"] is None:
            raise UserError(
                "model.decoder is None but task 'mae' needs one; set its width, depth, "
                "heads and mlp_dim"
            )
        decoder = make_config(DecoderConfig, config_model["decoder"], "model.decoder")
        return MAE(*common, decoder)
    return ViT(*common)


def make_config(kind: type, mapping: Mapping[str, Any], where: str) -> Any:
    """Returns the dataclass `kind` filled from `mapping`, which has no other fields."""
    names = {field.name for field in dataclasses.fields(kind)}
    missing = sorted(names - set(mapping))
    unknown = sorted(set(mapping) - names - {"decoder"})
    if missing or unknown:
        raise UserError(f"{where}: fields missing {missing}, unknown {unknown}")
    return kind(**{name: mapping[name] for name in names})


def task_of(model: nn.Module) -> str:
    """Returns the name of the model's task in TASKS."""
    return next(task for task, kind in TASKS.items() if type(model) is kind)


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: nn.Module, key: Key) -> Params:
    """Returns fresh float32 parameters; the forward pass is traced, never run."""
    config = model.config
    shape = (1, config.image_size, config.image_size, config.channels)
    arguments: tuple[Any, ...] = (jnp.zeros(shape), None)
    if isinstance(model, MAE):
        noise_BL = jnp.zeros((1, config.num_patches))
        arguments = (jnp.zeros(shape), noise_BL, None, 0.0)  # any hidden_ratio will do
    return model.init(key, *arguments)["params"]
