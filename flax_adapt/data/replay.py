"""Replay: training on the target with a few examples of the source domain (S2).

There may be several sources, such as earlier tasks: `replay.data` is one data section or a
tuple of them, and the examples are drawn from all together. They are drawn once, by
`replay.seed`, and stay the same for the whole stage. Their number is `replay.ratio` times
that of the target, or `replay.buffer_size`: a sample as in a reservoir at the end of a
stream of the sources, each example with the same probability (Vitter 1985). `order`
decides which of them are in a batch. With `replay.sampling="joint"` all examples are drawn,
and an epoch has every example of the target and of all sources once: joint training.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.base.checks import Check, Context, Row, one_of, present
from flax_adapt.data import drawing, fingerprint, order
from flax_adapt.data.base import UNLABELLED, JoinedNames
from flax_adapt.data.drawing import BadOfSeveral, DrawnExamples, OneDomain
from flax_adapt.data.texts.text import TextExamples

if TYPE_CHECKING:  # slow to import: only where it is used
    import grain

# Modality -> the fields in which target and sources must agree, as a batch mixes them.
SAME_AS_TARGET = {
    "image": ("image_size", "channels", "mean", "std"),
    "text": ("tokenizer", "seq_len", "layout", "buckets"),
}
# Modality -> the properties that several sources must share, as they become one set.
SAME_IN_SOURCES: dict[str, dict[str, Callable[[ConfigDict], Any]]] = {
    "image": {},
    "text": {
        "the number of text_fields": lambda config: len(config.text_fields),
        "label_kind": lambda config: config.label_kind,
        "having a label_field": lambda config: bool(config.label_field),
    },
}


class Pair(NamedTuple):
    """The sections `data` and `replay` of a stage."""

    data: ConfigDict
    replay: ConfigDict


def _list_unlike_target(pair: Pair) -> list[str]:
    """Returns a message for each field in which a source differs from the target."""
    fields = ("modality", *SAME_AS_TARGET[pair.data.modality])
    return [
        f"replay.data.{field}={section[field]!r} must be that of the target, "
        f"data.{field}={pair.data[field]!r}: one batch holds both"
        for section in drawing.list_sections(pair.replay)
        for field in fields
        if section[field] != pair.data[field]
    ]


def _list_unlike_sources(pair: Pair) -> list[str]:
    """Returns a message for each property that the sources do not share."""
    first, *others = drawing.list_sections(pair.replay)
    return [
        f"replay.data: {what} must be the same for all sources, not {value(first)!r} and "
        f"{value(other)!r}"
        for other in others
        for what, value in SAME_IN_SOURCES[first.modality].items()
        if value(first) != value(other)
    ]


def _ratios(pair: Pair) -> tuple[float, float]:
    return pair.replay.ratio, pair.replay.final_ratio


def _is_joint(pair: Pair) -> bool:
    return pair.replay.sampling == order.JOINT


_RATIOS = "replay.ratio={0.replay.ratio} and final_ratio={0.replay.final_ratio}"
# Rules of replay.
ROWS = (
    one_of("replay.schedule", lambda pair: pair.replay.schedule, order.SCHEDULES),
    one_of("replay.sampling", lambda pair: pair.replay.sampling, order.SAMPLINGS),
    Row(
        lambda pair: (
            not _is_joint(pair) or not any((*_ratios(pair), pair.replay.buffer_size))
        ),
        f"{_RATIOS} with buffer_size={{0.replay.buffer_size}} must all be 0 for "
        "replay.sampling='joint': it draws every example of every source",
    ),
    Row(
        lambda pair: (
            _is_joint(pair)
            or (
                all(0 <= ratio < math.inf for ratio in _ratios(pair))
                and any(_ratios(pair))
            )
        ),
        f"{_RATIOS} must be numbers >= 0, one of them > 0; to replay nothing set "
        "replay=None (unsup_finetune: method=naive)",
    ),
    Row(
        lambda pair: pair.replay.schedule != "constant" or len({*_ratios(pair)}) == 1,
        f"{_RATIOS} differ, but replay.schedule is 'constant'; make them equal or choose "
        "another schedule",
    ),
    Row(lambda pair: pair.replay.seed >= 0, "replay.seed={0.replay.seed} must be >= 0"),
    Row(
        lambda pair: pair.replay.buffer_size >= 0,
        "replay.buffer_size={0.replay.buffer_size} must be the number of examples to draw, "
        "or 0: as many as the ratio says",
    ),
    Row(
        lambda pair: drawing.list_sections(pair.replay),
        "replay.data=() must name a source or several",
    ),
    Row(
        lambda pair: not _list_unlike_target(pair),
        lambda pair: _list_unlike_target(pair)[0],
    ),
    Row(
        lambda pair: not _list_unlike_sources(pair),
        lambda pair: _list_unlike_sources(pair)[0],
    ),
)


def _pairs(at: Context) -> list[Pair]:
    return [Pair(at.section.data, replay) for replay in present(at.section.replay)]


CHECKS = (Check(_pairs, ROWS),)


class ReplayExamples:
    """The examples of the target, then those drawn from the source, as one set.

    target, source: the two sets. config: the target's data section, which also rules how
    source examples are augmented and prefetched. same_classes: whether labels mean the same
    in both; if not, source examples have no labels. origins: int [m], the number of the
    source of each drawn image or document.
    """

    def __init__(
        self,
        target: OneDomain,
        source: OneDomain,
        drawn: DrawnExamples,
        config_replay: ConfigDict,
        num_steps: int,
    ):
        self.target, self.source, self.config = target, source, target.config
        self._replay, self._drawn_names = config_replay, drawn.source.names
        self.origins = drawn.origins
        sizes = (len(target), len(source))
        self._mixture = order.Mixture(*sizes, config_replay, num_steps)
        self.names: Sequence[str] = JoinedNames(target.names, source.names)
        self.class_names = target.class_names
        self.same_classes = _label_meaning(target) == _label_meaning(source)

    def __len__(self) -> int:
        return len(self.target) + len(self.source)

    @property
    def labels(self) -> np.ndarray:
        """Labels, int32 (-1: none) or float32 [n]."""
        ours, theirs = self.target.labels, self.source.labels
        if not self.same_classes:
            theirs = np.full(len(theirs), UNLABELLED, ours.dtype)
        return np.concatenate([ours, theirs])

    def fingerprint(self) -> dict[str, str]:
        """Returns the `data.fingerprint` of both domains together."""
        both = (self.target.fingerprint(), self.source.fingerprint())
        return fingerprint.of_both(*both)

    @property
    def bad_files(self) -> BadOfSeveral:
        """The examples of both domains that could not be decoded so far."""
        return BadOfSeveral(
            (*self.target.bad_files.names, *self.source.bad_files.names)
        )

    def order(self, batch_size: int, seed: int) -> "grain.MapDataset":
        """Returns a data set whose element k is index_B, int64 [batch_size]: batch k.

        It is endless and deterministic. Raises UserError where `sampling` puts rows of both
        domains in each batch, and `batch_size` is too small for it.
        """
        sampling = order.SAMPLINGS[self._replay.sampling]
        return sampling(self._mixture, batch_size, seed)

    def batch(self, index_B: np.ndarray, position_b: np.ndarray) -> dict:
        """Returns the host batch of rows index_B[position_b] (-1: padding).

        index_B: the rows of the global batch. position_b: those of this process. The batch
        is one of the target with domain int32 [b]: 0 target (and padding), 1 source. Rows
        of text have the length that the longest row of both domains needs.
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
        return jax.tree.map(
            lambda a, b: _merge_rows(a, b, is_source_b), ours, theirs
        ) | {
            "index": index_B[position_b].astype(np.int32),
            "domain": is_source_b.astype(np.int32),
        }

    def _length(self, own_B: np.ndarray, other_B: np.ndarray) -> dict[str, Any]:
        """Returns {"length": length of rows of text}, which needs both domains; {} for images."""
        needed = [
            examples.length(index_B)
            for examples, index_B in ((self.target, own_B), (self.source, other_B))
            if isinstance(examples, TextExamples)
        ]
        return {"length": max(needed)} if needed else {}

    def record(self) -> dict[str, Any]:
        """Returns the settings and the names of the drawn examples, for replay.json."""
        fields = ["seed", "ratio", "final_ratio", "schedule", "sampling"]
        fields += ["buffer_size"] if self._replay.buffer_size else []
        data, names = drawing.list_sections(self._replay), list(self._drawn_names)
        where = {name: [section[name] for section in data]
                 for name in ("source", "split")}  # fmt: skip
        if len(data) == 1:
            where = {name: values[0] for name, values in where.items()}
        return {name: self._replay[name] for name in fields} | where | {"names": names}


