"""Opens data sets of images or texts, and makes host batches of them.

    examples = data.open_examples(config.data, bad_log)
    examples = data.open_replay(config.data, config.replay, bad_log, num_steps)
    for batch in data.make_batches(examples, batch_size, seed, process_index, count):
    for batch in data.eval_batches(examples, batch_size, process_index, count):

A host batch is a dict of numpy arrays, the rows of this process of the global batch:
image uint8 [b, S, S, C], or text, a `types.Text` of int32 [b, L] whose L may differ from
batch to batch (`data.buckets`) but not between processes; label int32 [b], -1: none, or
float32 [b] of `label_kind` "number"; index int32 [b], row in the examples, -1: padding;
position int32 [b], row in the GLOBAL batch; weight float32 [b], 0: padding or
undecodable; of replay also domain int32 [b], 0: target, 1: source.
`data.images.image.preprocess` makes images float32 on the device.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import checks, errors
from flax_adapt.data import replay
from flax_adapt.data.drawing import OneDomain
from flax_adapt.data.drawing import list_sections as replay_sections
from flax_adapt.data.examples import ImageExamples, open_images
from flax_adapt.data.order import shuffle_rows
from flax_adapt.data.replay import ReplayExamples
from flax_adapt.data.texts.text import TextExamples, open_texts
from flax_adapt.data.texts.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:  # slow to import: only where it is used
    import grain

__all__ = [
    "MODALITIES",
    "Examples",
    "ImageExamples",
    "ReplayExamples",
    "TextExamples",
    "Tokenizer",
    "eval_batches",
    "make_batches",
    "open_examples",
    "open_replay",
    "open_tokenizer",
    "replay_sections",
]

Examples: TypeAlias = OneDomain | ReplayExamples
MODALITIES: dict[str, Callable[[ConfigDict, str], OneDomain]] = {
    "image": open_images,
    "text": open_texts,
}


def open_examples(config_data: ConfigDict, bad_log: str) -> OneDomain:
    """Returns the examples of a data section, which serve any number of iterators.

    bad_log: a file to which the names of undecodable examples are appended; "": none.
    Raises UserError for a wrong section, and for a source that cannot be read.
    """
    opener = errors.choose("data.modality", config_data.modality, MODALITIES)
    return opener(config_data, bad_log)


def open_replay(
    config_data: ConfigDict, config_replay: ConfigDict, bad_log: str, num_steps: int
) -> ReplayExamples:
    """Returns the examples of the target `config_data` with replayed source examples.

    config_replay: data (a section, or a tuple of them), ratio, final_ratio, schedule,
    sampling, buffer_size, seed. Over `num_steps` batches the ratio goes from `ratio` to
    `final_ratio`. Raises UserError as `open_examples` does, and for rules of `replay.ROWS`.
    """
    errors.choose("data.modality", config_data.modality, MODALITIES)
    checks.run(replay.ROWS, replay.Pair(config_data, config_replay))
    target = open_examples(config_data, bad_log)
    return replay.add_source(target, config_replay, bad_log, num_steps)


def make_batches(
    examples: Examples,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
) -> "grain.DatasetIterator":
    """Returns an endless iterator of training batches with the rows of this process.

    Every epoch has each example once, in an order of its own; a batch may straddle two
    epochs. With replay each domain has such epochs; with `sampling` "joint", and with
    "uniform" at a constant ratio, both domains have them together.
    The order depends on `seed` and `batch_size` alone, so the position is one number:
    `get_state()`, `set_state(state)`, or `grain.checkpoint.CheckpointSave`.
    """
    position_b = _rows_of_process(batch_size, process_index, process_count)
    if isinstance(examples, ReplayExamples):
        order = examples.order(batch_size, seed)
    else:
        order = shuffle_rows(len(examples), seed).batch(batch_size)
    batches = order.map(lambda index_B: examples.batch(index_B, position_b))
    return _prefetch(batches, examples)


def eval_batches(
    examples: Examples,
    batch_size: int,
    process_index: int,
    process_count: int,
    rows: np.ndarray | None = None,
) -> Iterator[dict]:
    """Returns an iterator of batches with every example exactly once, in order.

    All processes have the same number of batches. rows: int [m], the examples to take, in
    this order; None: all. The last batch is filled up with rows of index -1 and weight 0.
    """
    import grain

    position_b = _rows_of_process(batch_size, process_index, process_count)
    rows = np.arange(len(examples)) if rows is None else rows
    num_batches = -(-len(rows) // batch_size)
    filled = np.full(num_batches * batch_size, -1)
    filled[: len(rows)] = rows

    def batch(k: int) -> dict:
        index_B = filled[k * batch_size : (k + 1) * batch_size]
        return examples.batch(index_B, position_b)

    return _prefetch(grain.MapDataset.range(num_batches).map(batch), examples)


def _prefetch(
    batches: "grain.MapDataset", examples: Examples
) -> "grain.DatasetIterator":
    import grain

    # One grain thread for each prefetched batch. The examples own the decoding threads,
    # `num_threads` in all.
    ahead = examples.config.prefetch_batches
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    return iter(batches.to_iter_dataset(options))


def _rows_of_process(batch_size: int, index: int, count: int) -> np.ndarray:
    """Returns int64 [b], the rows of the global batch that process `index` reads."""
    if batch_size < 1 or batch_size % count:
        raise errors.UserError(
            f"batch_size={batch_size} must be a multiple of the {count} processes"
        )
    rows = batch_size // count
    return np.arange(index * rows, (index + 1) * rows)
