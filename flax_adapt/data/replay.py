"""Replay: the target's examples and a few of the source the model came from (METHODS S2).

The few are drawn once, by `replay.seed`, and stay the same for the whole stage. Which of
them a batch holds is said in `order`.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data import order, text
from flax_adapt.data.base import UNLABELLED, Chained, Source
from flax_adapt.data.examples import ImageExamples, open_images
from flax_adapt.data.text import TextExamples

log = logging.getLogger(__name__)

OneDomain: TypeAlias = ImageExamples | TextExamples
# What there is to draw from, and how examples are made of what was drawn.
Opened: TypeAlias = tuple[Source, Callable[[Source], OneDomain]]
# modality -> the fields in which target and source must agree: one batch holds both
SAME = {
    "image": ("image_size", "channels", "mean", "std"),
    "text": ("tokenizer", "seq_len", "layout", "buckets"),
}
_DRAW = 1


@dataclasses.dataclass(frozen=True)
class BadOfBoth:
    """The bad examples of two sources: how many, and their names."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


class ReplayExamples:
    """The rows of the target, then those drawn from the source, as one set of examples.

    `target` and `source` are the two sets; `config` is the target's: the source's rows
    are augmented and fetched ahead as it says. `same_classes`: a label means the same in
    both; where it does not, the source's rows have none.
    """

    def __init__(
        self,
        target: OneDomain,
        source: OneDomain,
        drawn_names: Sequence[str],
        config_replay: ConfigDict,
        num_steps: int,
    ):
        self.target, self.source, self.config = target, source, target.config
        self._replay, self._drawn_names = config_replay, drawn_names
        sizes = (len(target), len(source))
        self._mixture = order.Mixture(*sizes, config_replay, num_steps)
        self.names: Sequence[str] = Chained(target.names, source.names)
        self.class_names = target.class_names
        self.same_classes = _meaning(target) == _meaning(source)

    def __len__(self) -> int:
        return len(self.target) + len(self.source)

    @property
    def labels(self) -> np.ndarray:
        """int32 (-1: none) or float32 [n]."""
        ours, theirs = self.target.labels, self.source.labels
        if not self.same_classes:
            theirs = np.full(len(theirs), UNLABELLED, ours.dtype)
        return np.concatenate([ours, theirs])

    @property
    def bad_files(self) -> BadOfBoth:
        """What could not be decoded so far."""
        return BadOfBoth((*self.target.bad_files.names, *self.source.bad_files.names))

    def order(self, batch_size: int, seed: int) -> grain.MapDataset:
        """Element k: index_B, int64 [batch_size], the rows of training batch k.

        Without end, and deterministic. A UserError if `batch_size` is too small for a
        row of each domain where each batch is promised some.
        """
        sampling = order.SAMPLINGS[self._replay.sampling]
        return sampling(self._mixture, batch_size, seed)

    def batch(self, index_B: np.ndarray, position_b: np.ndarray) -> dict:
        """The host batch of rows index_B[position_b] (-1: padding) of the global batch.

        As the batch of the target, with domain int32 [b]: 0 target (and padding), 1
        source. Rows of text have the length that the longest of both domains needs.
        """
        first = len(self.target)
        from_source_B = index_B >= first
        own_B = np.where(from_source_B, -1, index_B)
        other_B = np.where(from_source_B, index_B - first, -1)
        length = self._length(own_B, other_B)
        is_source_b = from_source_B[position_b]
        ours = self.target.batch(own_B, position_b[~is_source_b], **length)
        theirs = self.source.batch(other_B, position_b[is_source_b], **length)
        if not self.same_classes:
            theirs["label"] = np.full(len(theirs["label"]), UNLABELLED)
        return jax.tree.map(lambda a, b: _merge(a, b, is_source_b), ours, theirs) | {
            "index": index_B[position_b].astype(np.int32),
            "domain": is_source_b.astype(np.int32),
        }

    def _length(self, own_B: np.ndarray, other_B: np.ndarray) -> dict[str, Any]:
        """Of text the length of the rows, which neither domain knows alone."""
        needed = [
            examples.length(index_B)
            for examples, index_B in ((self.target, own_B), (self.source, other_B))
            if isinstance(examples, TextExamples)
        ]
        return {"length": max(needed)} if needed else {}

    def record(self) -> dict[str, Any]:
        """What was drawn, as JSON can hold it: `names` are of images or documents."""
        fields = ("seed", "ratio", "final_ratio", "schedule", "sampling")
        where = {name: self._replay.data[name] for name in ("source", "split")}
        names = list(self._drawn_names)
        return {name: self._replay[name] for name in fields} | where | {"names": names}


