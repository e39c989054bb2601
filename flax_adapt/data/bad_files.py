"""Counts and logs files and rows that cannot be decoded; too many of them are an error."""

import logging
import threading

from flax_adapt.base import errors

log = logging.getLogger(__name__)


class BadFiles:
    """The distinct undecodable examples of one source; threads may share it.

    log: a file to which lines "name<TAB>reason" are appended; "": none.
    """

    def __init__(self, where: str, count: int, max_bad_fraction: float, log: str):
        self._where, self._count, self._log = where, count, log
        self._max_bad_fraction = max_bad_fraction
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the undecodable examples so far, in the order they were found."""
        return tuple(self._reasons)

    def add(self, name: str, reason: str) -> None:
        """Records one example; raises UserError once there are more than the limit."""
        with self._lock:
            is_new = name not in self._reasons
            if is_new:
                self._reasons[name] = reason
                self._note(name, reason)
            if len(self) > self._max_bad_fraction * self._count:
                raise errors.UserError(self._too_many())
            if is_new and len(self) == 1:
                log.warning("%s: cannot decode %s (%s)", self._where, name, reason)

    def _note(self, name: str, reason: str) -> None:
        if self._log:
            # A file name need not be valid UTF-8.
            with open(self._log, "a", encoding="utf-8", errors="backslashreplace") as f:
                f.write(f"{name}\t{reason}\n")

    def _too_many(self) -> str:
        limit = int(self._max_bad_fraction * self._count)
        see = f", all in {self._log}" if self._log else ""
        return (
            f"{self._where}: {len(self)} of {self._count} examples cannot be decoded"
            f" and data.max_bad_fraction={self._max_bad_fraction} allows {limit}:"
            f" {', '.join(self.names[:3])}{see} ({next(iter(self._reasons.values()))});"
            " repair or remove them, or raise it"
        )
