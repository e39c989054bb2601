"""Sets up JAX before a run: its compile cache and its precision."""

import os
import warnings
from pathlib import Path

import jax

from flax_adapt.base import errors

MATMUL_PRECISION = {"float32": "highest", "bfloat16": None}


def set_jax_up(workdir: Path, precision: str) -> None:
    """Keeps compiled programs in the workdir, and computes float32 in full precision."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "xla_cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # The cache only saves time: warnings about a full or damaged disk are not shown.
    warnings.filterwarnings("ignore", ".* persistent compilation cache entry.*")
    set_precision(precision)


def set_precision(precision: str) -> None:
    """Lets accelerators multiply float32 in full, which they do in fewer bits by default."""
    precise = errors.choose("precision", precision, MATMUL_PRECISION)
    jax.config.update("jax_default_matmul_precision", precise)
