"""Splash attention of JAX on a TPU: a Pallas kernel that never holds the logits.

The kernel is `jax.experimental.pallas.ops.tpu.splash_attention`, which JAX maintains; here
is how it is called. XLA cannot divide it over devices: `attention.by_splash` does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flax_adapt.base.types import Array

LANES = 128  # of a TPU, the step of sizes of blocks
LEAST_TOKENS = 512
# Widths of a head that the kernel was compiled for.
HEAD_DIMS = (64, 128)
# Tokens of a block, the first that divides the length. Of 512 x 512 logits a block takes
# 1 MiB of the 16 MiB of fast memory that a program has on a v5e.
_BLOCKS = (512, 256, 128)


@functools.cache
def is_installed() -> bool:
    """Returns whether this version of JAX has the kernel; it is marked as experimental."""
    try:
        _import()
    except ImportError:
        return False
    return True


def _import() -> Any:
    """Returns the module of the kernel; Pallas takes a second to import."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


def attend(
    q_BLHK: Array,
    k_BLHK: Array,
    v_BLHK: Array,
    segments_BL: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Returns x_BLHK: values averaged by softmax(q k / sqrt K), which runs in float32.

    L is a multiple of LANES. segments_BL: int32, tokens of one number attend to each other;
    None: all to all. interpret: JAX computes what the kernel says, on any platform.
    """
    kernel = _make_kernel(q_BLHK.shape[1], q_BLHK.shape[2], interpret)
    scaled_BLHK = q_BLHK * q_BLHK.shape[-1] ** -0.5
    three = (x_BLHK.swapaxes(1, 2) for x_BLHK in (scaled_BLHK, k_BLHK, v_BLHK))
    if segments_BL is None:
        x_BHLK = jax.vmap(kernel)(*three)
    else:
        segments = _import().SegmentIds(segments_BL, segments_BL)
        x_BHLK = jax.vmap(kernel)(*three, segments)
    return jnp.swapaxes(x_BHLK, 1, 2)


def _make_kernel(length: int, heads: int, interpret: bool) -> Any:
    """Returns (q_HLK, k_HLK, v_HLK, segments) -> x_HLK.

    One kernel computes all gradients: five products of a block of logits, not seven.
    """
    library = _import()
    block = next(size for size in _BLOCKS if length % size == 0)
    sizes = library.BlockSizes(
        **dict(block_q=block, block_kv=block, block_kv_compute=block),
        **dict(block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block),
        use_fused_bwd_kernel=True,
    )
    whole = library.MultiHeadMask([library.FullMask((length, length))] * heads)
    return library.make_splash_mha(
        whole, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
