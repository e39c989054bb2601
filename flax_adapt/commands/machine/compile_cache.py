"""The folder in which compiled programs are kept between runs, shared by all workdirs.

A program of any earlier run is read instead of compiled. The folder is that of the flag
--compile_cache; without it that of JAX_COMPILATION_CACHE_DIR; else `flax_adapt/programs` in
the user's cache folder (XDG_CACHE_HOME, or ~/.cache). JAX deletes the programs that were
not used for the longest time beyond JAX_COMPILATION_CACHE_MAX_SIZE bytes, here 4 GiB.
"""

import hashlib
import logging
import os
import platform
import warnings
from pathlib import Path

import jax

from flax_adapt.base import caches
from flax_adapt.base.errors import UserError
from flax_adapt.base.paths import local_path

log = logging.getLogger(__name__)
OFF = "none"
MAX_BYTES = 4 * 2**30
_CPU_INFO = Path("/proc/cpuinfo")
# Options of JAX that its own environment variables leave unset, and our values: a program
# that compiles in less time is not worth a file.
_OPTIONS = {
    "jax_compilation_cache_max_size": MAX_BYTES,
    "jax_persistent_cache_min_compile_time_secs": 0.5,
}


def keep_programs(folder: str) -> None:
    """Lets JAX keep compiled programs in a folder; "": the usual one, "none": nowhere.

    Raises UserError for a folder of that flag that cannot be written. If the usual one
    cannot, programs are not kept, and the log says so.
    """
    # The cache only saves time: warnings about a full or damaged disk are not shown.
    warnings.filterwarnings("ignore", ".* persistent compilation cache entry.*")
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not folder and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    chosen = _usable(local_path(folder), folder) if folder else _usable(user_folder())
    if chosen is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    for option, value in _OPTIONS.items():
        if option.upper() not in os.environ:
            jax.config.update(option, value)


def user_folder() -> Path:
    """Returns the usual folder: one for each kind of CPU, for which programs are compiled.

    A home directory may be that of many machines, and a program of another CPU can have
    instructions that this one lacks.
    """
    return caches.user_folder("programs") / _describe_cpu()


def _describe_cpu() -> str:
    features = ""
    if _CPU_INFO.exists():  # Linux; the line is "flags" on x86, "Features" on Arm
        lines = _CPU_INFO.read_text("utf-8", errors="replace").splitlines()
        named = (line for line in lines if line.lower().startswith(("flags", "feat")))
        features = next(named, "")
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"


def _usable(folder: Path, flag: str = "") -> Path | None:
    """Returns the folder, made if it is not there; None if it is the usual one and cannot be.

    Raises UserError for one of the flag.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "it cannot be written")
    except OSError as error:
        reason = error.strerror or error
        if flag:
            raise UserError(
                f"--compile_cache={flag}: no folder for compiled programs ({reason}); give "
                f"another one, or {OFF!r}"
            ) from None
        log.info("compiled programs are not kept: %s: %s", folder, reason)
        return None
    return folder
