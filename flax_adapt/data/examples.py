"""Examples of an image data section, decoded to host batches."""

import concurrent.futures
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import checks, errors
from flax_adapt.base.checks import Row
from flax_adapt.data import fingerprint, source, subset
from flax_adapt.data.bad_files import BadFiles
from flax_adapt.data.base import BATCH_ROWS, UNLABELLED, Source, count_threads
from flax_adapt.data.images import image, levels, squares

# Rules of a data section of images.
ROWS = (
    Row(lambda it: it.image_size >= 1, "data.image_size must be at least 1"),
    Row(lambda it: it.channels >= 1, "data.channels must be at least 1"),
    Row(lambda it: it.num_threads >= 0, "data.num_threads must be at least 0"),
    Row(lambda it: it.cache_bytes >= 0, "data.cache_bytes must be at least 0"),
    *BATCH_ROWS,
)

_PROBABILITY = (lambda value: 0 <= value <= 1, "in [0, 1]")
_STRENGTH = (lambda value: 0 <= value < float("inf"), "at least 0")
# Field of a section `augment` -> (condition, what its value must be).
AUGMENT_RULES = {
    "flip": (lambda value: isinstance(value, bool), "True or False"),
    "min_crop_area": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "jitter_probability": _PROBABILITY,
    "brightness": _STRENGTH,
    "contrast": _STRENGTH,
    "saturation": _STRENGTH,
    "hue": (lambda value: 0 <= value <= 0.5, "in [0, 0.5]"),
    "grey_probability": _PROBABILITY,
    "blur_probability": _PROBABILITY,
    "blur_sigma": (
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < float("inf"),
        "(min, max) with 0 < min <= max",
    ),
    "solarize_probability": _PROBABILITY,
    "randaugment_operations": (lambda value: value in range(11), "a number 0 to 10"),
    "randaugment_magnitude": (lambda value: 0 <= value <= 10, "in [0, 10]"),
    "erase_probability": _PROBABILITY,
}
# Only red, green and blue together are a colour.
COLOUR_FIELDS = ("saturation", "hue", "grey_probability")

# A set that decodes to no more than this is decoded once and kept (5 000 images of
# 96x96x3 are 138 MB): every later epoch and evaluation costs no decoding.
CACHE_BYTES = 256 * 2**20
# Images that use 14 bits or less of 16 are taken for images of another scale; and the
# number of examples that are checked for it.
_USED_OF_16_BITS, _LOOKED_AT = 2**14, 8
# For percentiles of a set: so many of its images are read, and so many pixels of each kept.
_MOST_IMAGES, _MOST_PIXELS = 500, 10_000


