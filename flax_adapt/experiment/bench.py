"""Measures the training step of every kind of stage on the devices of this machine.

The program of a stage is compiled and run twice: on a batch that lies on the devices, with
random parameters, and in a short run of the stage itself, which reads weights and data.
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import models
from flax_adapt.base import rules
from flax_adapt.experiment import timing
from flax_adapt.plan import flops, plans, topology
from flax_adapt.plan.plans import Kind
from flax_adapt.plan.roofline import peak_flops
from flax_adapt.stage import shapes
from flax_adapt.stage.shapes import Described
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding
from flax_adapt.train.precision import dtype_of, settle
from flax_adapt.train.preemption import Preemption

WARM_UP, ROUNDS = 2, 5
# Side of the square matrices whose product is the measured peak, by platform.
_SIDES = {"cpu": 2_048, "gpu": 8_192, "tpu": 8_192}
FOLDER = "bench"


def measure_kind(
    kind: Kind, workdir: Path, preemption: Preemption, *, reads: bool
) -> dict[str, Any]:
    """Returns what was measured of a kind of stages, as JSON values.

    reads: also run the stage itself, with its data, in a folder of `workdir` that is
    removed. seconds: median of a step, without and with the input pipeline. share_of_matmul:
    FLOP/s of the mathematics over those of a matrix product, measured here; mfu: over the
    published peak of the devices, None where it is not known. memory: bytes of a device, as
    XLA assigned them. Raises UserError where the config does not fit the devices.
    """
    stage = kind.stage
    mesh = sharding.make_mesh(stage.experiment.mesh)
    described = shapes.describe(stage, mesh)
    step = described.program.make_step(mesh)
    lowered = step.lower(described.state, described.batch)
    begun = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begun
    seconds: dict[str, float] = {"step": time_program(compiled, described)}
    if reads:
        seconds["with_input"] = _time_stage(stage, workdir, preemption)
    return {
        **dict(stage=kind.names[0], stages=list(kind.names)),
        **dict(batch=stage.config.batch_size, compile_seconds=compile_seconds),
        **dict(seconds=seconds, memory=plans.count_bytes(compiled)),
        **_rates(described, seconds),
    }


def _rates(described: Described, seconds: dict[str, float]) -> dict[str, Any]:
    stage, devices = described.stage, jax.devices()
    precision, count = settle(stage.experiment.precision), flops.count_step(described)
    rate = count / seconds["step"]
    matmul = len(devices) * measure_matmul(precision)
    chip = topology.find_chip(devices[0])
    peak = 0.0 if chip is None else len(devices) * peak_flops(chip, precision)
    return {
        "examples_per_second": {
            name: stage.config.batch_size / each for name, each in seconds.items()
        },
        **dict(flops=count, flops_per_second=rate, matmul_flops_per_second=matmul),
        **dict(share_of_matmul=rate / matmul, mfu=rate / peak if peak else None),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def time_program(compiled: Any, described: Described) -> float:
    """Returns the median seconds of a compiled step on random numbers."""
    state = _fill(described.state)
    batch, frozen, times = _fill(described.batch), state.frozen, []
    state, more = state.replace(frozen={}), {}
    if described.program.rate is not None:
        more = {"rate": jax.device_put(np.float32(1e-3), state.step.sharding)}
    for _ in range(WARM_UP + ROUNDS):
        begun = time.perf_counter()
        state, metrics = compiled(state, frozen, batch, more)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:])


def _fill(tree: Any) -> Any:
    """Returns arrays for shapes with shardings: small random numbers, ones for integers."""
    rng = np.random.default_rng(0)

    def fill(name: str, leaf: jax.ShapeDtypeStruct) -> Any:
        del name
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            values = np.ones(leaf.shape, leaf.dtype)
        else:
            # not below 0, as second moments and weights of examples are
            values = 0.02 * rng.random(leaf.shape, np.float32)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return rules.map_named(fill, tree)


def measure_matmul(precision: str) -> float:
    """Returns the FLOP/s of a product of square matrices on one device, the best of five."""
    side = _SIDES.get(jax.default_backend(), _SIDES["cpu"])
    a = jax.random.normal(
        jax.random.key(0), (side, side), models.DTYPES[dtype_of(precision)]
    )
    product, times = jax.jit(lambda a: a @ a), []
    product(a).block_until_ready()
    for _ in range(5):
        begun = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - begun)
    return 2 * side**3 / min(times)


def _time_stage(stage: Stage, workdir: Path, preemption: Preemption) -> float:
    """Returns the seconds of a step of a short run, data and weights included."""
    folder = workdir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    short = timing.shorten(stage.experiment, stage.config)
    try:
        return timing.time_steps(
            Stage(stage.experiment, short, stage.seed, folder), preemption
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe(found: dict[str, Any]) -> str:
    """Returns what is printed of a measured kind."""
    rates, seconds = found["examples_per_second"], found["seconds"]
    lines = [f"{' and '.join(found['stages'])} on {found['devices']}"]
    names = {"step": "without input", "with_input": "with input"}
    for name, each in seconds.items():
        lines.append(
            f"  {names[name]:<14} {each:.4g} s a step of {found['batch']}, "
            f"{rates[name]:.4g} examples/s"
        )
    share = f"{found['share_of_matmul']:.1%} of a matrix product measured here"
    if found["mfu"] is not None:
        share += f", MFU {found['mfu']:.1%} of the published peak"
    lines.append(f"  {'FLOP/s':<14} {found['flops_per_second']:.4g}, {share}")
    lines.append(f"  {'compile':<14} {found['compile_seconds']:.1f} s")
    gib = sum(found["memory"].values()) / topology.GIB
    lines.append(f"  {'memory':<14} {gib:.2f} GiB a device")
    return "\n".join(lines)
