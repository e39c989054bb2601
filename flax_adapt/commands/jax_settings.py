"""What is set in JAX before a run: its compile cache and its precision."""

import os
import warnings
from pathlib import Path

import jax

from flax_adapt.base import errors

MATMUL_PRECISION = {"float32": "highest", "bfloat16": None}


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
