"""Draws the examples for replay from one source or several (see `replay`)."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import errors
from flax_adapt.data import base, order
from flax_adapt.data.base import Source
from flax_adapt.data.examples import ImageExamples, open_images
from flax_adapt.data.texts import text
from flax_adapt.data.texts.text import TextExamples

log = logging.getLogger(__name__)

OneDomain: TypeAlias = ImageExamples | TextExamples
# The opened sources, and a function that makes examples of the source drawn from them.
OpenedSources: TypeAlias = tuple[list[Source], Callable[[Source], OneDomain]]
_DRAW = 1


@dataclasses.dataclass(frozen=True)
class BadOfSeveral:
    """The bad examples of several sources: how many, and their names."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


class DrawnExamples(NamedTuple):
    """The drawn examples as a source; `origins` int [m] numbers the source of each."""

    source: Source
    origins: np.ndarray


def list_sections(config_replay: ConfigDict) -> tuple[ConfigDict, ...]:
    """Returns the data sections that are replayed."""
    data = config_replay.data
    return data if isinstance(data, tuple) else (data,)


def draw_examples(
    sources: list[Source], target: OneDomain, config_replay: ConfigDict
) -> DrawnExamples:
    """Draws examples of the sources by `config_replay.seed`, in the order of the sources.

    With a larger ratio the same examples are drawn, and others. Raises UserError where more
    examples are requested than there are.
    """
    whole, seed = base.join_sources(sources), config_replay.seed
    count, field, reason = _choose_count(target, len(whole), config_replay)
    if not 0 < count <= len(whole):
        raise errors.UserError(
            f"{field} asks for {count} of the {len(whole)} examples of {whole.where};"
            f" change the {field.split()[0]}, or give more data"
        )
    rows = np.random.default_rng([seed, _DRAW]).permutation(len(whole))[:count]
    log.info(
        "replay: drew %d of %d examples of %s with seed %d, for %s",
        *(count, len(whole), whole.where, seed, reason),
    )
    rows = np.sort(rows)
    ends = np.cumsum([len(source) for source in sources])
    return DrawnExamples(whole.take(rows), base.source_numbers(ends, rows))


def _choose_count(
    target: OneDomain, num_whole: int, config_replay: ConfigDict
) -> tuple[int, str, str]:
    """Returns how many examples to draw, the field that says so, and a reason for the log."""
    if config_replay.sampling == order.JOINT:
        return num_whole, "sampling 'joint'", "joint training"
    size = config_replay.buffer_size
    if size:
        return size, f"buffer_size {size}", f"a buffer of {size}"
    num_target = target.num_texts if isinstance(target, TextExamples) else len(target)
    ratio = max(config_replay.ratio, config_replay.final_ratio)
    return (
        round(ratio * num_target),
        f"ratio {ratio} of {num_target} target examples",
        f"a ratio of {ratio:g} to {num_target} target examples",
    )


def _open_image_sources(data: tuple[ConfigDict, ...], bad_log: str) -> OpenedSources:
    opened = [open_images(section, bad_log).source for section in data]
    return opened, lambda drawn: ImageExamples(drawn, data[0], bad_log)


def _open_text_sources(data: tuple[ConfigDict, ...], bad_log: str) -> OpenedSources:
    opened = [text.open_documents(section, bad_log) for section in data]
    names = [name for _, bad_files in opened for name in bad_files.names]
    bad_files: Any = BadOfSeveral(tuple(names))
    return [source for source, _ in opened], lambda drawn: TextExamples(
        drawn, data[0], bad_files
    )


SOURCES: dict[str, Callable[[tuple[ConfigDict, ...], str], OpenedSources]] = {
    "image": _open_image_sources,
    "text": _open_text_sources,
}
