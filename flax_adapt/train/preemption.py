"""SIGTERM: note it, go on to the next safe point, save, end with exit code 0."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Remembers a SIGTERM. `requested()` is polled after every step, `noted()` more often.

    With several processes all of them must stop at the same poll: then JAX's own
    preemption service (started by `jax.distributed.initialize`) holds the signal. It
    lets everyone stop at the poll after the last that any process made, and never at a
    later one; so polls are counted here, over all stages, and nothing else may poll it
    (`checkpoint` keeps Orbax from that).
    """

    def __init__(self) -> None:
        self._flag, self._num_polls = threading.Event(), 0
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

    def requested(self) -> bool:
        """True once SIGTERM came; with several processes, at the same poll on all."""
        if jax.process_count() > 1:
            self._num_polls += 1
            return multihost_utils.reached_preemption_sync_point(self._num_polls)
        return self._flag.is_set()

    def noted(self) -> bool:
        """True once SIGTERM came to this single process (for use between steps)."""
        return self._flag.is_set()
