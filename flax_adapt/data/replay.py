"""Replay: the target's examples and a few of the source the model came from (METHODS S2).

Or of several sources, such as earlier tasks: `replay.data` is one data section or a tuple
of them, and the few are drawn from all together. They are drawn once, by `replay.seed`,
and stay the same for the whole stage: a share of the target (`replay.ratio`), or
`replay.buffer_size` of them. The latter is what a reservoir holds at the end of a stream
of the sources: each example with the same probability (Vitter 1985). Which of them a
batch holds is said in `order`. With `replay.sampling="joint"` all of them are drawn, and
an epoch has every example of the target and of all sources once: joint training.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data import drawing, order
from flax_adapt.data.base import UNLABELLED, Chained
from flax_adapt.data.drawing import BadOfSeveral, Drawn, OneDomain
from flax_adapt.data.texts.text import TextExamples

if TYPE_CHECKING:  # slow to import: only where it is used
    import grain

# modality -> the fields in which target and source must agree: one batch holds both
SAME = {
    "image": ("image_size", "channels", "mean", "std"),
    "text": ("tokenizer", "seq_len", "layout", "buckets"),
}
# ... and what several sources must have alike: one set of examples is made of them
ALIKE: dict[str, dict[str, Callable[[ConfigDict], Any]]] = {
    "image": {},
    "text": {
        "the number of text_fields": lambda config: len(config.text_fields),
        "label_kind": lambda config: config.label_kind,
        "having a label_field": lambda config: bool(config.label_field),
    },
}


class ReplayExamples:
    """The rows of the target, then those drawn from the source, as one set of examples.

    `target` and `source` are the two sets; `config` is the target's: the source's rows
    are augmented and fetched ahead as it says. `same_classes`: a label means the same in
    both; where it does not, the source's rows have none. `origins`: int [m], which of
    several sources each image or document that was drawn is of.
    """

    def __init__(
        self,
        target: OneDomain,
        source: OneDomain,
        drawn: Drawn,
        config_replay: ConfigDict,
        num_steps: int,
    ):
        self.target, self.source, self.config = target, source, target.config
        self._replay, self._drawn_names = config_replay, drawn.source.names
        self.origins = drawn.origins
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
    def bad_files(self) -> BadOfSeveral:
        """What could not be decoded so far."""
        return BadOfSeveral(
            (*self.target.bad_files.names, *self.source.bad_files.names)
        )

    def order(self, batch_size: int, seed: int) -> "grain.MapDataset":
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
        fields = ["seed", "ratio", "final_ratio", "schedule", "sampling"]
        fields += ["buffer_size"] if self._replay.buffer_size else []
        data, names = drawing.sections(self._replay), list(self._drawn_names)
        where = {name: [section[name] for section in data]
                 for name in ("source", "split")}  # fmt: skip
        if len(data) == 1:
            where = {name: values[0] for name, values in where.items()}
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
    if config_replay.buffer_size < 0:
        raise errors.UserError(
            f"replay.buffer_size={config_replay.buffer_size} must be the number of "
            "examples to draw, or 0: as many as the ratio says"
        )
    modality = errors.choose("data.modality", config_data.modality, SAME)
    data = drawing.sections(config_replay)
    if not data:
        raise errors.UserError("replay.data=() must name a source or several")
    for section in data:
        for field in ("modality", *modality):
            _check_same(field, config_data, section)
        _check_alike(data[0], section)


def _check_alike(config_first: ConfigDict, config_other: ConfigDict) -> None:
    for what, value in ALIKE[config_first.modality].items():
        first, other = value(config_first), value(config_other)
        if first != other:
            raise errors.UserError(
                f"replay.data: {what} must be the same for all sources, not {first!r} "
                f"and {other!r}"
            )


def _check_ratios(config_replay: ConfigDict) -> None:
    ratios = (config_replay.ratio, config_replay.final_ratio)
    told = "replay.ratio={} and final_ratio={}".format(*ratios)
    if config_replay.sampling == order.JOINT:
        if any(value != 0 for value in (*ratios, config_replay.buffer_size)):
            raise errors.UserError(
                f"{told} with buffer_size={config_replay.buffer_size} must all be 0 for"
                " replay.sampling='joint': it draws every example of every source"
            )
        return
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
    """Draws from the sources of `config_replay`, which has passed `check`.

    All of them if `sampling` is "joint"; else `buffer_size` of them, or where that is 0
    round(max(ratio, final_ratio) * number of target examples). Of packed texts documents
    are counted, and drawn before they are packed.
    """
    data = drawing.sections(config_replay)
    try:
        sources, make = drawing.SOURCES[data[0].modality](data, bad_log)
        drawn = drawing.draw(sources, target, config_replay)
        source = make(drawn.source)
    except errors.UserError as error:
        raise errors.UserError(f"replay: {error}") from error
    return ReplayExamples(target, source, drawn, config_replay, num_steps)
