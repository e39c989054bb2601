"""Running statistics of batch norm on their way from step to step."""

from typing import Any

from flax_adapt.models import batch_stats
from flax_adapt.types import Array, Carry, Key, Params


def carry_along(carry: Carry, statistics: Params) -> Carry:
    """Returns the carry that also takes statistics along: those that the loss hands over.

    statistics: those to begin with.
    """

    def init(params: Params, key: Key) -> dict[str, Any]:
        return {**carry.init(params, key), batch_stats.NAME: statistics}

    def update(
        carried: dict[str, Any], params: Params, handed: Any, step: Array
    ) -> dict[str, Any]:
        own, moved = batch_stats.split(handed)
        updated = carry.update(carried, params, own or None, step)
        return {**updated, batch_stats.NAME: moved}

    return Carry((*carry.names, batch_stats.NAME), init, update)
