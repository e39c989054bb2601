"""LoRA: low-rank adaptors of kernels; they are trained, the kernels are not (Hu et al. 2021).

A section `model.lora` of a stage:

    rank     r, the columns of a and the rows of b
    alpha    the kernel changes by alpha / r * a b
    targets  the layers of every block that are adapted, of TARGETS

The parameters of a stage have the adaptors as a part of their own. The model itself has none:
losses, evaluation, exports and readers of checkpoints get kernels with the adaptors merged.
"""

import math
import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Row, present
from flax_adapt.base.errors import UserError, unknown
from flax_adapt.base.types import Key, LossFn, Params
from flax_adapt.weights import lora as pairs
from flax_adapt.weights import strict

# Layer -> the part of a transformer block that contains it.
TARGETS = {
    **dict.fromkeys(("query", "key", "value", "out"), "attention"),
    **dict.fromkeys(("up", "gate", "down"), "mlp"),
}
# Leaves that train apart from new ones: the adaptors, and the head, which is the task's.
TRAINED = (f"{pairs.PART}/.*", "head/.*")


def _no_layer(lora: Any) -> list[str]:
    return [target for target in lora.targets if target not in TARGETS]


# Rules of a section `model.lora`.
ROWS = (
    Row(
        lambda lora: not _no_layer(lora),
        lambda lora: unknown("model.lora.targets", _no_layer(lora)[0], TARGETS),
    ),
    Row(
        lambda lora: lora.targets,
        "model.lora: targets=() must name a layer, such as 'query'",
    ),
    Row(lambda lora: lora.rank >= 1, "model.lora: rank={0.rank} must be at least 1"),
    Row(
        lambda lora: 0 < lora.alpha < math.inf,
        "model.lora: alpha={0.alpha} must be above 0",
    ),
)
_STARTS = (
    Row(
        lambda at: at.section.model.lora is None or at.section.init_from != "scratch",
        "model.lora: there are no weights to adapt (init_from='scratch'); set model.lora "
        "to None",
    ),
)
CHECKS = (
    Check(lambda at: present(at.section.model.lora), ROWS),
    Check(checks.stage, _STARTS),
)


def add(params: Params, config: Any, key: Key) -> dict[str, Any]:
    """Returns the parameters with adaptors, which do not change the model at first.

    a [in, r]: uniform in +-1 / sqrt(in), Kaiming's with the slope sqrt 5 of torch's layers,
    as in the official code; b [r, out]: zeros; both float32. config: the section. Raises
    UserError where the model has none of the targets.
    """
    layers = "|".join(f"{TARGETS[name]}/{name}" for name in config.targets)
    pattern = rf"encoder/block_\d+/({layers})/kernel"
    leaves = strict.flatten(params)
    kernels = [name for name in sorted(leaves) if re.fullmatch(pattern, name)]
    if not kernels:
        raise UserError(
            f"model.lora.targets={config.targets} are no layers of the model"
        )
    for number, name in enumerate(kernels):
        inputs, outputs = leaves[name].shape
        a, b = pairs.pair_of(name)
        leaves[a] = jax.random.uniform(
            jax.random.fold_in(key, number),
            (inputs, config.rank),
            jnp.float32,
            -(inputs**-0.5),
            inputs**-0.5,
        )
        leaves[b] = jnp.zeros((config.rank, outputs), jnp.float32)
    return strict.unflatten(leaves)


def merge(params: Params, config: Any) -> Params:
    """Returns the parameters of the model itself, with the adaptors merged into its kernels.

    config: the section `model.lora`; None: the parameters have no adaptors.
    """
    if config is None:
        return params
    leaves = strict.flatten(params)
    merged = pairs.without_adaptors(leaves)
    for name in pairs.adapted_kernels(leaves):
        a, b = (leaves[leaf] for leaf in pairs.pair_of(name))
        merged[name] = pairs.merge_kernel(leaves[name], a, b, config.alpha)
    return strict.unflatten(merged)


def merge_in_loss(loss_fn: LossFn, config: Any) -> LossFn:
    """Returns a loss of parameters with adaptors: `loss_fn` of the merged ones.

    config: as for `merge`.
    """
    if config is None:
        return loss_fn
    return lambda params, *rest: loss_fn(merge(params, config), *rest)


def freeze_pattern(fresh: Collection[str]) -> str:
    """Returns the pattern for `optim.freeze`: all leaves but TRAINED and those in `fresh`."""
    trains = "|".join((*TRAINED, *map(re.escape, fresh)))
    return rf"(?!({trains})$).*"
