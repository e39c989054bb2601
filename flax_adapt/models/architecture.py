"""Architectures of transformers: the numbers that a model is built from.

One field, one meaning, no defaults. The architecture of text is in `bert`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Array
from flax_adapt.models.adaptors import AdaptorConfig


def gelu_erf(x: Array) -> Array:
    """x * (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), as PyTorch writes it.

    `jax.nn.gelu` goes through erfc, which takes twice as long on a CPU.
    """
    return x * (0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))))


# "erf" is the exact form; "tanh" is its approximation (gelu_new, gelu_pytorch_tanh).
GELU: dict[str, Callable[[Array], Array]] = {
    "erf": gelu_erf,
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class BlockConfig(Protocol):
    """What attention and MLP want to know of an architecture."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_dim(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def gelu(self) -> str: ...
    @property
    def adaptor(self) -> AdaptorConfig | None: ...


def check_block(config: BlockConfig) -> None:
    """Says what cannot be built."""
    choose("model.gelu", config.gelu, GELU)
    if config.width % config.heads:
        raise UserError(
            f"model width={config.width} is not a multiple of heads={config.heads}; "
            "change one of them"
        )


# Kind of a last block -> what is in the place of the ordinary one, or after it.
LAST_BLOCKS = {
    "resized": "the MLP of the last block, and a linear shortcut around it, end in D",
    "linear": "a linear layer to D after the last LayerNorm",
    "extra": "one more block, with an MLP of its own hidden width",
}


@dataclasses.dataclass(frozen=True)
class LastBlock:
    """The end of an encoder that gives features of another width D (METHODS S3).

    Bordes et al. 2023 resize the last block of a ResNet; for transformers all is ours.

    kind      a key of LAST_BLOCKS; "linear" and "extra" are controls
    width     D; of "extra" the width of the model
    relu      a ReLU on the final states, before they are pooled
    norm_width  the final LayerNorm takes mean and variance of the first `norm_width`
              features, for all; 0: of all. So the first features of an expanded model
              stay those of the original, to the digit
    mlp_dim   of "extra"; 0 for the others
    """

    kind: str
    width: int
    relu: bool
    norm_width: int
    mlp_dim: int

    def __post_init__(self):
        choose("model.last_block.kind", self.kind, LAST_BLOCKS)
        rules = (
            (self.width >= 1, f"width={self.width} must be at least 1"),
            (
                0 <= self.norm_width <= self.width,
                f"norm_width={self.norm_width} must lie in 0 to width={self.width}",
            ),
            (
                self.norm_width == 0 or self.kind == "resized",
                f"norm_width={self.norm_width} must be 0 for kind={self.kind!r}",
            ),
            (
                (self.mlp_dim >= 1) == (self.kind == "extra"),
                f"mlp_dim={self.mlp_dim} must be given for kind='extra', 0 for others",
            ),
        )
        for holds, problem in rules:
            if not holds:
                raise UserError(f"model.last_block.{problem}")


def check_last_block(last_block: LastBlock | None, width: int) -> None:
    """An extra block does not change the width."""
    if last_block and last_block.kind == "extra" and last_block.width != width:
        raise UserError(
            f"model.last_block.width={last_block.width} must be the model's, {width}, "
            "for kind='extra'"
        )


def resized_block(last_block: LastBlock | None) -> LastBlock | None:
    """Returns the last block if the block itself is resized, else None."""
    is_so = last_block is not None and last_block.kind == "resized"
    return last_block if is_so else None


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The architecture of a vision transformer.

    width D, mlp_dim F; `pooler`: there is a tanh layer on the CLS state (Hugging Face
    ViTModel); last_block: None is an ordinary one; adaptor: of GLAD attention, or None.
    """

    image_size: int
    patch_size: int
    channels: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    layer_norm_eps: float
    qkv_bias: bool
    gelu: str
    pooler: bool
    last_block: LastBlock | None
    adaptor: AdaptorConfig | None

    def __post_init__(self):
        check_block(self)
        check_last_block(self.last_block, self.width)
        if self.image_size % self.patch_size:
            raise UserError(
                f"model.image_size={self.image_size} is not a multiple of "
                f"model.patch_size={self.patch_size}; change one of them"
            )

    @property
    def num_patches(self) -> int:
        """L, without CLS."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_pixels(self) -> int:
        """P, the numbers in one patch."""
        return self.patch_size**2 * self.channels


class BlockPlan(NamedTuple):
    """What a block is built with: an extra one has an MLP of its own width."""

    config: Any
    drop_path: float
    resized: LastBlock | None


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """One rate a block: timm's `linspace(0, rate, depth)`."""
    return tuple(rate * block / max(depth - 1, 1) for block in range(depth))


def num_blocks(config: Any) -> int:
    """Of an encoder, an extra one included."""
    last_block = config.last_block
    return config.depth + (last_block is not None and last_block.kind == "extra")


def block_plans(config: Any, drop_path: float) -> list[BlockPlan]:
    """Returns what every block of an encoder or a decoder is built with."""
    last = num_blocks(config) - 1
    configs = [config] * config.depth
    if last == config.depth:
        configs.append(dataclasses.replace(config, mlp_dim=config.last_block.mlp_dim))
    rates = drop_path_rates(drop_path, len(configs))
    return [
        BlockPlan(
            one, rate, resized_block(config.last_block) if number == last else None
        )
        for number, (one, rate) in enumerate(zip(configs, rates, strict=True))
    ]


def of_stage(
    config_model: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the model config of a stage.

    options: its section `model`, of which `resize` asks for another last block (see
    `surgery`) and `adaptor` for adaptors; None: there is no change.
    """
    config = with_resize(config_model, options["resize"])
    adaptor = options["adaptor"]
    return config if adaptor is None else {**config, "adaptor": dict(adaptor)}


def bare(config_model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of the encoder alone: no adaptors, no pooler, of any kind."""
    none = {"adaptor": None, "pooler": False}
    return {**config_model, **{k: v for k, v in none.items() if k in config_model}}


def with_resize(
    config_model: Mapping[str, Any], resize: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the model config of a model with another last block.

    resize: a section `model.resize`, see `surgery`; None: no change. Where the
    first features are to stay as they are, they alone are normalised by their own mean
    and variance, and the others by the same.
    """
    config = dict(config_model)
    if resize is None:
        return config
    names = ("kind", "width", "relu", "mlp_dim")
    last_block = {name: resize[name] for name in names}
    keeps = resize["kind"] == "resized" and resize["init"] == "preserve"
    return {
        **config,
        "last_block": {**last_block, "norm_width": config["width"] if keeps else 0},
    }
