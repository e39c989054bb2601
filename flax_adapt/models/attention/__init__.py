"""Dot-product attention: one formula, and a table of the programs that compute it."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_adapt.base import memory, placement
from flax_adapt.base.types import Array
from flax_adapt.models.adaptors import MixLogits
from flax_adapt.models.attention import splash
from flax_adapt.models.residual import Select

log = logging.getLogger(__name__)
# Einsum of two arrays of any dtype; the result is float32.
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
_HALF = ("bfloat16", "float16")
_MAX_HEAD_DIM = 128  # of cuDNN before Hopper


class Documents(NamedTuple):
    """What tokens see where they see the tokens of their own document, and those alone.

    sees_BLM: bool, token l attends to token m: segments_BL, int32, has one number for both.
    """

    sees_BLM: Array
    segments_BL: Array


# What tokens attend to: a bool mask, token l attends to token m; None: every token to all.
Sees = Array | Documents | None


def mask_of(sees: Sees) -> Array | None:
    """Returns the mask alone, sees_BLM; None for None."""
    return sees.sees_BLM if isinstance(sees, Documents) else sees


def select_rows(select: Select | None, sees: Sees) -> Sees:
    """Returns what the selected tokens attend to; select None: all tokens."""
    sees_BLM = mask_of(sees)
    return sees if select is None or sees_BLM is None else select(sees_BLM)


class Kind(NamedTuple):
    """What an attention is chosen by; `masked`: whether tokens see some tokens only.

    queries is L, length is M, see `attend`. by_document: the mask, if any, is that of
    `Documents`. divided: the devices divide examples and heads evenly, see `placement`.
    """

    platform: str
    dtype: str
    head_dim: int
    queries: int
    length: int
    masked: bool
    by_document: bool
    divided: bool


def attend(
    q_BLHK: Array,
    k_BMHK: Array,
    v_BMHK: Array,
    sees: Sees,
    mix: MixLogits | None = None,
) -> Array:
    """Returns x_BLHK: values averaged by softmax(q k / sqrt K), which runs in float32.

    sees: see `Sees`; a token attends to at least one. mix: changes the logits before they
    are masked; x_BLHK is then float32. Without it x_BLHK has the dtype of the values, and
    WAYS says which program computes it; the choice is logged once. Where memory is not to
    be saved (`memory.ignore`) the products are written out.
    """
    if mix is not None:
        return _by_einsum(q_BLHK, k_BMHK, v_BMHK, mask_of(sees), mix)
    if memory.is_ignored():
        return unfused(q_BLHK, k_BMHK, v_BMHK, mask_of(sees))
    kind = Kind(
        placement.platform(),
        q_BLHK.dtype.name,
        q_BLHK.shape[-1],
        q_BLHK.shape[1],
        k_BMHK.shape[1],
        masked=sees is not None,
        by_document=sees is None or isinstance(sees, Documents),
        divided=placement.divides("heads", q_BLHK.shape),
    )
    return WAYS[choose(kind)].run(q_BLHK, k_BMHK, v_BMHK, sees)


@functools.cache
def choose(kind: Kind) -> str:
    """Returns the first key of WAYS that is for this kind of attention, and logs it."""
    name = next(name for name, way in WAYS.items() if way.fits(kind))
    what = "masked" if kind.masked else "unmasked"
    part = "" if kind.queries == kind.length else f"{kind.queries} of "
    log.info(
        "attention: %s for %s%s tokens, head_dim %d, %s, %s on %s",
        *(name, part, kind.length, kind.head_dim, kind.dtype, what, kind.platform),
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


def _is_for_splash(kind: Kind) -> bool:
    """Says of which kinds the kernel was compiled, and moved less memory than XLA.

    benchmarks/attention.py compares them; its table of results is in docs/many_machines.md.
    """
    return (
        kind.platform == "tpu"
        and kind.dtype == "bfloat16"
        and kind.head_dim in splash.HEAD_DIMS
        and kind.queries == kind.length >= splash.LEAST_TOKENS
        and kind.length % splash.LANES == 0
        and kind.by_document
        and kind.divided
        and splash.is_installed()
    )


def by_splash(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, sees: Sees) -> Array:
    """Returns x_BLHK by the kernel of `splash`, on each device of its own part."""
    names, arrays = ["heads"] * 3, [q_BLHK, k_BLHK, v_BLHK]
    if isinstance(sees, Documents):
        names, arrays = [*names, "inputs"], [*arrays, sees.segments_BL]
    return placement.on_parts(splash.attend, names, *arrays)


class Way(NamedTuple):
    """A program of attention: the kinds that it is for, and the function."""

    fits: Callable[[Kind], bool]
    run: Callable[[Array, Array, Array, Sees], Array]


def by_mask(run: Callable[..., Array]) -> Callable[[Array, Array, Array, Sees], Array]:
    """Returns `run`, which takes a mask or None, for all of `Sees`."""

    def masked(q_BLHK: Array, k_BMHK: Array, v_BMHK: Array, sees: Sees) -> Array:
        return run(q_BLHK, k_BMHK, v_BMHK, mask_of(sees))

    return masked


# The first way that fits is taken. float32 is never computed by cuDNN, which has no such
# kernel, nor by splash, which was not compared in it.
WAYS = {
    "cudnn": Way(_is_for_cudnn, by_mask(flash)),
    "splash": Way(_is_for_splash, by_splash),
    "xla": Way(lambda kind: True, by_mask(by_platform)),
}
