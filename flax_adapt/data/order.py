"""The order in which training batches take their rows: a function of the batch number.

An order of batches is a grain.MapDataset whose element k is index_B, int64 [batch_size],
the rows of batch k. It depends on k and on seeds alone, so that the position of training
in it is one number.
"""

import functools
import math
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors

if TYPE_CHECKING:  # slow to import: only where it is used
    import grain

# Numbers that derive several random streams from one seed; 0 would be the seed itself.
_TARGET, _SOURCE, _UNION, _COUNT, _PLACE = range(11, 16)
# The most rows whose order is kept for each epoch.
_FEW = 1_024

# replay.schedule -> (part of the steps) -> share of the way from `ratio` to `final_ratio`
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda part: 0.0,
    "linear": lambda part: part,
    "cosine": lambda part: (1 - math.cos(math.pi * part)) / 2,
}


class Mixture(NamedTuple):
    """Rows of two domains: 0, 1, ... of the target, and those of the source after them.

    config     replay section: ratio, final_ratio, schedule and buffer_size are read here
    num_steps  batches of training; the batch after the last has final_ratio
    """

    num_target: int
    num_source: int
    config: ConfigDict
    num_steps: int

    def share(self, k: int) -> float:
        """Returns the share of source rows in batch k (0, 1, ...): r_k / (1 + r_k)."""
        first, last = self.config.ratio, self.config.final_ratio
        gone = SCHEDULES[self.config.schedule](min(k / self.num_steps, 1.0))
        ratio = first + (last - first) * gone
        return ratio / (1 + ratio)


def joint(mixture: Mixture, batch_size: int, seed: int) -> "grain.MapDataset":
    """Returns an order whose epochs are both domains shuffled together."""
    union = _stream(mixture.num_target + mixture.num_source, seed, _UNION)
    return _make_order(lambda k: union(k * batch_size, (k + 1) * batch_size))


def uniform(mixture: Mixture, batch_size: int, seed: int) -> "grain.MapDataset":
    """Returns an order in which each row of a batch is of the source with one probability.

    With a constant ratio an epoch is both domains shuffled together. With another schedule,
    or where a buffer has another size than the ratio says, the number of source rows is
    drawn: Binomial(batch_size, share of batch k).
    """
    config = mixture.config
    if config.ratio == config.final_ratio and not config.buffer_size:
        return joint(mixture, batch_size, seed)

    def count(k: int) -> int:
        rng = np.random.default_rng([seed, _COUNT, k])
        return int(rng.binomial(batch_size, mixture.share(k)))

    return _two_streams(mixture, batch_size, seed, count)


def stratified(mixture: Mixture, batch_size: int, seed: int) -> "grain.MapDataset":
    """Returns an order with exactly round(batch_size * share of k) source rows in batch k.

    Raises UserError where a batch would lack rows of one of the domains.
    """
    top = max(mixture.config.ratio, mixture.config.final_ratio)
    most = round(batch_size * (top / (1 + top)))  # as `share` rounds
    if not 0 < most < batch_size:
        raise errors.UserError(
            f"batch_size={batch_size} at replay ratio {top} and sampling='stratified' is"
            f" {batch_size - most} target and {most} source examples a batch, and needs"
            " one of each; change batch_size or the ratio, or use sampling='uniform'"
        )
    return _two_streams(
        mixture, batch_size, seed, lambda k: round(batch_size * mixture.share(k))
    )


# The sampling that draws every example of every source, in proportion to their number.
JOINT = "joint"
# replay.sampling -> order of batches
SAMPLINGS: dict[str, Callable[[Mixture, int, int], "grain.MapDataset"]] = {
    JOINT: joint,
    "uniform": uniform,
    "stratified": stratified,
}


def shuffle_rows(count: int, seed: int) -> "grain.MapDataset":
    """Returns a data set of row numbers: endless epochs, each in an order of its own."""
    # grain shuffles epoch e with seed + e: without this, seed 1 would be seed 0 one
    # epoch ahead.
    grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if count > _FEW:
        import grain

        return grain.MapDataset.range(count).shuffle(seed=grain_seed).repeat()

    def row(position: int) -> int:
        epoch, place = divmod(position, count)
        return int(_shuffle_epoch(count, (grain_seed + epoch) % 2**32)[place])

    return _make_order(row)


@functools.lru_cache(maxsize=1_024)  # at most 4 MiB
def _shuffle_epoch(count: int, seed: int) -> np.ndarray:
    """Returns int32 [count], the order of an epoch of few rows, as grain has it.

    The fewer rows, the longer grain takes for each: up to a millisecond. The stages of a
    comparison have the same orders, which are kept for them.
    """
    import grain

    shuffled = grain.MapDataset.range(count).shuffle(seed=seed)
    return np.array([shuffled[place] for place in range(count)], np.int32)


def _two_streams(
    mixture: Mixture, batch_size: int, seed: int, count: Callable[[int], int]
) -> "grain.MapDataset":
    """Returns an order whose batch k has the next count(k) source rows, the others target.

    Each domain is a stream of complete shuffled epochs. The positions of the source rows
    in a batch are drawn, too, so that every process gets rows of both domains.
    """
    target = _stream(mixture.num_target, seed, _TARGET)
    source = _stream(mixture.num_source, seed, _SOURCE)
    taken = _RunningCounts(count)

    def rows(k: int) -> np.ndarray:
        begin, end = taken.before(k), taken.before(k + 1)
        rng = np.random.default_rng([seed, _PLACE, k])
        is_source_B = rng.permutation(np.arange(batch_size) < end - begin)
        index_B = np.empty(batch_size, np.int64)
        index_B[~is_source_B] = target(
            k * batch_size - begin, (k + 1) * batch_size - end
        )
        index_B[is_source_B] = mixture.num_target + source(begin, end)
        return index_B

    return _make_order(rows)


def _make_order(rows: Callable[[int], Any]) -> "grain.MapDataset":
    """Returns an endless data set of `rows(0)`, `rows(1)`, ..."""
    import grain

    return grain.MapDataset.range(sys.maxsize).map(rows)


def _stream(count: int, *seed: int) -> Callable[[int, int], np.ndarray]:
    """Returns (begin, end) -> those entries, int64, of a stream of shuffled epochs.

    Each epoch has each of `count` rows once. The shuffle is NumPy's: for few rows grain's
    takes a millisecond each.
    """

    @functools.lru_cache(maxsize=2)  # a batch may straddle two epochs
    def epoch(e: int) -> np.ndarray:
        return np.random.default_rng([*seed, e]).permutation(count)

    def part(begin: int, end: int) -> np.ndarray:
        pieces = [
            epoch(e)[max(begin - e * count, 0) : end - e * count]
            for e in range(begin // count, -(-end // count))
        ]
        return np.concatenate([np.empty(0, np.int64), *pieces])

    return part


class _RunningCounts:
    """Running sums of the counts of all batches; threads may share it."""

    def __init__(self, count: Callable[[int], int]):
        self._count, self._lock = count, threading.Lock()
        self._before = np.zeros(1, np.int64)

    def before(self, k: int) -> int:
        """Returns how many rows the batches 0 .. k - 1 take."""
        with self._lock:
            known = len(self._before)
            if k >= known:
                more = [self._count(j) for j in range(known - 1, max(2 * known, k))]
                sums = self._before[-1] + np.cumsum(more, dtype=np.int64)
                self._before = np.concatenate([self._before, sums])
            return int(self._before[k])
