"""SIGTERM: note it, go on to the next safe point, save, end with exit code 0."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was asked to stop; everything needed to continue is on disk."""


class Preemption:
    """Remembers a SIGTERM. `requested(step)` is polled between steps and eval batches.

    With several processes all of them must stop at the same step: then JAX's own
    preemption service (started by `jax.distributed.initialize`) holds the signal.
    """

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        in_main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and in_main_thread:
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, *_: object) -> None:
        self._flag.set()

    def requested(self, step: int) -> bool:
        """True once SIGTERM came; with several processes, at the same step on all."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._flag.is_set()

    def noted(self) -> bool:
        """True once SIGTERM came to this single process (for use between steps)."""
        return self._flag.is_set()
