"""The layers of transformers, and the pre-norm block of a vision transformer.

Parameters are float32 always; `dtype` is what is computed in. LayerNorm statistics and
the softmax run in float32. Randomness is explicit: `key_B` holds one key an example,
None means deterministic.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt import keys
from flax_adapt.errors import UserError, choose
from flax_adapt.types import Array, Key

Dtype = Any
Initialiser = Callable[..., Array]


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

# torch's trunc_normal_(std=0.02) cuts at +-2, a hundred deviations: a plain normal.
NORMAL = nn.initializers.normal(0.02)


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


def check_block(config: BlockConfig) -> None:
    """Says what cannot be built."""
    choose("model.gelu", config.gelu, GELU)
    if config.width % config.heads:
        raise UserError(
            f"model width={config.width} is not a multiple of heads={config.heads}; "
            "change one of them"
        )


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The architecture of a vision transformer; one field, one meaning, no defaults.

    width D, mlp_dim F; `pooler`: there is a tanh layer on the CLS state (Hugging Face
    ViTModel).
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

    def __post_init__(self):
        check_block(self)
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


class Dense(nn.Module):
    """x @ kernel + bias on the last axis; kernel [in, out].

    All other axes are flattened to one: on CPU the backward pass of a 3-D matmul takes
    twice as long as that of the 2-D one.
    """

    features: int
    use_bias: bool
    kernel_init: Initialiser
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        rows = rows @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
            rows = rows + bias.astype(self.dtype)[None]
        return rows.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """Normalises the last axis, in float32; the variance divides by D."""

    eps: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        shape = x_BLD.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        x_BLD = x_BLD.astype(jnp.float32)
        x_BLD = x_BLD - jnp.mean(x_BLD, axis=-1, keepdims=True)
        variance_BL1 = jnp.mean(jnp.square(x_BLD), axis=-1, keepdims=True)
        x_BLD = x_BLD * jax.lax.rsqrt(variance_BL1 + self.eps)
        return (x_BLD * scale_D[None, None] + bias_D[None, None]).astype(self.dtype)


def dropout(x_BLD: Array, rate: float, key_B: Key | None) -> Array:
    """Zeroes each number with probability `rate`, scales the rest by 1 / (1 - rate).

    JAX draws by counting, so what a token gets depends on the key of its example and on
    its place: neither on the batch nor on how far the rows are padded.
    """
    if key_B is None or rate == 0:
        return x_BLD
    keep_BLD = keys.draw(jax.random.bernoulli, key_B, 1 - rate, x_BLD.shape[1:])
    return jnp.where(keep_BLD, x_BLD / (1 - rate), 0)


def drop_path(x_BLD: Array, rate: float, key_B: Key | None) -> Array:
    """Zeroes an example's whole branch with probability `rate` (Huang et al. 2016)."""
    if key_B is None or rate == 0:
        return x_BLD
    keep_B11 = keys.draw(jax.random.bernoulli, key_B, 1 - rate, (1, 1))
    return jnp.where(keep_B11, x_BLD / (1 - rate), 0)


def drop_branch(
    rates: tuple[float, float], key_B: Key | None, branch: int, x_BLD: Array
) -> Array:
    """Dropout, then drop path: the rates. `branch` counts those of a block: 0, 1."""
    if key_B is None:
        return x_BLD
    x_BLD = dropout(x_BLD, rates[0], keys.fold(key_B, 2 * branch))
    return drop_path(x_BLD, rates[1], keys.fold(key_B, 2 * branch + 1))


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """One rate a block: timm's `linspace(0, rate, depth)`."""
    return tuple(rate * block / max(depth - 1, 1) for block in range(depth))


def attend(
    q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, sees_BLM: Array | None
) -> Array:
    """Returns x_BLHK: values mixed by softmax(q k / sqrt K), which runs in float32.

    Heads go before tokens first: `jax.nn.dot_product_attention` leaves that to the
    matmuls, which on a CPU take a third longer then.
    """
    scale = q_BLHK.shape[-1] ** -0.5
    q_BHLK, k_BHMK, v_BHMK = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMHK, v_BMHK))
    logits_BHLM = jnp.einsum(
        "BHLK,BHMK->BHLM", q_BHLK * scale, k_BHMK, preferred_element_type=jnp.float32
    )
    if sees_BLM is not None:
        lowest = jnp.finfo(jnp.float32).min
        logits_BHLM = jnp.where(sees_BLM[:, None], logits_BHLM, lowest)
    weights_BHLM = jax.nn.softmax(logits_BHLM).astype(v_BMHK.dtype)
    return jnp.einsum("BHLM,BHMK->BHLK", weights_BHLM, v_BHMK).swapaxes(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32."""

    config: BlockConfig
    kernel_init: Initialiser
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BLD: Array, sees_BLM: Array | None) -> Array:
        """`sees_BLM`: token l attends to token m (bool, one m a row at least).

        None: every token attends to all.
        """
        config = self.config
        dense = functools.partial(
            Dense, config.width, kernel_init=self.kernel_init, dtype=self.dtype
        )
        heads = (*x_BLD.shape[:2], config.heads, config.width // config.heads)
        q_BLHK, k_BMHK, v_BMHK = (
            dense(use_bias=config.qkv_bias, name=name)(x_BLD).reshape(heads)
            for name in ("query", "key", "value")
        )
        x_BLHK = attend(q_BLHK, k_BMHK, v_BMHK, sees_BLM)
        return dense(use_bias=True, name="out")(x_BLHK.reshape(x_BLD.shape))


class MLP(nn.Module):
    """Two dense layers with a GELU between."""

    config: BlockConfig
    kernel_init: Initialiser
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        dense = functools.partial(
            Dense, use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype
        )
        x_BLF = GELU[self.config.gelu](dense(self.config.mlp_dim, name="up")(x_BLD))
        return dense(self.config.width, name="down")(x_BLF)


class Block(nn.Module):
    """Pre-norm transformer block.

    Dropout where Hugging Face's ViT has its hidden dropout (after the last dense of
    attention and of the MLP), then stochastic depth, as timm orders them.
    """

    config: ViTConfig
    kernel_init: Initialiser
    dropout: float
    drop_path: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BLD: Array, key_B: Key | None) -> Array:
        config = self.config
        norm = functools.partial(LayerNorm, config.layer_norm_eps, self.dtype)
        attention = Attention(config, self.kernel_init, self.dtype, name="attention")
        mlp = MLP(config, self.kernel_init, self.dtype, name="mlp")
        drop = functools.partial(drop_branch, (self.dropout, self.drop_path), key_B)
        x_BLD = x_BLD + drop(0, attention(norm(name="norm1")(x_BLD), None))
        return x_BLD + drop(1, mlp(norm(name="norm2")(x_BLD)))


def make_blocks(
    config: ViTConfig,
    kernel_init: Initialiser,
    dropout: float,
    drop_path: float,
    dtype: Dtype,
) -> list[Block]:
    """Returns the blocks of a stack, named block_00, block_01, ..."""
    return [
        Block(config, kernel_init, dropout, rate, dtype, name=f"block_{number:02d}")
        for number, rate in enumerate(drop_path_rates(drop_path, config.depth))
    ]


def fold_or_none(key_B: Key | None, number: int) -> Key | None:
    """`keys.fold`, where None stays None."""
    return None if key_B is None else keys.fold(key_B, number)
