"""What the numbers of a benchmark were measured on."""

import os
import platform
from pathlib import Path


def name_processor():
    """The model of the processor, or its kind where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(": ")[2] for line in lines if "model name" in line)
    return next(named, platform.processor() or platform.machine())


def describe():
    """Cores, devices and JAX, in words."""
    import jax  # not where processes are forked that only decode

    cores = len(os.sched_getaffinity(0))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{cores} cores of {name_processor()}; devices: {devices}; jax {jax.__version__}"
