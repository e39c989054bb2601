"""What `precision` of a config means on the devices at hand.

    float32   activations in float32. Accelerators multiply them by their faster way that is
              near to it: TF32 on GPUs, three bfloat16 passes on TPUs
    highest   float32, multiplied in full: several times slower there
    bfloat16  activations in bfloat16; parameters, norms and losses stay in float32
    auto      bfloat16 on TPUs and on GPUs that have it, float32 elsewhere

CPUs multiply float32 in full. "auto" is settled when a run begins, and its workdir keeps what
it was settled to.
"""

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from flax_adapt.base import errors

AUTO = "auto"


class Precision(NamedTuple):
    """dtype: of activations. products: JAX's precision of products of float32 arrays."""

    dtype: str
    products: str | None


PRECISIONS = {
    "float32": Precision("float32", "high"),
    "highest": Precision("float32", "highest"),
    "bfloat16": Precision("bfloat16", None),
}
_FIRST_WITH_BFLOAT16 = 8.0  # compute capability: Ampere


def settle(name: str, platform: str = "", field: str = "precision") -> str:
    """Returns the key of PRECISIONS that `name` means.

    platform: "tpu", "cuda" (a GPU that has bfloat16) or "cpu"; "": that of this process's
    devices. field: what the user calls it. Raises UserError for an unknown name.
    """
    errors.choose(field, name, {**PRECISIONS, AUTO: None})
    if name != AUTO:
        return name
    platform = platform or _platform_of(jax.devices()[0])
    return "bfloat16" if platform in ("tpu", "cuda") else "float32"


def settle_config(config: Any, platform: str = "") -> Any:
    """Returns the config with a settled `precision`."""
    name = settle(config.precision, platform)
    if name == config.precision:
        return config
    return ConfigDict({**config, "precision": name}).lock()


def _platform_of(device: jax.Device) -> str:
    """Returns the device's platform; "cpu" for a GPU that is too old for bfloat16."""
    if device.platform != "gpu":
        return device.platform
    capability = float(getattr(device, "compute_capability", "0") or 0)
    return "cuda" if capability >= _FIRST_WITH_BFLOAT16 else "cpu"


def dtype_of(name: str) -> str:
    """Returns the dtype of activations, a key of `models.DTYPES`."""
    return PRECISIONS[settle(name)].dtype


def set_products(name: str) -> None:
    """Lets all programs from now on multiply float32 arrays as a precision says."""
    products = PRECISIONS[settle(name)].products
    jax.config.update("jax_default_matmul_precision", products)
