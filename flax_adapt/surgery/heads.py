"""Heads of classifiers: adds classes for a next task; folds batch norm into the head."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flax_adapt.base import checks
from flax_adapt.base.checks import Check, Context, Row
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Params
from flax_adapt.models import batch_stats
from flax_adapt.models.heads import PROBE_EPS
from flax_adapt.models.visual.pooling import CLS_DIST

LEAVES = ("head/kernel", "head/bias")
INIT_STD = 0.02  # standard deviation of the kernel of a new head (`layers.NORMAL`)


def _grows(at: Context) -> bool:
    """Whether the stage has a head that can grow: a trained one that the stage keeps.

    The objective is "classify", without projector and adaptor; "head" is not in model.fresh.
    """
    options = at.section.model
    dropped = options.projector is not None or options.adaptor is not None
    is_new = "head" in options.fresh
    return at.section.objective.name == "classify" and not dropped and not is_new


_GROWN = (
    Row(
        lambda at: not at.section.model.grow_head or _grows(at),
        "model.grow_head is of objective 'classify' without projector and adaptor, whose "
        "head is not in model.fresh",
    ),
)
_NORMED = (
    Row(
        lambda at: (
            at.config.model.kind != "resnet"
            and at.section.objective.name in ("classify", "regress")
        ),
        "model.head_norm is of a head on a transformer: it must be False for a "
        "{0.config.model.kind} and objective {0.section.objective.name!r}; 'classify' and "
        "'regress' can have it",
    ),
    Row(
        lambda at: "head" in at.section.model.fresh,
        "model.head_norm changes what the head is given, which must then be new: name "
        "'head' in model.fresh",
    ),
)
_ONE_HEAD = (
    Row(
        lambda at: (
            at.section.model.pooling != CLS_DIST
            or at.section.objective.name not in ("classify", "glad")
        ),
        "model.pooling='cls_dist' is of the two heads of a distilled DeiT, which predict "
        "together; a stage trains one head: take 'cls' or 'mean'",
    ),
)
CHECKS = (
    Check(checks.stage, _GROWN),
    Check(checks.stage, _ONE_HEAD),
    Check(lambda at: [at] if at.section.model.head_norm else [], _NORMED),
)


def grow(
    leaves: Mapping[str, Any],
    init: Mapping[str, Any],
    old_classes: Sequence[str],
    new_classes: Sequence[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (leaves with a head of more classes, {leaf: how it was changed}).

    leaves: {name: array} of the trained model. init: the same of new parameters of the larger
    model. The head, float32, gives the old classes the same logits; the columns of new
    classes are those of `init`. Raises UserError unless new_classes begins with old_classes,
    in the same order.
    """
    count = len(old_classes)
    if tuple(new_classes[:count]) != tuple(old_classes):
        raise UserError(
            f"model.grow_head: the weights name the classes {tuple(old_classes)}, which "
            f"must come first among {tuple(new_classes)}; list them first in data.classes"
        )
    grown = {}
    for name in LEAVES:
        old, fresh = (np.asarray(part[name], np.float32) for part in (leaves, init))
        grown[name] = np.concatenate([old, fresh[..., count:]], axis=-1)
    rule = f"grown from {count} to {len(new_classes)} classes"
    changed = {name: rule for name in grown if len(new_classes) > count}
    return {**leaves, **grown}, changed


def fold(stored: Params) -> Params:
    """Returns parameters of an equivalent classifier without `head_norm`.

    stored: parameters with running statistics, see `batch_stats`. The statistics scale the
    head's kernel and shift its bias.
    """
    params, statistics = batch_stats.split(stored)
    mean_D, var_D = (statistics["norm"][name] for name in ("mean", "var"))
    head, scale_D = params["head"], jax.lax.rsqrt(var_D + PROBE_EPS)
    kernel_DN = head["kernel"] * scale_D[:, None]
    folded = {"kernel": kernel_DN, "bias": head["bias"] - mean_D @ kernel_DN}
    return {**params, "head": folded}
