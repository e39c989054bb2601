"""Low-rank adaptors of kernels (LoRA, Hu et al. 2021): their names, and merging.

The parameters of a stage with `model.lora` have a part PART: for each adapted kernel
x/kernel [in, out] the leaves PART/x/a [in, r] and PART/x/b [r, out].
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files.files import LazyTensor

PART = "lora"
_A, _B, _KERNEL = "/a", "/b", "/kernel"


def pair_of(kernel: str) -> tuple[str, str]:
    """Returns the names of a and b of a kernel such as `encoder/x/kernel`."""
    layer = f"{PART}/{kernel.removesuffix(_KERNEL)}"
    return layer + _A, layer + _B


def adapted_kernels(leaves: Mapping[str, Any]) -> list[str]:
    """Returns the names of the kernels that have an a and a b among the leaves."""
    return [
        name.removeprefix(f"{PART}/").removesuffix(_A) + _KERNEL
        for name in leaves
        if name.startswith(f"{PART}/") and name.endswith(_A)
    ]


def without_adaptors(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of the model without its adaptors."""
    return {k: leaf for k, leaf in leaves.items() if not k.startswith(f"{PART}/")}


def merge_kernel(kernel: Any, a: Any, b: Any, alpha: float) -> Any:
    """Returns kernel + alpha / r * a b [in, out], in full float32.

    kernel [in, out], a [in, r], b [r, out].

    x kernel' = x kernel + alpha / r * (x a) b: the papers' W + alpha / r * B A with
    W = kernel', A = a', B = b' (transposed).
    """
    change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return kernel + (alpha / a.shape[1]) * change


def merge_lazy(
    where: object, tensors: Mapping[str, LazyTensor], section: Any
) -> dict[str, LazyTensor]:
    """Returns the tensors of the model without adaptors, merged only when they are read.

    section: `model.lora` of the run's config. Raises UserError where there are adaptors and
    the section has no alpha: leaving the adaptors out would change the model.
    """
    kernels = adapted_kernels(tensors)
    if not kernels:
        return dict(tensors)
    alpha = section.get("alpha") if isinstance(section, dict) else None
    if not isinstance(alpha, int | float):
        raise UserError(
            f"{where}: has LoRA adaptors but its config no model.lora.alpha, which is "
            "needed to merge them; read the export of the stage, in which they are merged"
        )
    merged = {name: _merge_one(name, tensors, alpha) for name in kernels}
    return without_adaptors(tensors) | merged


def _merge_one(
    name: str, tensors: Mapping[str, LazyTensor], alpha: float
) -> LazyTensor:
    missing = [leaf for leaf in (name, *pair_of(name)) if leaf not in tensors]
    if missing:
        raise UserError(f"{PART}: {', '.join(missing)} is missing")
    kernel, a, b = (tensors[leaf] for leaf in (name, *pair_of(name)))
    if (a.shape[:1], b.shape[1:]) != (kernel.shape[:1], kernel.shape[1:]) or (
        a.shape[1:] != b.shape[:1]
    ):
        raise UserError(
            f"{a.what}: {a.shape} and {b.shape} do not fit a kernel of {kernel.shape}"
        )

    def read() -> np.ndarray:
        return np.asarray(merge_kernel(kernel.get(), a.get(), b.get(), alpha))

    return LazyTensor(kernel.what, kernel.shape, "float32", read)
