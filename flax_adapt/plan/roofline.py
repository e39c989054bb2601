"""Bounds the time of a step by the peaks of a chip.

    local = sum over instructions of max(FLOPs / peak FLOP/s, bytes / HBM bandwidth)
    network = sum over collectives of bytes sent / link bandwidth
    seconds = max(local, network)
    MFU = FLOPs of the mathematics / (seconds * chips * peak FLOP/s)

All is perfect in it: instructions run at the peaks of the chip, collectives as rings that
use all links and overlap with everything else. A real step takes longer.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flax_adapt.plan.cost import Cost
from flax_adapt.plan.topology import Chip


class Roofline(NamedTuple):
    """Seconds of a step: of its products, its memory, its network, and all together."""

    compute: float
    memory: float
    network: float
    seconds: float

    def mfu(self, flops: float, chips: int, peak: float) -> float:
        """Returns the share of the peak that `flops` on all chips are of."""
        return flops / (self.seconds * chips * peak) if self.seconds else 0.0


def peak_flops(chip: Chip, precision: str) -> float:
    """Returns the FLOP/s of products in a precision of `train.precision`."""
    passes = dict(
        bfloat16=1.0, float32=chip.float32_passes, highest=chip.highest_passes
    )
    return chip.flops / passes[precision]


def bound_time(costs: Sequence[Cost], chip: Chip, precision: str) -> Roofline:
    """Returns the lower bound of the time of the instructions of one chip."""
    peak = peak_flops(chip, precision)
    compute = memory = network = local = 0.0
    for cost in costs:
        products, moves = cost.flops / peak, cost.bytes / chip.hbm
        compute += cost.times * products
        memory += cost.times * moves
        local += cost.times * max(products, moves)
        if cost.collective is not None:
            network += cost.times * cost.collective.traffic / chip.link
    return Roofline(compute, memory, network, max(local, network))
