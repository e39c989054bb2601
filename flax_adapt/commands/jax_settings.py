"""What is set in JAX before a run: its processes, its compile cache, its precision."""

import os
import re
import warnings
from pathlib import Path

import jax

from flax_adapt.base import errors
from flax_adapt.base.errors import UserError

MATMUL_PRECISION = {"float32": "highest", "bfloat16": None}


def join_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes."""
    _check_processes(coordinator, num_processes, process_id)
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        elif coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator={coordinator}: {error}") from None


def set_jax_up(workdir: Path, precision: str) -> None:
    """Keeps compiled programs in the workdir for re-use; float32 is float32."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "xla_cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # The cache only saves time: what a full or damaged disk does to it is no news.
    warnings.filterwarnings("ignore", ".* persistent compilation cache entry.*")
    # Accelerators multiply float32 in fewer bits unless told not to.
    precise = errors.choose("precision", precision, MATMUL_PRECISION)
    jax.config.update("jax_default_matmul_precision", precise)


def _check_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Refuses flags with which every process would run alone in the same workdir."""
    if coordinator in ("", "auto"):
        if (num_processes, process_id) != (1, 0):
            raise UserError(
                "--num_processes and --process_id need --coordinator=host:port"
            )
    elif not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} must be host:port or auto")
    elif not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must lie in 0 to {num_processes - 1} (there are "
            f"--num_processes={num_processes})"
        )
