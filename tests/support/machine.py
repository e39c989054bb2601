"""A machine that does not do as it is told: folders that are read-only, disks that are full."""

import contextlib
import ctypes
import os
import resource
import subprocess

import pytest

_VERSION_3 = 0x20080522  # of the structures below, <linux/capability.h>
_BEYOND_MODES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def read_only(folder):
    """Nobody can write into the folder, not even root, whom file modes do not bind."""
    paths = [folder, *(p for p in folder.rglob("*") if not p.is_symlink())]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & 0o555)
    try:
        with _bound_by_modes():
            if os.access(folder, os.W_OK, effective_ids=True):
                pytest.skip("this user can write into a folder of mode 555")
            yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


@contextlib.contextmanager
def _bound_by_modes():
    """This thread has no right to read and write what the modes of files forbid."""
    if os.geteuid():
        yield
        return
    before = _capabilities()
    kept = list(before)
    kept[0] &= ~_BEYOND_MODES  # effective
    _capabilities(kept)
    try:
        yield
    finally:
        _capabilities(before)


def _capabilities(values=None):
    """Returns effective, permitted and inheritable ones, twice 32 bits; or sets them."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(*(values or ()))
    failed = (libc.capset if values else libc.capget)(header, data)
    if failed:
        raise OSError(ctypes.get_errno(), "capabilities")
    return list(data)


@contextlib.contextmanager
def no_room(limit):
    """No file grows beyond `limit` bytes: a write fails as it does where a quota is used up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_disk(folder, size):
    """A disk of `size` bytes at `folder`; yields what changes its size. Needs root."""

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    folder.mkdir()
    mount(f"size={size}")
    try:
        yield lambda size: mount("remount", f"size={size}")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
