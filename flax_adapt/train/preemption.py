"""SIGTERM and Ctrl-C: go on to the next safe point, save, end with exit code 0."""

import logging
import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Preemption:
    """Remembers SIGTERM and SIGINT (Ctrl-C); a second SIGINT ends the process at once.

    `requested()` is polled after every step, `noted()` more often.

    With several processes all of them must stop at the same poll: then JAX's own
    preemption service (started by `jax.distributed.initialize`) holds the signal. It
    lets everyone stop at the poll after the last that any process made, and never at a
    later one; so polls are counted here, over all stages, and nothing else may poll it
    (`checkpoint` keeps Orbax from that).
    """

    def __init__(self) -> None:
        self._flag, self._num_polls = threading.Event(), 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGINT: self._interrupt}
            if jax.process_count() == 1:
                handlers[signal.SIGTERM] = self._note
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _interrupt(self, *_: object) -> None:
        """Stops as SIGTERM does; from now on the system itself obeys the next Ctrl-C."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log.info("stopping with a checkpoint; Ctrl-C again ends at once, without one")
        os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, *_: object) -> None:
        self._flag.set()

    def requested(self) -> bool:
        """True once a signal came; with several processes, at the same poll on all."""
        if jax.process_count() > 1:
            self._num_polls += 1
            return multihost_utils.reached_preemption_sync_point(self._num_polls)
        return self._flag.is_set()

    def noted(self) -> bool:
        """True once a signal came to this single process (for use between steps)."""
        return self._flag.is_set()