def _label_meaning(examples: OneDomain) -> tuple:
    """Returns a value that is equal for two sets whose labels mean the same."""
    if not isinstance(examples, TextExamples):
        return (examples.class_names,)
    config = examples.config
    return (examples.class_names, config.label_kind, bool(config.label_field))


def _merge_rows(
    ours: np.ndarray, theirs: np.ndarray, is_source_b: np.ndarray
) -> np.ndarray:
    """Returns the rows of two arrays in the order of `is_source_b`, in the dtype of `ours`."""
    merged = np.empty((len(is_source_b), *ours.shape[1:]), ours.dtype)
    merged[~is_source_b], merged[is_source_b] = ours, theirs
    return merged


def add_source(
    target: OneDomain, config_replay: ConfigDict, bad_log: str, num_steps: int
) -> ReplayExamples:
    """Returns the target with examples drawn from the sources of a checked `config_replay`.

    All of them are drawn if `sampling` is "joint"; else `buffer_size` of them, or where
    that is 0 round(max(ratio, final_ratio) * number of target examples). Packed texts are
    counted and drawn as documents, before they are packed.
    """
    data = drawing.list_sections(config_replay)
    try:
        sources, make = drawing.SOURCES[data[0].modality](data, bad_log)
        drawn = drawing.draw_examples(sources, target, config_replay)
        source = make(drawn.source)
    except errors.UserError as error:
        raise errors.UserError(f"replay: {error}") from error
    return ReplayExamples(target, source, drawn, config_replay, num_steps)
