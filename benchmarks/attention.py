"""Seconds and errors of each way to compute attention, forward and backward.

Run     python benchmarks/attention.py [--lengths=50,197,...] [--dtype=bfloat16]
Prints  one JSON line for each kind (tokens, head_dim, masked): of every way that fits
        (`models.attention.WAYS`) the median milliseconds of a gradient, and the largest
        difference of outputs and gradients to float32, relative to the largest number; and
        the way that is chosen.
"""

import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from flax_adapt.models import attention

_LENGTHS = flags.DEFINE_list("lengths", [50, 128, 197, 257, 512], "tokens of a row")
_WIDTHS = flags.DEFINE_list("head_dims", [32, 64, 80], "widths of a head")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of the computation")
_TOKENS = flags.DEFINE_integer("tokens", 25_000, "tokens of a batch, about")
HEADS, ROUNDS = 12, 20


def inputs(kind):
    """q, k, v and the slope of the output [B, L, H, K]; sees_BLM or None."""
    batch = max(1, _TOKENS.value // kind.length)
    shape = (batch, kind.length, HEADS, kind.head_dim)
    four = [jax.random.normal(jax.random.key(n), shape, kind.dtype) for n in range(4)]
    if not kind.masked:
        return four, None
    shown_B = jax.random.randint(jax.random.key(4), (batch,), 1, kind.length + 1)
    seen_BM = jnp.arange(kind.length)[None] < shown_B[:, None]
    sees_BLM = jnp.broadcast_to(seen_BM[:, None], (batch, kind.length, kind.length))
    return four, sees_BLM


def gradient(run, sees_BLM):
    """A jitted function of q, k, v, slope: the output and the gradients."""

    def of(q, k, v, slope):
        x, pull = jax.vjp(lambda *qkv: run(*qkv, sees_BLM), q, k, v)
        return x, pull(slope.astype(x.dtype))

    return jax.jit(of)


def errors_of(found, exact):
    """The largest difference to float32, relative to the largest number, of all outputs."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    return max(
        float(jnp.max(jnp.abs(x.astype(jnp.float32) - y)) / jnp.max(jnp.abs(y)))
        for x, y in pairs
    )


def milliseconds(call):
    """The median of ROUNDS calls."""
    seconds = []
    for _round in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def compare(kind):
    """What is printed of a kind."""
    four, sees_BLM = inputs(kind)
    wide = [x.astype(jnp.float32) for x in four]
    with jax.default_matmul_precision("highest"):
        exact = gradient(attention.unfused, sees_BLM)(*wide)
    found = {}
    for name, way in attention.WAYS.items():
        if way.fits(kind):
            call = functools.partial(gradient(way.run, sees_BLM), *four)
            error = errors_of(call(), exact)
            found[name] = dict(milliseconds=milliseconds(call), error=error)
    return {**kind._asdict(), "chosen": attention.choose(kind), **found}


def main(_):
    backend = jax.default_backend()
    of_dtype = functools.partial(attention.Kind, backend, _DTYPE.value)
    for head_dim in map(int, _WIDTHS.value):
        for length in map(int, _LENGTHS.value):
            for masked in (False, True):
                kind = of_dtype(head_dim, length, length, masked)
                print(json.dumps(compare(kind)), flush=True)


if __name__ == "__main__":
    app.run(main)
