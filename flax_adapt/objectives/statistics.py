"""Running statistics of batch norm: the loss updates them at every step."""

from typing import Any, NamedTuple

from flax_adapt.base.checks import Check, Context, Row
from flax_adapt.base.types import Array, Carry, Key, Params
from flax_adapt.models import batch_stats
from flax_adapt.objectives import penalties


class _WithBatchNorm(NamedTuple):
    """A stage whose model has batch norm, and the name of the part that has it."""

    part: str
    section: Any

    @property
    def compares(self) -> list[str]:
        """The names of the penalties that need the logits of some of the examples alone."""
        names = [penalty.name for penalty in self.section.penalties]
        return [name for name in names if penalties.PENALTIES[name].classifies]


def _list_batch_norms(at: Context) -> list[_WithBatchNorm]:
    parts = {
        "a resnet": at.config.model.kind == "resnet",
        "model.head_norm": at.section.model.head_norm,
    }
    return [
        _WithBatchNorm(part, at.section) for part, is_there in parts.items() if is_there
    ]


# Batch norm normalises by all examples of a batch, in one pass.
_WHOLE_BATCHES = (
    Row(
        lambda it: it.section.optim.accum_steps == 1,
        "optim.accum_steps={0.section.optim.accum_steps} must be 1: batch norm goes by all "
        "examples of a batch",
    ),
    Row(
        lambda it: not it.compares and it.section.fisher is None,
        "penalties {0.compares} and fisher are not of {0.part}: they take examples out of "
        "the batch that its batch norm goes by",
    ),
)
CHECKS = (Check(_list_batch_norms, _WHOLE_BATCHES),)


def make_carry(statistics: Params) -> Carry:
    """Returns the `Carry` of running statistics: `statistics` at step 0, then the loss's own.

    The loss returns the new ones among its metrics, under `types.CARRY_INPUT`.
    """

    def init(params: Params, key: Key) -> dict[str, Any]:
        del params, key
        return {batch_stats.NAME: statistics}

    def update(
        carried: dict[str, Any],
        params: Params,
        carry_input: dict[str, Any],
        step: Array,
    ) -> dict[str, Any]:
        del carried, params, step
        return {batch_stats.NAME: carry_input[batch_stats.NAME]}

    return Carry((batch_stats.NAME,), init, update)
