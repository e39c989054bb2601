"""The layers of transformers, and the pre-norm block of a vision transformer.

Parameters are always float32; `dtype` is that of the computation. LayerNorm statistics
and the softmax run in float32. Randomness is explicit: `key_B` holds one key per example,
None means deterministic.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_adapt.base import keys, placement
from flax_adapt.base.types import Array, Key
from flax_adapt.models import residual
from flax_adapt.models.adaptors import Adaptor, MixLogits
from flax_adapt.models.architecture import (
    GATES,
    GELU,
    BlockConfig,
    LastBlock,
    ViTConfig,
)
from flax_adapt.models.attention import Sees, attend, select_rows
from flax_adapt.models.residual import Drawn, Select, drop_branch
from flax_adapt.models.visual import rotary
from flax_adapt.models.visual.scale import LayerScale

Dtype = Any
# A change of the embeddings x_BLD before the first block, such as mixing of examples.
Mix = Callable[[Array], Array]
# Collections of intermediates, stored only if `apply` makes them mutable: the input of the
# norm after each block, and the output that attention adds to the residual stream.
SUMS, ATTENTIONS = "sums", "attentions"
Initialiser = Callable[..., Array]

# torch's trunc_normal_(std=0.02) cuts at +-2, a hundred deviations: a plain normal.
NORMAL = nn.initializers.normal(0.02)
# Of a linear shortcut: its output has the scale of its input.
SHORTCUT = nn.initializers.lecun_normal()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul(name: str, rows: Array, kernel: Array) -> Array:
    """Returns rows @ kernel, [R, in] @ [in, out], in the dtype of `rows`.

    The gradient of a float32 `kernel` is float32 before it is summed over chips: a sum of
    bfloat16 numbers would lose their differences. name: of the kernel, see `placement`.
    """
    return rows @ _cast_and_gather(name, rows, kernel)


def _cast_and_gather(name: str, rows: Array, kernel: Array) -> Array:
    """Returns the kernel in the dtype of `rows`, cast before its parts travel."""
    return placement.as_used(name, kernel.astype(rows.dtype))


def _matmul_forward(name: str, rows: Array, kernel: Array) -> tuple[Array, Any]:
    return matmul(name, rows, kernel), (rows, kernel)


def _matmul_backward(name: str, kept: Any, slope: Array) -> tuple[Array, Array]:
    rows, kernel = kept
    by_rows = (((0,), (0,)), ((), ()))
    of_kernel = jax.lax.dot_general(
        rows, slope, by_rows, preferred_element_type=kernel.dtype
    )
    of_rows = slope @ _cast_and_gather(name, slope, kernel).T
    return of_rows, placement.as_stored(name, of_kernel)


matmul.defvjp(_matmul_forward, _matmul_backward)


def spread(param: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
    """Returns a float32 parameter broadcast, then cast: its gradient is summed in float32."""
    return jnp.broadcast_to(param, shape).astype(dtype)


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
        name = "/".join((*self.path, "kernel"))
        if self.dtype == jnp.float32 and not placement.is_active():
            rows = rows @ kernel
        else:
            rows = matmul(name, rows, kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
            rows = rows + spread(bias[None], rows.shape, self.dtype)
        return rows.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """Normalises the last axis, in float32; the variance divides by D.

    norm_width: mean and variance are those of the first `norm_width` features; 0: of all.
    """

    eps: float
    dtype: Dtype
    norm_width: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        shape = x_BLD.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        x_BLD = x_BLD.astype(jnp.float32)
        first = slice(self.norm_width or None)
        x_BLD = x_BLD - jnp.mean(x_BLD[..., first], axis=-1, keepdims=True)
        variance_BL1 = jnp.mean(jnp.square(x_BLD[..., first]), axis=-1, keepdims=True)
        x_BLD = x_BLD * jax.lax.rsqrt(variance_BL1 + self.eps)
        x_BLD = x_BLD * scale_D[None, None]
        if self.use_bias:
            bias_D = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
            x_BLD = x_BLD + bias_D[None, None]
        return x_BLD.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, with adaptors if `config.adaptor` is set; softmax in float32."""

    config: BlockConfig
    kernel_init: Initialiser
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        sees: Sees,
        select: Select | None = None,
        turn_BLK: Array | None = None,
    ) -> Array:
        """Returns x_BLD in `dtype`, of the selected tokens; None: of all.

        sees: see `attention.Sees`; every token attends to at least one. turn_BLK: of rotary
        positions, see `visual.rotary`; None: none.
        """
        config = self.config
        dense = functools.partial(
            Dense, config.width, kernel_init=self.kernel_init, dtype=self.dtype
        )
        heads = (config.heads, config.width // config.heads)
        asking_BLD = residual.take(select, x_BLD)
        sees = select_rows(select, sees)

        def project(name: str, x_BLD: Array) -> Array:
            has_bias = config.key_bias if name == "key" else config.qkv_bias
            rows = dense(use_bias=has_bias, name=name)(x_BLD)
            return placement.place("heads", rows.reshape(*x_BLD.shape[:2], *heads))

        q_BLHK = project("query", asking_BLD)
        k_BMHK, v_BMHK = (project(name, x_BLD) for name in ("key", "value"))
        if turn_BLK is not None:
            q_BLHK = rotary.turn(q_BLHK, residual.take(select, turn_BLK))
            k_BMHK = rotary.turn(k_BMHK, turn_BLK)

        def mixed(q_BLHK: Array, mix: MixLogits | None) -> Array:
            return attend(q_BLHK, k_BMHK, v_BMHK, sees, mix)

        if config.adaptor is None:
            x_BLHK = mixed(q_BLHK, None)
        else:
            adaptor = Adaptor(config.adaptor, self.dtype, name="adaptor")
            x_BLHK = adaptor(q_BLHK, mixed)
        x_BLHK = placement.place("heads", x_BLHK)
        x_BLD = dense(use_bias=config.biases, name="out")(
            x_BLHK.reshape(asking_BLD.shape)
        )
        x_BLD = placement.place("states", x_BLD)
        self.sow(ATTENTIONS, "added", x_BLD)
        return x_BLD


class MLP(nn.Module):
    """Two dense layers, a GELU between them, or SwiGLU or GeGLU; the last has `width` outputs."""

    config: BlockConfig
    width: int
    kernel_init: Initialiser
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config = self.config
        how = dict(use_bias=config.biases, kernel_init=self.kernel_init)
        dense = functools.partial(Dense, **how, dtype=self.dtype)
        x_BLF = placement.place("hidden", dense(config.mlp_dim, name="up")(x_BLD))
        if config.gate:
            gate_BLF = dense(config.mlp_dim, name="gate")(x_BLD)
            x_BLF = GATES[config.gate](placement.place("hidden", gate_BLF)) * x_BLF
        else:
            x_BLF = GELU[config.gelu](x_BLF)
        return placement.place("states", dense(self.width, name="down")(x_BLF))


def shortcut(x_BLD: Array, last_block: LastBlock | None, dtype: Dtype) -> Array:
    """Returns the residual path around an MLP: x, or W_s x where the block is resized.

    It must be called within a compact `__call__`. A resized block has W_s at D = d, too,
    as in Bordes et al. 2023. W_s has no bias: `down` has one.
    """
    if last_block is None:
        return x_BLD
    return Dense(last_block.width, False, SHORTCUT, dtype, name="shortcut")(x_BLD)


def make_linear(
    last_block: LastBlock | None, kernel_init: Initialiser, dtype: Dtype
) -> Dense | None:
    """Returns the layer of a last block of kind "linear", else None; modules call it `linear`."""
    if last_block is None or last_block.kind != "linear":
        return None
    return Dense(last_block.width, True, kernel_init, dtype)


def finish(x_BLD: Array, linear: Dense | None, last_block: LastBlock | None) -> Array:
    """Returns the final states from the output of the last LayerNorm.

    A last block may add a linear layer, a ReLU or both.
    """
    x_BLD = placement.place("states", x_BLD if linear is None else linear(x_BLD))
    return nn.relu(x_BLD) if last_block is not None and last_block.relu else x_BLD


class Block(nn.Module):
    """Pre-norm transformer block; with `resized` it ends in another width.

    Dropout where Hugging Face's ViT has its hidden dropout (after the last dense of
    attention and of the MLP), then stochastic depth, as timm orders them.
    """

    config: ViTConfig
    kernel_init: Initialiser
    dropout: float
    drop_path: float | Array
    dtype: Dtype
    resized: LastBlock | None

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        turn_BLK: Array | None,
        key_B: Key | None,
        select: Select | None = None,
    ) -> Array:
        """Returns the state x_BLD of the selected tokens; None: of all.

        turn_BLK: of rotary positions, see `visual.rotary`; None: none.
        """
        config = self.config
        norm = functools.partial(LayerNorm, config.layer_norm_eps, self.dtype)
        attention = Attention(config, self.kernel_init, self.dtype, name="attention")
        width = self.resized.width if self.resized else config.width
        mlp = MLP(config, width, self.kernel_init, self.dtype, name="mlp")
        rates, drawn = (self.dropout, self.drop_path), Drawn(x_BLD.shape[1], select)
        drop = functools.partial(drop_branch, rates, key_B, drawn=drawn)
        added_BLD = attention(norm(name="norm1")(x_BLD), None, select, turn_BLK)
        x_BLD = residual.take(select, x_BLD) + drop(
            0, self._scale(added_BLD, "layer_scale1")
        )
        around_BLD = shortcut(x_BLD, self.resized, self.dtype)
        added_BLD = mlp(norm(name="norm2")(x_BLD))
        x_BLD = around_BLD + drop(1, self._scale(added_BLD, "layer_scale2"))
        x_BLD = placement.place("states", x_BLD)
        self.sow(SUMS, "sum", x_BLD)
        return x_BLD

    def _scale(self, x_BLD: Array, name: str) -> Array:
        """Returns a branch, scaled where the model has LayerScale; within `__call__` only."""
        if not self.config.own.layer_scale:
            return x_BLD
        return LayerScale(self.dtype, name=name)(x_BLD)


def fold_or_none(key_B: Key | None, number: int) -> Key | None:
    """Returns `keys.fold(key_B, number)`, or None for None."""
    return None if key_B is None else keys.fold(key_B, number)