class ImageExamples:
    """Decodes the examples of a source, in parallel; small sets only once.

    Decoded squares are also stored on disk, see `data.images.squares`.

    `len`, `names`, `labels`, `class_names` are those of the source. `bad_files` counts
    undecodable images, which are zeros with weight 0 in a batch.
    """

    def __init__(self, source: Source, config_data: ConfigDict, bad_log: str):
        self.source, self.config = source, config_data
        self._how = levels.how_of(config_data)
        self._squares = squares.open_squares(config_data)
        fraction = config_data.max_bad_fraction
        count = len(source) + len(source.broken)
        self.bad_files = BadFiles(source.where, count, fraction, bad_log)
        for name, reason in source.broken.items():
            self.bad_files.add(name, reason)
        self._threads = concurrent.futures.ThreadPoolExecutor(
            count_threads(config_data)
        )
        decoded_bytes = len(source) * config_data.image_size**2 * config_data.channels
        small = decoded_bytes <= CACHE_BYTES
        self._cache = self._empty(len(source)) if small else None
        self._cached = np.zeros(len(source), bool)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def names(self) -> Sequence[str]:
        """The name of every example."""
        return self.source.names

    @property
    def labels(self) -> np.ndarray:
        """Labels, int32 [n], -1 where there is none."""
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def fingerprint(self) -> dict[str, str]:
        """See `data.fingerprint`; computed once."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> dict[str, str]:
        return fingerprint.of_source(self.source)

    def batch(self, index_B: np.ndarray, position_b: np.ndarray) -> dict:
        """Returns the host batch of rows index_B[position_b] (-1: padding).

        index_B: the rows of the global batch. position_b: those of this process.
        image uint8 [b, S, S, C], label, index, position int32 [b], weight float32 [b].
        """
        index_b = index_B[position_b]
        real_b = index_b >= 0
        batch = fetched = self._fetch(index_b[real_b])
        if not real_b.all():
            batch = self._empty(len(index_b))
            for name, values in fetched.items():
                batch[name][real_b] = values
        index_b, position_b = index_b.astype(np.int32), position_b.astype(np.int32)
        return batch | {"index": index_b, "position": position_b}

    def _empty(self, count: int) -> dict:
        size = self.config.image_size
        shape = (count, size, size, self.config.channels)
        return {
            "image": np.zeros(shape, np.uint8),
            "label": np.full(count, UNLABELLED, np.int32),
            "weight": np.zeros(count, np.float32),
        }

    def _fetch(self, rows: np.ndarray) -> dict:
        if self._cache is None:
            return self._decode(rows)
        new = np.unique(rows[~self._cached[rows]])
        for name, values in self._decode(new).items():
            self._cache[name][new] = values
        # Last: two threads may decode the same row, but none reads it unfinished.
        self._cached[new] = True
        return {name: values[rows] for name, values in self._cache.items()}

    def _decode(self, rows: np.ndarray) -> dict:
        out = self._empty(len(rows))
        found = {row: self._find_stored(row) for row in rows.tolist()}
        new = [row for row in rows.tolist() if found[row] is None]
        decoded = self._threads.map(self._decode_one, new)
        for i, row in enumerate(rows.tolist()):
            pixels, label = found[row] or next(decoded)
            out["label"][i] = label
            if pixels is not None:
                out["image"][i], out["weight"][i] = pixels, 1
        return out

    def _find_stored(self, row: int) -> tuple[np.ndarray, float] | None:
        """Returns pixels and label of a file whose square is stored, else None.

        In the calling thread: to read a square takes less time than to hand it to another.
        """
        if self._squares is None or not self._reads_files:
            return None
        item, label = self.source.read(row)
        pixels = self._squares.find(item)
        return None if pixels is None else (pixels, label)

    @functools.cached_property
    def _reads_files(self) -> bool:
        """Whether items are paths; others must be read to be found."""
        return isinstance(self.source.read(0)[0], Path)

    def _decode_one(self, row: int) -> tuple[np.ndarray | None, float]:
        item, label = self.source.read(row)
        size, channels = self.config.image_size, self.config.channels

        def decode() -> np.ndarray:
            return image.decode(item, size, channels, self._how)

        try:
            if self._squares is None:
                return decode(), label
            return self._squares.fetch(item, decode), label
        except image.UndecodableImage as error:
            self.bad_files.add(self.names[row], str(error))
            return None, label


def open_images(config_data: ConfigDict, bad_log: str) -> ImageExamples:
    """Returns the examples of a data section; images are decoded on access.

    Raises UserError for a wrong section, and for a source that cannot be read.
    """
    checks.run(ROWS, config_data)
    check_augment("augment", config_data.augment, config_data.channels)
    for number, view in enumerate(config_data.views):
        check_augment(f"views.{number}", view, config_data.channels)
    image.channel_values(config_data)
    how = levels.how_of(config_data)
    chosen = subset.open_chosen(config_data)
    if how.window is None:
        _check_levels(chosen)
    return ImageExamples(chosen, config_data, bad_log)


def _check_levels(source: Source) -> None:
    """Raises UserError for images whose range must be given in `bits` or `window`.

    These are 16-bit images that use so little of 0..65535 that 8 bits lose them, since
    cameras and microscopes store 10, 12 or 14 bits so, and images of floating-point numbers
    or of more bits. A few examples are looked at.
    """
    looked_at = [pixels for pixels in _levels_of(source, _LOOKED_AT) if pixels.size]
    if not looked_at:
        return
    low = min(float(pixels.min()) for pixels in looked_at)
    top = max(float(pixels.max()) for pixels in looked_at)
    window = "data.window='LOW:HIGH', or 'LOW%:HIGH%' for percentiles of the set"
    if low < 0 or top > 65535 or any(p.dtype.kind == "f" for p in looked_at):
        raise errors.UserError(
            f"{source.where}: the pixels of {looked_at[0].dtype} lie in {low:.6g} to "
            f"{top:.6g} (in {len(looked_at)} images that were looked at), which is no known "
            f"range: give {window}"
        )
    if 0 < top < _USED_OF_16_BITS:
        raise errors.UserError(
            f"{source.where}: the 16-bit images use only 0 to {top:.0f} of 0 to 65535 (in"
            f" {len(looked_at)} that were looked at), so that 8 bits keep {top // 257 + 1:.0f}"
            f" levels, nearly black: give data.bits={int(top).bit_length()}, or {window}"
        )


def _levels_of(source: Source, most: int) -> Iterator[np.ndarray]:
    """The levels of evenly spread images whose range is not certain."""
    rows = np.unique(np.linspace(0, len(source) - 1, most).astype(int)).tolist()
    for row in rows if len(source) else []:
        pixels = image.read_levels(source.read(row)[0])
        if pixels is not None:
            yield pixels


def window_of_percentiles(config_data: ConfigDict) -> str:
    """Returns `data.window` with "LOW%:HIGH%" as levels of the set, else unchanged.

    Percentiles of all pixels of up to 500 images, evenly spread. Raises UserError where no
    image needs a range.
    """
    percentiles = levels.parse_percentiles(config_data.window)
    if percentiles is None:
        return str(config_data.window)
    opened = source.open_source(config_data)
    kept = [
        pixels.ravel()[:: 1 + pixels.size // _MOST_PIXELS]
        for pixels in _levels_of(opened, _MOST_IMAGES)
    ]
    if not kept:
        raise errors.UserError(
            f"data.window={config_data.window!r}: the images of {opened.where} have 8 bits "
            "or tell their range: leave it out"
        )
    low, high = np.percentile(np.concatenate(kept), percentiles).tolist()
    if low >= high:
        raise errors.UserError(
            f"data.window={config_data.window!r} of {opened.where} is {low:.6g} to "
            f"{high:.6g}, which is empty: take percentiles further apart"
        )
    return f"{low:.6g}:{high:.6g}"


def check_augment(name: str, section: ConfigDict, channels: int) -> None:
    """Raises UserError for a wrong field of `data.NAME`, a section `augment`."""
    missing = [field for field in AUGMENT_RULES if field not in section]
    if missing:
        raise errors.UserError(f"data.{name} lacks {missing}: give every field a value")
    for field, (holds, rule) in AUGMENT_RULES.items():
        if not holds(section[field]):
            raise errors.UserError(
                f"data.{name}.{field}={section[field]}: must be {rule}"
            )
    for field in COLOUR_FIELDS:
        if channels != 3 and section[field] != 0:
            raise errors.UserError(
                f"data.{name}.{field}={section[field]} needs images in colour: with "
                f"data.channels={channels}, not 3, it must be 0"
            )
