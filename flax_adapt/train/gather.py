"""What processes do together: gather arrays, and wait for each other."""

import itertools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_adapt.base.remote import workdirs

# A barrier waits for a process that writes a large file, however long that takes; one that
# is gone is noticed by other means (`commands.processes`).
_DAY_MS = 24 * 3600 * 1000
_numbers = itertools.count()  # every barrier has a name of its own


def gather_on_first(tree: Any) -> Any:
    """Returns the tree as NumPy arrays on process 0, and with None for every leaf elsewhere.

    All processes must call it. One leaf at a time is whole on every process; process 0 keeps
    them, the others drop them.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    is_first = jax.process_index() == 0

    def gather(leaf: Any) -> np.ndarray | None:
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(whole) if is_first else None

    return jax.tree.map(gather, tree)


def join_rows(rows: Any) -> Any:
    """Returns a tree of NumPy arrays [b, ...] of this process as [B, ...] of all processes.

    All processes must call it. Rows are in the order of the processes, as in a batch that
    `sharding.put_batch` makes of them on a mesh without "tensor".
    """
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(rows, tiled=True)


def wait_for_all(name: str) -> None:
    """Waits until all processes have called it, in the same order.

    Not by a collective operation of the devices (`multihost_utils.sync_global_devices`):
    that of CPUs fails after half a minute. name: shown where one process waits in vain.
    """
    if jax.process_count() == 1:
        return
    coordination().wait_at_barrier(f"{name} {next(_numbers)}", timeout_in_ms=_DAY_MS)


def wait_for_files(name: str) -> None:
    """Waits until all processes can read what process 0 wrote into the workdir.

    All processes must call it, in the same order.
    """
    workdirs.push()
    wait_for_all(name)
    workdirs.pull()


def share_files(name: str) -> None:
    """As `wait_for_files`, where processes have copies of a workdir on remote storage."""
    if workdirs.is_open():
        wait_for_files(name)


def coordination() -> Any:
    """Returns JAX's client of process 0: barriers, and a store of keys and values."""
    from jax._src import distributed  # JAX has no public way to it

    return distributed.global_state.client
