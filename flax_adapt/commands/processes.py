"""Joins this process to the others of a run, and ends it when one of them is gone.

Which process this is, and where process 0 is, come from flags, or with `--coordinator=auto`
from the environment: ours (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, and JAX_PROCESS_ID or
the index of a Kubernetes Job), or one that JAX knows (Cloud TPU, GKE, SLURM, Open MPI).

A process that waits for a dead one in a collective operation waits for ever. Every process
therefore counts up a number in the key-value store of process 0, and looks at the numbers of
the others. JAX's own heartbeat would find the same, and would end this process by an abort
with a stack trace; it is left `SPARE_SECONDS` later, for a process whose watch hangs, too.
"""

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

from flax_adapt.base.errors import UserError
from flax_adapt.train import gather

log = logging.getLogger(__name__)
BEAT_SECONDS, SPARE_SECONDS = 2.0, 30
KEYS = "flax_adapt/beats/"
NOTHING_FOUND = (
    "--coordinator=auto: this is no TPU VM, SLURM step (srun), GKE job or Open MPI process; "
    "give --coordinator=HOST:PORT --num_processes=N --process_id=I, or leave it away for "
    "one process"
)


def join(
    coordinator: str, num_processes: int, process_id: int, peer_timeout: int
) -> None:
    """Joins the other processes; without a coordinator this process runs alone.

    peer_timeout: seconds without a sign of another process after which this one ends, with
    one line and exit code 1. Raises UserError for flags that do not fit together, where
    "auto" finds nothing, and where the others cannot be reached.
    """
    _check_flags(coordinator, num_processes, process_id, peer_timeout)
    if not coordinator:
        return
    chosen: dict[str, Any] = dict(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
    )
    if coordinator == "auto":
        chosen = detect(os.environ)
    try:
        jax.distributed.initialize(
            **chosen, heartbeat_timeout_seconds=peer_timeout + SPARE_SECONDS
        )
    except (
        Exception
    ) as error:  # of gRPC, of a metadata server, of a scheduler's variables
        if "coordinator_address should be defined" in str(error):
            raise UserError(NOTHING_FOUND) from None
        raise UserError(f"--coordinator={coordinator}: {error}") from None
    if jax.process_index() > 0:
        # What all processes have to say, process 0 says.
        logging.getLogger("flax_adapt").setLevel(logging.WARNING)
    watch_peers(peer_timeout)


def _check_flags(
    coordinator: str, num_processes: int, process_id: int, peer_timeout: int
) -> None:
    """Refuses flags with which every process would run alone in the same workdir."""
    if peer_timeout < 10:
        raise UserError(f"--peer_timeout={peer_timeout} must be 10 (seconds) or more")
    if coordinator in ("", "auto"):
        if (num_processes, process_id) != (1, 0):
            raise UserError(
                "--num_processes and --process_id need --coordinator=host:port"
            )
    elif not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} must be host:port or auto")
    elif not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must lie in 0 to {num_processes - 1} (there are "
            f"--num_processes={num_processes})"
        )


def detect(variables: Mapping[str, str]) -> dict[str, Any]:
    """Returns the arguments of `jax.distributed.initialize` for `--coordinator=auto`.

    variables: the environment. {}: JAX detects everything. Raises UserError for variables
    that are incomplete or no numbers.
    """
    if "JAX_COORDINATOR_ADDRESS" in variables:
        return {
            "coordinator_address": variables["JAX_COORDINATOR_ADDRESS"],
            "num_processes": _number(variables, "JAX_NUM_PROCESSES"),
            "process_id": _number(variables, "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),
        }
    # Under SLURM, JAX gives each process one GPU. A process that is alone on its node is
    # there for all of them.
    tasks = variables.get("SLURM_STEP_TASKS_PER_NODE", "")
    if re.fullmatch(r"1(\(x\d+\))?", tasks) and "SLURM_GPUS_ON_NODE" in variables:
        return {"local_device_ids": [*range(_number(variables, "SLURM_GPUS_ON_NODE"))]}
    return {}


def _number(variables: Mapping[str, str], *names: str) -> int:
    """Returns the number in the first of the variables that is set."""
    for name in names:
        if re.fullmatch(r"\d+", variables.get(name, "")):
            return int(variables[name])
    raise UserError(
        "--coordinator=auto: JAX_COORDINATOR_ADDRESS is set, so the number in "
        f"{' or '.join(names)} is needed too"
    )


def watch_peers(peer_timeout: float) -> None:
    """Starts the thread that ends this process when another one gives no more signs.

    Process 0 holds the key-value store, so it waits a little longer than the others, which
    would be aborted without it.
    """
    if jax.process_count() == 1:
        return
    limit = peer_timeout + (2 * BEAT_SECONDS if jax.process_index() == 0 else 0)
    over = threading.Event()
    watching = threading.Thread(
        target=_watch, args=(gather.coordination(), limit, over), daemon=True
    )
    watching.start()
    atexit.register(_stop_watching, watching, over)


def _stop_watching(watching: threading.Thread, over: threading.Event) -> None:
    """Ends the thread of `watch_peers` before Python does.

    Python ends a thread that is inside of JAX's client by an abort of the process.
    """
    over.set()
    watching.join(timeout=BEAT_SECONDS)


def _watch(client: Any, limit: float, over: threading.Event) -> None:
    own, count = jax.process_index(), 0
    seen: dict[str, tuple[str, float]] = {}
    while not over.is_set():
        count += 1
        try:
            client.key_value_set(f"{KEYS}{own}", str(count), allow_overwrite=True)
            found = dict(client.key_value_dir_get(KEYS))
        except (
            Exception
        ):  # this run is over, or process 0 is gone, which JAX notices itself
            return
        lost = find_silent(found, seen, time.monotonic(), limit)
        if lost:
            _end(lost, limit)
        over.wait(BEAT_SECONDS)


def find_silent(
    found: Mapping[str, str],
    seen: dict[str, tuple[str, float]],
    now: float,
    limit: float,
) -> list[str]:
    """Returns the processes whose number has not changed for `limit` seconds.

    found: {key: number now}. seen: {key: (number, since when)}, which is brought up to date.
    """
    for key, number in found.items():
        if seen.get(key, ("", 0.0))[0] != number:
            seen[key] = (number, now)
    return [
        key.rpartition("/")[2]
        for key, (_, since) in seen.items()
        if now - since > limit
    ]


def _end(lost: list[str], limit: float) -> None:
    print(
        f"flax-adapt: process {', '.join(lost)} has given no sign for {limit:.0f} s: this one "
        "ends too; start all processes again to go on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
