"""Batches of images through one door.

    examples = data.open_examples(config.data, bad_log)
    for batch in data.make_batches(examples, batch_size, seed, process_index, count):
    for batch in data.eval_batches(examples, batch_size, process_index, count):

A host batch is a dict of numpy arrays, the rows of this process of the global batch:
image uint8 [b, S, S, C]; label int32 [b], -1: none; index int32 [b], row in the
examples, -1: padding; position int32 [b], row in the GLOBAL batch; weight float32 [b],
0: padding or undecodable. `data.image.preprocess` makes it float32 on the device.
"""

from collections.abc import Iterator

import grain
import numpy as np
from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data import image, source, subset
from flax_adapt.data.examples import Examples

__all__ = ["Examples", "eval_batches", "make_batches", "open_examples"]

# (what must hold, how the user is told)
RULES = (
    (lambda c: c.image_size >= 1, "image_size must be at least 1"),
    (lambda c: c.channels in image.MODES, f"channels must be in {sorted(image.MODES)}"),
    (lambda c: 0 < c.augment.min_crop_area <= 1, "augment.min_crop_area: (0, 1]"),
    (lambda c: c.num_threads >= 1, "num_threads must be at least 1"),
    (lambda c: c.prefetch_batches >= 0, "prefetch_batches must be at least 0"),
    (lambda c: 0 <= c.max_bad_fraction <= 1, "max_bad_fraction must be in [0, 1]"),
)


def open_examples(config_data: ConfigDict, bad_log: str) -> Examples:
    """Opens the source and takes its subset; open once, use for many iterators.

    `bad_log`: a file that the names of undecodable examples are appended to; "": none.
    """
    for holds, rule in RULES:
        if not holds(config_data):
            raise errors.UserError(f"data.{rule}")
    image.channel_values(config_data)
    chosen = subset.select(source.open_source(config_data), config_data.subset)
    return Examples(chosen, config_data, bad_log)


def make_batches(
    examples: Examples,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> grain.DatasetIterator:
    """An endless iterator of training batches: this process's rows of each.

    Every epoch has each example once, in an order of its own; a batch may straddle two
    epochs. The order depends on `seed` and `batch_size` alone, so the position is one
    number: `get_state()`, `set_state(state)`, or `grain.checkpoint.CheckpointSave`.
    """
    position_b = _rows_of_process(batch_size, process_index, process_count)
    # grain shuffles epoch e with seed + e: without this, seed 1 would be seed 0 one
    # epoch ahead.
    grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(examples)).shuffle(seed=grain_seed).repeat()
    batches = order.batch(batch_size).map(
        lambda index_B: examples.batch(index_B[position_b], position_b)
    )
    return _prefetch(batches, examples)


def eval_batches(
    examples: Examples, batch_size: int, process_index: int, process_count: int
) -> Iterator[dict]:
    """Every example exactly once, in order; as many batches in every process.

    The last batch is filled up with rows of index -1 and weight 0.
    """
    position_b = _rows_of_process(batch_size, process_index, process_count)
    num_batches = -(-len(examples) // batch_size)

    def batch(k: int) -> dict:
        index_b = k * batch_size + position_b
        return examples.batch(
            np.where(index_b < len(examples), index_b, -1), position_b
        )

    return _prefetch(grain.MapDataset.range(num_batches).map(batch), examples)


def _prefetch(batches: grain.MapDataset, examples: Examples) -> grain.DatasetIterator:
    # One grain thread for each batch under way; the decoding threads are `num_threads`
    # in all, and are the examples' own.
    ahead = examples.config.prefetch_batches
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    return iter(batches.to_iter_dataset(options))


def _rows_of_process(batch_size: int, index: int, count: int) -> np.ndarray:
    """int64 [b]: the rows of the global batch that process `index` reads."""
    if batch_size < 1 or batch_size % count:
        raise errors.UserError(
            f"batch_size={batch_size} must be a multiple of the {count} processes"
        )
    rows = batch_size // count
    return np.arange(index * rows, (index + 1) * rows)
