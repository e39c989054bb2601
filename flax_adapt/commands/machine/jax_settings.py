"""Sets the precision of JAX before a run."""

import jax

from flax_adapt.base import errors

MATMUL_PRECISION = {"float32": "highest", "bfloat16": None}


def set_precision(precision: str) -> None:
    """Lets accelerators multiply float32 in full, which they do in fewer bits by default."""
    precise = errors.choose("precision", precision, MATMUL_PRECISION)
    jax.config.update("jax_default_matmul_precision", precise)
