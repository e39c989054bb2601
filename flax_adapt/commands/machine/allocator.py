"""How glibc's malloc of this process gives memory to training steps.

A step allocates and frees the same large arrays again and again. As malloc is set up, it
gives each of them back to the system, which must then map and clear new pages in the next
step, 4 KiB at a time. In huge pages, of 2 MiB, that is cheap; malloc takes them where it is
told to by an environment variable that it reads when the process starts, so the process
starts once more. Elsewhere malloc can keep what is freed. Numbers do not change.

Measured (benchmarks/steps.py --noreference --malloc=M, glibc 2.36, two cores, float32; seconds
of a step and page faults in it):

    program                    system          keep        huge_pages
    MAE, ViT-S/16, batch 16    2.72, 650 843   2.25, 0     2.06, 1 837
    fine-tuning, ViT-S/16, 8   0.87, 233 590   0.78, 0     0.73,   676

The quickstart takes 219 CPU seconds with keep, 194 with huge_pages: kept memory is full of
holes there that compiling has left, which malloc searches at every allocation.
"""

import ctypes
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from flax_adapt.base.errors import choose
from flax_adapt.base.version import first_two

# Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEEP = (
    (_MMAP_MAX, 0),  # large arrays come from the heap, too
    (_TRIM_THRESHOLD, -1),  # which never shrinks
    (_TOP_PAD, 512 * 2**20),  # and grows by 512 MiB
    (_ARENA_MAX, 1),  # one heap, so that all threads use what it has
)
# Value of --malloc -> what mallopt is called with where the process did not start anew.
SETTINGS: dict[str, tuple[tuple[int, int], ...]] = {
    "huge_pages": _KEEP,
    "keep": _KEEP,
    "system": (),
}
# Who gets huge pages: "always" every large array, "madvise" who asks for them, or "never".
_WHO = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# From this glibc on, malloc can ask for them.
_SINCE = (2, 35)
_ASKS = "glibc.malloc.hugetlb=1"


def start_anew(arguments: Sequence[str]) -> None:
    """Replaces this program by itself with malloc set up for huge pages, if that changes it.

    For a program's first lines: what it has done so far is lost. arguments: of a command
    with the flag --malloc. Returns where they choose another way, where the system gives
    huge pages to all or none, with an older glibc or none, with settings of the user's own,
    and where `main` was called by another program.
    """
    flags = [one for one in arguments if re.match("--?malloc", one)]
    chosen = all(one.endswith("=huge_pages") for one in flags)
    is_program = sys.orig_argv[len(sys.orig_argv) - len(arguments) :] == [*arguments]
    if not (chosen and is_program and _can_ask()):
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**os.environ, "GLIBC_TUNABLES": _ASKS})


def set_allocator(name: str) -> None:
    """Sets malloc up by --malloc; nothing happens where the C library is not glibc.

    A user's own settings (GLIBC_TUNABLES, MALLOC_*) are left as they are, as those are that
    `start_anew` has made. Raises UserError for another name.
    """
    settings = choose("--malloc", name, SETTINGS)
    given = name == "huge_pages" and _who_has_huge_pages() == "always"
    if given or platform.libc_ver()[0] != "glibc" or _has_own_settings():
        return
    for parameter, value in settings:
        mallopt(parameter, value)


def mallopt(parameter: int, value: int) -> int:
    """Calls mallopt(3) of this process; returns 1 where it worked, else 0."""
    return ctypes.CDLL(None).mallopt(parameter, value)


def _can_ask() -> bool:
    library, version = platform.libc_ver()
    is_new = library == "glibc" and first_two(version) >= _SINCE
    return is_new and _who_has_huge_pages() == "madvise" and not _has_own_settings()


def _who_has_huge_pages() -> str:
    """Returns always, madvise or never."""
    text = _WHO.read_text() if _WHO.exists() else ""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else "never"


def _has_own_settings() -> bool:
    return any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    )
