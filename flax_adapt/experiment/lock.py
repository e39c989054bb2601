"""The lock of a workdir, for one run at a time; the lock of a dead run does not count.

`lock.json` is locked by the kernel (flock) while a run is alive, so that the end of its
process, by whatever signal, frees it: a process number that is used again cannot deceive.
It names host, process and start, for the message. Some network file systems lock only
within a host, or not at all. So a run also touches the file every `BEAT_SECONDS`. A file
that names another host and was not released is watched for `WATCH_SECONDS`: if it is
touched, its run is alive, else dead. Clocks of two hosts are never compared.

Of a workdir on remote storage the lock is one of this machine: runs of others do not see it.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flax_adapt.base import file_locks
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import workdirs

FILE = workdirs.LOCK
BEAT_SECONDS, WATCH_SECONDS = 5.0, 20.0
log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the lock of `workdir`; raises UserError while another run holds it."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdirs.lock_file(workdir)
    with path.open("a+", encoding="utf-8") as file:
        _acquire(workdir, path, file)
        _write(file, _describe_this_run())
        stopped = threading.Event()
        threading.Thread(target=_beat, args=(path, stopped), daemon=True).start()
        try:
            yield
        finally:
            stopped.set()
            _write(file, None)


def _acquire(workdir: Path, path: Path, file: IO[str]) -> None:
    locked, owner = file_locks.attempt(file), _read(file)
    if locked is False:
        raise UserError(_in_use(workdir, owner))
    # The kernel knows the runs of this host, and those of others only where flock works
    # across hosts.
    known_dead = locked and (owner is None or owner["host"] == socket.gethostname())
    if owner is None or known_dead:
        return
    log.info("%s: watching whether its run on %s is alive", workdir, owner["host"])
    if _is_touched(path):
        raise UserError(_in_use(workdir, owner))


def _is_touched(path: Path) -> bool:
    """Returns whether another process touches the file while it is watched."""
    before, end = path.stat().st_mtime_ns, time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 5)
        with path.open():  # opening makes a network file system look again
            if path.stat().st_mtime_ns != before:
                return True
    return False


def _in_use(workdir: Path, owner: dict[str, Any] | None) -> str:
    who = "another run"
    if owner is not None:
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    return (
        f"{workdir} is in use by {who}: wait for it, stop it, or use another --workdir"
    )


def _describe_this_run() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _read(file: IO[str]) -> dict[str, Any] | None:
    """Returns host, process and start of the run that wrote the file; None if it released it."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return {name: owner[name] for name in ("host", "pid", "since")}
    except (ValueError, TypeError, KeyError):  # empty, or cut short by a full disk
        return None


def _write(file: IO[str], owner: dict[str, Any] | None) -> None:
    file.seek(0)
    file.truncate()
    if owner is not None:
        file.write(json.dumps(owner) + "\n")
    file.flush()


def _beat(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
