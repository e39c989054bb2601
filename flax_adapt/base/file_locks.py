"""Locks of open files, which the processes of a machine share and which end with them.

Windows has none of them, nor have some network file systems.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Waits for the lock of a file, which is made if need be, and holds it.

    Where there are no locks it does not wait.
    """
    with path.open("ab") as file:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def attempt(file: IO[Any]) -> bool | None:
    """Returns whether the file is locked now; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
