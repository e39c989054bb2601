"""Hardware by name, such as "v5e:16x16": its devices, which need not be there, and peaks.

Peaks are the vendors' published ones: of TPUs docs.cloud.google.com/tpu/docs/v5e, v5p and
v6e (bfloat16 FLOP/s, HBM bandwidth, inter-chip bandwidth, both directions, here halved), of
the H100 SXM its data sheet (dense, NVLink both directions, here halved). The limit of HBM is
what XLA lets a program use of it. "cpu" is no machine: round numbers, to try the command.
"""

import contextlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from flax_adapt.base.errors import UserError, choose
from flax_adapt.plan import gpu


class Chip(NamedTuple):
    """Peaks of one chip.

    flops: FLOP/s of matrix products in bfloat16. float32_passes, highest_passes: how much
    slower those of precision "float32" and "highest" are (`train.precision`). hbm, link:
    bytes/s of its memory, and to other chips in one direction. gib: memory that a program
    can use. lanes: what matrix units pad sizes to.
    """

    platform: str
    flops: float
    float32_passes: float
    highest_passes: float
    hbm: float
    link: float
    gib: float
    lanes: int


# A TPU multiplies "float32" in three bfloat16 passes and "highest" in six; a GPU by TF32.
CHIPS = {
    "v5e": Chip("tpu", 197e12, 3, 6, 819e9, 200e9, 15.75, 128),
    "v5p": Chip("tpu", 459e12, 3, 6, 2765e9, 600e9, 95.74, 128),
    "v6e": Chip("tpu", 918e12, 3, 6, 1640e9, 400e9, 31.25, 256),
    "h100": Chip("cuda", 989e12, 2, 989 / 67, 3350e9, 450e9, 79.1, 64),
    "cpu": Chip("cpu", 100e9, 1, 1, 10e9, 1e9, 4.0, 8),
}
# What JAX calls a device (`device_kind`, its beginning) -> key of CHIPS.
_DEVICE_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
}
GIB = 2**30
_EXAMPLES = "v5e:4x4, v5e:16x16, v5p:2x2x4, v6e:4x4, h100:8, cpu:8"


class Topology(NamedTuple):
    """A number of chips of one kind. name: as it was given."""

    name: str
    kind: str
    sizes: tuple[int, ...]
    chip: Chip

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.sizes)


def find_chip(device: Any) -> Chip | None:
    """Returns the peaks of a device of this machine; None where they are not known."""
    for beginning, kind in _DEVICE_KINDS.items():
        if device.device_kind.startswith(beginning):
            return CHIPS[kind]
    return None


def parse(name: str) -> Topology:
    """Returns the topology of a name; raises UserError for one that cannot be."""
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if not found:
        raise UserError(f"--topology={name} must be KIND:SIZES, such as {_EXAMPLES}")
    chip = choose(f"--topology={name}: the kind of chip", found[1], CHIPS)
    sizes = tuple(int(size) for size in found[2].split("x"))
    if chip.platform != "tpu" and len(sizes) > 1:
        raise UserError(
            f"--topology={name}: give the number of devices, such as {found[1]}:8"
        )
    return Topology(name, found[1], sizes, chip)


def list_devices(topology: Topology) -> list[Any]:
    """Returns its devices in the order in which a run lays them out.

    Those of a TPU or GPU can only be compiled for. Raises UserError where the extra that
    brings the compiler is not installed, or there is no such topology.
    """
    with _quiet_stderr():  # plugins of JAX, too, tell that there is no accelerator
        found = _DEVICES[topology.chip.platform](topology)
    return sorted(found, key=lambda device: (device.process_index, device.id))


def _tpu(topology: Topology) -> list[Any]:
    _check_extra("libtpu", "tpu", topology)
    # Without a TPU libtpu looks for one, and says at length that it finds none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # No TPU is opened, so another process may have it, or compile for one.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    with _no_such(topology):
        return topologies.get_topology_desc(topology.name, platform="tpu").devices


def _cuda(topology: Topology) -> list[Any]:
    _check_extra("jax_cuda12_plugin", "cuda", topology)
    with _no_such(topology):
        return gpu.describe_devices(topology.chips)


def _cpu(topology: Topology) -> list[Any]:
    # Without an effect, or refused, where JAX has started.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", topology.chips)
    found = jax.devices("cpu")
    if len(found) < topology.chips:
        raise UserError(
            f"--topology={topology.name}: JAX has started with {len(found)} CPU devices"
        )
    return found[: topology.chips]


_DEVICES: dict[str, Callable[[Topology], list[Any]]] = {
    "tpu": _tpu,
    "cuda": _cuda,
    "cpu": _cpu,
}


def _check_extra(module: str, extra: str, topology: Topology) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"--topology={topology.name} needs the compiler of that hardware: "
            f'pip install "flax-adapt[{extra}]"'
        )


@contextlib.contextmanager
def _no_such(topology: Topology) -> Iterator[None]:
    try:
        yield
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--topology={topology.name}: {reason}") from None


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drops what native libraries write to file descriptor 2 inside."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
