"""Dot-product attention: one formula, implemented once for CPUs and once for accelerators."""

import functools

import jax
import jax.numpy as jnp

from flax_adapt.base.types import Array
from flax_adapt.models.adaptors import MixLogits

# Einsum of two arrays of any dtype; the result is float32.
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(
    q_BLHK: Array,
    k_BMHK: Array,
    v_BMHK: Array,
    sees_BLM: Array | None,
    mix: MixLogits | None = None,
) -> Array:
    """Returns x_BLHK: values averaged by softmax(q k / sqrt K), which runs in float32.

    sees_BLM: bool, token l attends to token m; None: to all. mix: changes the logits
    before they are masked; x_BLHK is then float32. Without it x_BLHK has the dtype of the
    values, and the platform that is compiled for decides between `unfused` (CPU) and
    `fused` (others): both are traced, and the program holds one.
    """
    if mix is not None:
        return _by_einsum(q_BLHK, k_BMHK, v_BMHK, sees_BLM, mix)
    return jax.lax.platform_dependent(
        *(q_BLHK, k_BMHK, v_BMHK, sees_BLM), cpu=unfused, default=fused
    )


def fused(q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, sees_BLM: Array | None) -> Array:
    """Returns x_BLHK by JAX's own attention, which XLA fuses.

    The kernel of cuDNN is not used. JAX never chooses it by itself. It refuses float32,
    many head sizes, and odd lengths with a mask, and cannot even be traced where there is
    no cuDNN, as on a TPU.
    """
    mask = None if sees_BLM is None else sees_BLM[:, None]
    return jax.nn.dot_product_attention(q_BLHK, k_BMHK, v_BMHK, mask=mask)


def unfused(
    q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, sees_BLM: Array | None
) -> Array:
    """Returns x_BLHK by einsum, in the dtype of the values."""
    return _by_einsum(q_BLHK, k_BMHK, v_BMHK, sees_BLM, None).astype(v_BMHK.dtype)


def _by_einsum(
    q_BLHK: Array,
    k_BMHK: Array,
    v_BMHK: Array,
    sees_BLM: Array | None,
    mix: MixLogits | None,
) -> Array:
    """Returns x_BLHK in float32.

    The axis of heads is moved before that of tokens first. `jax.nn.dot_product_attention`
    leaves that to the matmuls, which then take a third longer on a CPU.
    """
    scale = q_BLHK.shape[-1] ** -0.5
    k_BHMK, v_BHMK = k_BMHK.swapaxes(1, 2), v_BMHK.swapaxes(1, 2)

    def times_keys(q_BLHK: Array) -> Array:
        q_BHLK = q_BLHK.swapaxes(1, 2) * scale
        return _product("BHLK,BHMK->BHLM", q_BHLK, k_BHMK)

    logits_BHLM = times_keys(q_BLHK)
    if mix is not None:
        logits_BHLM = mix(logits_BHLM, times_keys)
    if sees_BLM is not None:
        lowest = jnp.finfo(jnp.float32).min
        logits_BHLM = jnp.where(sees_BLM[:, None], logits_BHLM, lowest)
    weights_BHLM = jax.nn.softmax(logits_BHLM).astype(v_BMHK.dtype)
    return _product("BHLM,BHMK->BHLK", weights_BHLM, v_BHMK).swapaxes(1, 2)
