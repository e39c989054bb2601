"""SIGTERM and Ctrl-C: training stops at the next safe point, saves and exits with code 0."""

import logging
import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Preemption:
    """A context in which SIGTERM and SIGINT (Ctrl-C) request a stop of training.

    A second SIGINT ends the process at once. `requested()` is polled after every step,
    `has_signal()` more often.

    Several processes must all stop at the same poll. JAX's own preemption service (started
    by `jax.distributed.initialize`) then catches the signal. It makes all of them stop at
    the poll after the last that any process made, and never at a later one. Polls are
    therefore counted here, over all stages, and nothing else may poll the service
    (`checkpoint` prevents Orbax from doing so).
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
        """Sends SIGTERM to this process, and lets the next Ctrl-C end it at once."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log.info("stopping with a checkpoint; Ctrl-C again ends at once, without one")
        os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, *_: object) -> None:
        self._flag.set()

    def requested(self) -> bool:
        """Returns whether a signal came; with several processes, at the same poll on all."""
        if jax.process_count() > 1:
            self._num_polls += 1
            return multihost_utils.reached_preemption_sync_point(self._num_polls)
        return self._flag.is_set()

    def has_signal(self) -> bool:
        """Returns whether a signal came; always False with several processes.

        It may be called between two steps, when processes are not at the same point.
        """
        return self._flag.is_set()
