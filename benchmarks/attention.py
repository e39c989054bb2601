"""Each way to compute attention, forward and backward: seconds and errors, or compiled alone.

Run     python benchmarks/attention.py [--lengths=50,197,...] [--dtype=bfloat16]
        python benchmarks/attention.py --topology=v5e:2x2 [--ways=splash,xla] ...
Prints  one JSON line for each kind (tokens, head_dim, masked): of every way that fits
        (`models.attention.WAYS`) the median milliseconds of a gradient, and the largest
        difference of outputs and gradients to float32, relative to the largest number; and
        the way that is chosen. With a topology nothing runs: the program of one chip of it
        is compiled, and the line has its bytes of main memory, products, the milliseconds
        that both take at least (docs/plan.md, "The roofline") and its temporaries.
"""

import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from flax_adapt.models import attention
from flax_adapt.plan import cost, hlo, plans, roofline
from flax_adapt.train import sharding

_LENGTHS = flags.DEFINE_list("lengths", [50, 128, 197, 257, 512], "tokens of a row")
_WIDTHS = flags.DEFINE_list("head_dims", [32, 64, 80], "widths of a head")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of the computation")
_TOKENS = flags.DEFINE_integer("tokens", 25_000, "tokens of a batch, about")
_HEADS = flags.DEFINE_integer("heads", 12, "heads")
_WAYS = flags.DEFINE_list(
    "ways", [], "ways to compare; those that fit if there are none"
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "hardware to compile for")
ROUNDS = 20


def shape_of(kind):
    """Sizes of q, k, v and of the slope of the output."""
    batch = max(1, _TOKENS.value // kind.length)
    return batch, kind.length, _HEADS.value, kind.head_dim


def inputs(kind):
    """q, k, v, slope [B, L, H, K], and the documents' segments_BL or None."""
    batch, length, *_ = shape = shape_of(kind)
    four = [jax.random.normal(jax.random.key(n), shape, kind.dtype) for n in range(4)]
    if not kind.masked:
        return [*four, None]
    shown_B = jax.random.randint(jax.random.key(4), (batch,), 1, length + 1)
    return [*four, (jnp.arange(length)[None] < shown_B[:, None]).astype(jnp.int32)]


def gradient(run):
    """A jitted function of q, k, v, slope, segments_BL: the output and the gradients."""

    def of(q, k, v, slope, segments_BL):
        sees = None
        if segments_BL is not None:
            sees_BLM = segments_BL[:, :, None] == segments_BL[:, None]
            sees = attention.Documents(sees_BLM, segments_BL)
        x, pull = jax.vjp(lambda *qkv: run(*qkv, sees), q, k, v)
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


def ways_of(kind):
    """The ways to compare, by name."""
    chosen = _WAYS.value or [n for n, way in attention.WAYS.items() if way.fits(kind)]
    return {name: attention.WAYS[name].run for name in chosen}


def run_ways(kind):
    """What is printed of a kind on this machine."""
    *four, segments_BL = inputs(kind)
    wide = [x.astype(jnp.float32) for x in four]
    exact_run = attention.by_mask(attention.unfused)
    with jax.default_matmul_precision("highest"):
        exact = gradient(exact_run)(*wide, segments_BL)
    found = {}
    for name, run in ways_of(kind).items():
        call = functools.partial(gradient(run), *four, segments_BL)
        error = errors_of(call(), exact)
        found[name] = dict(milliseconds=milliseconds(call), error=error)
    return found


def compile_ways(hardware, kind):
    """What is printed of a kind on one chip of hardware that is not there."""
    mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), hardware.devices[:1])
    whole = sharding.whole_on_every_device(mesh)
    described = functools.partial(jax.ShapeDtypeStruct, sharding=whole)
    four = [described(shape_of(kind), kind.dtype)] * 4
    segments_BL = described(shape_of(kind)[:2], jnp.int32) if kind.masked else None
    found = {}
    for name, run in ways_of(kind).items():
        with sharding.placing(mesh):
            traced = gradient(run).trace(*four, segments_BL)
        lowered = traced.lower(lowering_platforms=(kind.platform,))
        found[name] = weigh(lowered.compile(), hardware.topology.chip)
    return found


def weigh(compiled, chip):
    """The sizes of a program of one chip."""
    costs = cost.count_costs(hlo.parse(compiled.as_text()), 1)
    bound = roofline.bound_time(costs, chip, "bfloat16")
    return {
        "gigabytes": sum(c.times * c.bytes for c in costs) / 1e9,
        "gflop": cost.sum_flops(costs) / 1e9,
        "milliseconds_at_least": 1e3 * bound.seconds,
        "temporaries_mib": plans.count_bytes(compiled)["temporaries"] / 2**20,
    }


def main(_):
    if not _TOPOLOGY.value:
        platform, measure = jax.default_backend(), run_ways
    else:
        jax.config.update("jax_platforms", "cpu")  # nothing runs on an accelerator
        hardware = plans.find_hardware(_TOPOLOGY.value)
        platform = hardware.devices[0].platform
        measure = functools.partial(compile_ways, hardware)
    for head_dim in map(int, _WIDTHS.value):
        for length in map(int, _LENGTHS.value):
            for masked in (False, True):
                sizes = (platform, _DTYPE.value, head_dim, length, length, masked)
                kind = attention.Kind(*sizes, by_document=True, divided=True)
                chosen = attention.choose(kind)
                line = {**kind._asdict(), "chosen": chosen, **measure(kind)}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    app.run(main)
