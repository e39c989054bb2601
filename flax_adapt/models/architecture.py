"""Architectures of transformers: fields without defaults; those of text are in `textual`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from flax_adapt.base import checks
from flax_adapt.base.checks import Row, one_of
from flax_adapt.base.errors import UserError, choose
from flax_adapt.base.types import Array
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.models.visual import rotary, traits
from flax_adapt.models.visual.traits import Traits


def gelu_erf(x: Array) -> Array:
    """Returns x * (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), as PyTorch writes it.

    `jax.nn.gelu` goes through erfc, which takes twice as long on a CPU.
    """
    return x * (0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))))


def quick_gelu(x: Array) -> Array:
    """Returns x * sigmoid(1.702 x), the GELU of CLIP (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


# "erf" is exact; "tanh" is its approximation (gelu_new, gelu_pytorch_tanh).
GELU: dict[str, Callable[[Array], Array]] = {
    "erf": gelu_erf,
    "tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick": quick_gelu,
}
GATES = {**GELU, "silu": jax.nn.silu}


class BlockConfig(Protocol):
    """The fields of an architecture that attention and MLP read."""

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
    @property
    def key_bias(self) -> bool: ...
    @property
    def gate(self) -> str | None: ...
    @property
    def biases(self) -> bool: ...


def check_block(config: BlockConfig) -> None:
    """Raises UserError for an unknown GELU, or heads that do not divide the width."""
    choose("model.gelu", config.gelu, GELU)
    if config.width % config.heads:
        raise UserError(
            f"model width={config.width} is not a multiple of heads={config.heads}; "
            "change one of them"
        )


# Kind of a last block -> how it differs from the ordinary one.
LAST_BLOCKS = {
    "resized": "the MLP of the last block, and a linear shortcut around it, end in D",
    "linear": "a linear layer to D after the last LayerNorm",
    "extra": "one more block, with an MLP of its own hidden width",
}


@dataclasses.dataclass(frozen=True)
class LastBlock:
    """The last block of an encoder whose features have another width D (S3).

    Bordes et al. 2023 resize the last block of a ResNet; for transformers all is ours.

    kind      a key of LAST_BLOCKS; "linear" and "extra" are controls
    width     D; for "extra" the width of the model
    relu      a ReLU on the final states, before they are pooled
    norm_width  the final LayerNorm takes mean and variance from the first `norm_width`
              features and normalises all features by them; 0: from all. So the first
              features of an expanded model equal those of the original, to the digit
    mlp_dim   hidden width of the MLP of "extra"; 0 for other kinds
    """

    kind: str
    width: int
    relu: bool
    norm_width: int
    mlp_dim: int

    def __post_init__(self):
        checks.run(_LAST_BLOCK_ROWS, self)


# Rules of a `LastBlock`.
_LAST_BLOCK_ROWS = (
    one_of("model.last_block.kind", lambda it: it.kind, LAST_BLOCKS),
    Row(
        lambda it: it.width >= 1,
        "model.last_block.width={0.width} must be at least 1",
    ),
    Row(
        lambda it: 0 <= it.norm_width <= it.width,
        "model.last_block.norm_width={0.norm_width} must lie in 0 to width={0.width}",
    ),
    Row(
        lambda it: it.norm_width == 0 or it.kind == "resized",
        "model.last_block.norm_width={0.norm_width} must be 0 for kind={0.kind!r}",
    ),
    Row(
        lambda it: (it.mlp_dim >= 1) == (it.kind == "extra"),
        "model.last_block.mlp_dim={0.mlp_dim} must be given for kind='extra', 0 for others",
    ),
)


def check_last_block(last_block: LastBlock | None, width: int) -> None:
    """Raises UserError for an extra block of another width than the model."""
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
    """The architecture of a vision transformer; raises UserError for sizes that do not fit.

    width is D, mlp_dim is F. pooler: whether a tanh layer follows on the CLS state
    (Hugging Face ViTModel). last_block: None is an ordinary one. adaptor: of GLAD
    attention, or None. traits: how the family differs from the plain ViT; None: not.
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
    traits: Traits | None

    def __post_init__(self):
        check_block(self)
        check_last_block(self.last_block, self.width)
        rotary.check_head(self.own.rotary_theta, self.width // self.heads)
        if self.image_size % self.patch_size:
            raise UserError(
                f"model.image_size={self.image_size} is not a multiple of "
                f"model.patch_size={self.patch_size}; change one of them"
            )

    @property
    def own(self) -> Traits:
        """The traits; of a model without any those of the plain ViT."""
        return self.traits or traits.PLAIN

    @property
    def key_bias(self) -> bool:
        """Whether keys have a bias."""
        return self.qkv_bias and self.own.key_bias

    @property
    def gate(self) -> str | None:
        """The activation of the MLP's gate, a key of GATES; None: there is no gate."""
        return "silu" if self.own.swiglu else None

    @property
    def biases(self) -> bool:
        """True: all layers and norms have biases."""
        return True

    @property
    def num_patches(self) -> int:
        """The number of patches, L without CLS."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_prefix(self) -> int:
        """The number of tokens before the patches: CLS, then those of the traits."""
        return self.own.num_prefix

    @property
    def patch_pixels(self) -> int:
        """The number of values in one patch, P."""
        return self.patch_size**2 * self.channels


class BlockPlan(NamedTuple):
    """The arguments of one block: its config, its rate of drop path, how it is resized.

    The config of an extra block has an `mlp_dim` of its own.
    """

    config: Any
    drop_path: float
    resized: LastBlock | None


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Returns the rate of each block: timm's `linspace(0, rate, depth)`."""
    return tuple(rate * block / max(depth - 1, 1) for block in range(depth))


def num_blocks(config: Any) -> int:
    """Returns the number of blocks of an encoder, an extra one included."""
    last_block = config.last_block
    return config.depth + (last_block is not None and last_block.kind == "extra")


def block_plans(config: Any, drop_path: float) -> list[BlockPlan]:
    """Returns the arguments of every block of an encoder or a decoder, in order."""
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


def complete(config_model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model config with the fields that configs of older versions lack."""
    kind, config = config_model["kind"], dict(config_model)
    if kind == "resnet":
        return config
    own = config.get("traits")
    return {**config, "traits": traits.complete(own) if kind == "vit" else own}


def of_stage(
    config_model: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the model config of a stage, which may change the last block and add adaptors.

    options: the stage's section `model`. `resize` describes another last block (see
    `surgery`) and `adaptor` the adaptors; None: no change.
    """
    config = with_resize(config_model, options["resize"])
    adaptor = options["adaptor"]
    return config if adaptor is None else {**config, "adaptor": dict(adaptor)}


def encoder_config(config_model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config, of any kind, of the encoder alone: no adaptors, no pooler."""
    none = {"adaptor": None, "pooler": False}
    return {**config_model, **{k: v for k, v in none.items() if k in config_model}}


def with_resize(
    config_model: Mapping[str, Any], resize: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the model config with another last block.

    resize: a section `model.resize`, see `surgery`; None: no change. Where it preserves
    the first features, the final LayerNorm takes mean and variance from these alone, and
    normalises all features by them (`LastBlock.norm_width`).
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
