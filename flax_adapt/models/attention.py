"""Dot-product attention: one formula, and a table of the programs that compute it."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base import placement
from flax_adapt.base.types import Array
from flax_adapt.models.adaptors import MixLogits

log = logging.getLogger(__name__)
# Einsum of two arrays of any dtype; the result is float32.
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
_HALF = ("bfloat16", "float16")
_MAX_HEAD_DIM = 128  # of cuDNN before Hopper


class Kind(NamedTuple):
    """What an attention is chosen by; `masked`: whether tokens see some tokens only.

    queries is L, length is M, see `attend`.
    """

    platform: str
    dtype: str
    head_dim: int
    queries: int
    length: int
    masked: bool


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
    values, and WAYS says which program computes it; the choice is logged once.
    """
    if mix is not None:
        return _by_einsum(q_BLHK, k_BMHK, v_BMHK, sees_BLM, mix)
    kind = Kind(
        placement.platform(),
        q_BLHK.dtype.name,
        q_BLHK.shape[-1],
        q_BLHK.shape[1],
        k_BMHK.shape[1],
        sees_BLM is not None,
    )
    return WAYS[choose(kind)].run(q_BLHK, k_BMHK, v_BMHK, sees_BLM)


@functools.cache
def choose(kind: Kind) -> str:
    """Returns the first key of WAYS that is for this kind of attention, and logs it."""
    name = next(name for name, way in WAYS.items() if way.fits(kind))
    what = "masked" if kind.masked else "unmasked"
    log.info(
        *("attention: %s for %s tokens, head_dim %d, %s, %s on %s", name, kind.length),
        *(kind.head_dim, kind.dtype, what, kind.platform),
    )
    return name


def by_platform(
    q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, sees_BLM: Array | None
) -> Array:
    """Returns x_BLHK by `unfused` on a CPU and by `fused` elsewhere.

    Both are traced; the platform that is compiled for decides which the program holds.
    """
    return jax.lax.platform_dependent(
        *(q_BLHK, k_BMHK, v_BMHK, sees_BLM), cpu=unfused, default=fused
    )


def fused(q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, sees_BLM: Array | None) -> Array:
    """Returns x_BLHK by JAX's own attention, which XLA fuses."""
    mask = None if sees_BLM is None else sees_BLM[:, None]
    return jax.nn.dot_product_attention(q_BLHK, k_BMHK, v_BMHK, mask=mask)


@functools.cache
def has_cudnn() -> bool:
    """Returns whether cuDNN's attention can be traced: it needs the extra `cuda`."""
    x_BLHK = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attend, x_BLHK, x_BLHK, x_BLHK)
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def flash(
    q_BLHK: Array,
    k_BMHK: Array,
    v_BMHK: Array,
    sees_BLM: Array | None,
    implementation: Any = "cudnn",
) -> Array:
    """Returns x_BLHK by cuDNN's flash attention, which never holds the logits.

    It takes even lengths. A ViT has an odd one (CLS and patches): without a mask one more
    token is added, which no token attends to, by way of the lengths of the sequences.
    """
    attend = functools.partial(
        jax.nn.dot_product_attention, implementation=implementation
    )
    (batch, queries), length = q_BLHK.shape[:2], k_BMHK.shape[1]
    if sees_BLM is not None:
        return attend(q_BLHK, k_BMHK, v_BMHK, mask=sees_BLM[:, None])
    if queries % 2 == length % 2 == 0:
        return attend(q_BLHK, k_BMHK, v_BMHK)
    padded = (
        jnp.pad(x_BLHK, ((0, 0), (0, x_BLHK.shape[1] % 2), (0, 0), (0, 0)))
        for x_BLHK in (q_BLHK, k_BMHK, v_BMHK)
    )
    x_BLHK = attend(
        *padded,
        query_seq_lengths=jnp.full((batch,), queries, jnp.int32),
        key_value_seq_lengths=jnp.full((batch,), length, jnp.int32),
    )
    return x_BLHK[:, :queries]


def _is_for_cudnn(kind: Kind) -> bool:
    return (
        kind.platform == "gpu"
        and kind.dtype in _HALF
        and kind.head_dim % 8 == 0
        and kind.head_dim <= _MAX_HEAD_DIM
        and kind.queries > 1  # one alone (CLS) has no large logits
        and not (kind.masked and (kind.queries % 2 or kind.length % 2))
        and has_cudnn()
    )


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


class Way(NamedTuple):
    """A program of attention: the kinds that it is for, and the function."""

    fits: Callable[[Kind], bool]
    run: Callable[[Array, Array, Array, Array | None], Array]


# The first way that fits is taken. float32 is never computed by cuDNN, which has no such
# kernel. On a TPU XLA's own fusion is used.
WAYS = {
    "cudnn": Way(_is_for_cudnn, flash),
    "xla": Way(lambda kind: True, by_platform),
}