def _meaning(examples: OneDomain) -> tuple:
    """Equal for two sets whose labels mean the same."""
    if not isinstance(examples, TextExamples):
        return (examples.class_names,)
    config = examples.config
    return (examples.class_names, config.label_kind, bool(config.label_field))


def _merge(ours: np.ndarray, theirs: np.ndarray, is_source_b: np.ndarray) -> np.ndarray:
    """The rows of two arrays, put where `is_source_b` says; the first one's dtype."""
    merged = np.empty((len(is_source_b), *ours.shape[1:]), ours.dtype)
    merged[~is_source_b], merged[is_source_b] = ours, theirs
    return merged


def check(config_data: ConfigDict, config_replay: ConfigDict) -> None:
    """Raises UserError for a mistake that can be seen before anything is opened."""
    errors.choose("replay.schedule", config_replay.schedule, order.SCHEDULES)
    errors.choose("replay.sampling", config_replay.sampling, order.SAMPLINGS)
    _check_ratios(config_replay)
    if config_replay.seed < 0:
        raise errors.UserError(f"replay.seed={config_replay.seed} must be >= 0")
    _check_same("modality", config_data, config_replay.data)
    modality = errors.choose("data.modality", config_data.modality, SAME)
    for field in modality:
        _check_same(field, config_data, config_replay.data)


def _check_ratios(config_replay: ConfigDict) -> None:
    ratios = (config_replay.ratio, config_replay.final_ratio)
    told = "replay.ratio={} and final_ratio={}".format(*ratios)
    if not all(0 <= ratio < math.inf for ratio in ratios) or max(ratios) == 0:
        raise errors.UserError(
            f"{told} must be numbers >= 0, one of them > 0; to replay nothing set"
            " replay=None (unsup_finetune: method=naive)"
        )
    if config_replay.schedule == "constant" and ratios[0] != ratios[1]:
        raise errors.UserError(
            f"{told} differ, but replay.schedule is 'constant'; make them equal or"
            " choose another schedule"
        )


def _check_same(field: str, config_data: ConfigDict, config_source: ConfigDict) -> None:
    ours, theirs = config_data[field], config_source[field]
    if ours != theirs:
        raise errors.UserError(
            f"replay.data.{field}={theirs!r} must be that of the target, data.{field}="
            f"{ours!r}: one batch holds both"
        )


def add_source(
    target: OneDomain, config_replay: ConfigDict, bad_log: str, num_steps: int
) -> ReplayExamples:
    """Draws from the source of `config_replay`, which has passed `check`.

    round(max(ratio, final_ratio) * number of target examples) of them; of packed texts
    documents are counted, and drawn before they are packed.
    """
    config = config_replay.data
    try:
        whole, make = SOURCES[config.modality](config, bad_log)
        drawn = _draw(whole, target, config_replay)
        source = make(drawn)
    except errors.UserError as error:
        raise errors.UserError(f"replay: {error}") from error
    return ReplayExamples(target, source, drawn.names, config_replay, num_steps)


def _draw(whole: Source, target: OneDomain, config_replay: ConfigDict) -> Source:
    """A larger ratio keeps what a smaller one drew; in the order of the source."""
    num_target = target.num_texts if isinstance(target, TextExamples) else len(target)
    ratio = max(config_replay.ratio, config_replay.final_ratio)
    seed = config_replay.seed
    count = round(ratio * num_target)
    if not 0 < count <= len(whole):
        raise errors.UserError(
            f"ratio {ratio} of {num_target} target examples asks for {count} of the"
            f" {len(whole)} examples of {whole.where}; change the ratio, or give more data"
        )
    rows = np.random.default_rng([seed, _DRAW]).permutation(len(whole))[:count]
    log.info(
        "replay: drew %d of %d examples of %s with seed %d, for a ratio of %g to %d"
        " target examples",
        *(count, len(whole), whole.where, seed, ratio, num_target),
    )
    return whole.take(np.sort(rows))


def _images(config_data: ConfigDict, bad_log: str) -> Opened:
    opened = open_images(config_data, bad_log)  # nothing is decoded yet
    return opened.source, lambda drawn: ImageExamples(drawn, config_data, bad_log)


def _texts(config_data: ConfigDict, bad_log: str) -> Opened:
    whole, bad_files = text.open_documents(config_data, bad_log)
    return whole, lambda drawn: TextExamples(drawn, config_data, bad_files)


SOURCES: dict[str, Callable[[ConfigDict, str], Opened]] = {
    "image": _images,
    "text": _texts,
}
