"""Running statistics of batch norm on their way from step to step."""

from typing import Any

from flax_adapt.base.types import Array, Carry, Key, Params
from flax_adapt.models import batch_stats


def make_carry(statistics: Params) -> Carry:
    """Carries those that the loss hands over, which begin as `statistics`."""

    def init(params: Params, key: Key) -> dict[str, Any]:
        del params, key
        return {batch_stats.NAME: statistics}

    def update(
        carried: dict[str, Any], params: Params, handed: dict[str, Any], step: Array
    ) -> dict[str, Any]:
        del carried, params, step
        return {batch_stats.NAME: handed[batch_stats.NAME]}

    return Carry((batch_stats.NAME,), init, update)
