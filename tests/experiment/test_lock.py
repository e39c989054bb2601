"""A workdir is held by one run at a time; what a dead run left is no obstacle."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from flax_adapt.base import file_locks
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import lock

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(sys.argv[2])
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def owner(**changes):
    here = {"host": socket.gethostname(), "pid": os.getpid(), "since": "2026-01-01"}
    return json.dumps({**here, **changes})


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.5)


def take(workdir):
    with lock.hold(workdir):
        pass


def test_a_second_run_is_refused_and_told_who_runs(tmp_path):
    with lock.hold(tmp_path):
        with pytest.raises(UserError) as caught:
            take(tmp_path)
        stored = json.loads((tmp_path / lock.FILE).read_text())
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in str(
        caught.value
    )
    assert stored["pid"] == os.getpid()
    assert (tmp_path / lock.FILE).read_text() == ""
    take(tmp_path)


def test_a_run_that_failed_releases_the_workdir(tmp_path):
    with pytest.raises(KeyError), lock.hold(tmp_path):
        raise KeyError
    assert (tmp_path / lock.FILE).read_text() == ""
    take(tmp_path)


def test_a_run_that_was_killed_leaves_no_lock(tmp_path):
    """Also while a process of the same number is alive: here this very one."""
    file = tmp_path / lock.FILE
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file), owner(since="then")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"by process {os.getpid()} on .*, since then"):
        take(tmp_path)
    holder.kill()
    holder.communicate()
    assert file.read_text() == owner(since="then")
    start = time.monotonic()
    take(tmp_path)
    assert time.monotonic() < start + lock.BEAT_SECONDS  # the kernel knows; no watching


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("locks_work", [True, False])
def test_a_lock_of_another_host_is_watched(tmp_path, monkeypatch, locks_work):
    if not locks_work:
        monkeypatch.setattr(file_locks, "attempt", lambda file: None)
    file, stop = tmp_path / lock.FILE, threading.Event()
    file.write_text(owner(host="elsewhere", pid=7))
    beat = threading.Thread(target=lock._beat, args=(file, stop))
    beat.start()
    with pytest.raises(UserError, match="in use by process 7 on elsewhere, since 2026"):
        take(tmp_path)
    stop.set()
    beat.join()
    take(tmp_path)  # its process has died: nobody touches the file


@pytest.mark.usefixtures("fast")
def test_a_run_shows_that_it_is_alive(tmp_path):
    with lock.hold(tmp_path):
        os.utime(tmp_path / lock.FILE, (0, 0))
        assert lock._is_touched(tmp_path / lock.FILE)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "x"}', "\x00"])
def test_a_torn_lock_is_no_obstacle(tmp_path, text):
    file = tmp_path / lock.FILE
    file.write_text(text)
    with lock.hold(tmp_path):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert file.read_text() == ""
