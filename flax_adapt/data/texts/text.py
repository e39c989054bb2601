"""Examples of a text data section: tokenised once, cut into host batches."""

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flax_adapt.base import checks, errors
from flax_adapt.base.checks import Row
from flax_adapt.data import fingerprint, records, source, subset
from flax_adapt.data.bad_files import BadFiles
from flax_adapt.data.base import BATCH_ROWS, UNLABELLED, NumberedNames, Source
from flax_adapt.data.texts import layouts, token_rows, tokenizer

log = logging.getLogger(__name__)

# Rules of a data section of texts.
ROWS = (
    Row(
        lambda it: len(it.text_fields) in (1, 2),
        "data.text_fields must be one name or two",
    ),
    Row(lambda it: it.seq_len >= 8, "data.seq_len must be at least 8"),
    Row(
        lambda it: all(a < b for a, b in itertools.pairwise((0, *it.buckets))),
        "data.buckets must be increasing lengths",
    ),
    Row(
        lambda it: len(it.text_fields) == 1 or it.layout == "padded",
        "data.layout must be 'padded' for pairs of texts",
    ),
    *BATCH_ROWS,
)


class TokenisedTexts(NamedTuple):
    """The rows of a layout, the number of tokens of the texts, and how many texts were cut."""

    rows: token_rows.TokenRows
    num_tokens: int
    num_cut: int


class TextExamples:
    """Rows of tokens by `data.layout`; only the tokens are kept in memory.

    padded          a row is a text or a pair, with its label and name. The length of a
                    batch is the smallest of `buckets` and `seq_len` that its longest
                    row, over all processes, fits in
    packed, full_sentences
                    a row is `seq_len` tokens of many texts, without labels and names

    num_texts, num_tokens: the size of the source, without special tokens. num_cut: the
    number of texts longer than a row; they are cut off if padded, else continued in another
    row. fill: the share of tokens that are not padding in rows of `seq_len`.
    """

    def __init__(self, source: Source, config_data: ConfigDict, bad_files: BadFiles):
        self.config, self.bad_files = config_data, bad_files
        self.tokenizer = tokenizer.open_tokenizer(config_data.tokenizer)
        self.num_texts = len(source)
        layout = LAYOUTS[config_data.layout]
        made = layout(source, self.tokenizer, config_data)
        self._rows, self.num_tokens, self.num_cut = made
        self._lengths = self._rows.lengths
        if not self.num_tokens:
            raise errors.UserError(
                f"data.source: {source.where} has no token at all: its"
                f" {self.num_texts} texts are empty"
            )
        self.fill = float(self._lengths.mean() / config_data.seq_len)
        # Only padded rows are of one text each.
        padded = config_data.layout == "padded"
        numbered = NumberedNames(config_data.layout, len(self))
        self.names: Sequence[str] = source.names if padded else numbered
        unlabelled = np.full(len(self), UNLABELLED, np.int32)
        self.labels: np.ndarray = source.labels if padded else unlabelled
        self.class_names = source.class_names if padded else ()
        log.info("%s: %s", source.where, self.summary())

    def __len__(self) -> int:
        return len(self._lengths)

    def summary(self) -> str:
        """Returns a line for the log."""
        done = "cut to" if self.config.layout == "padded" else "split to fit in"
        return (
            f"{self.num_texts} texts of {self.num_tokens} tokens in {len(self)}"
            f" {self.config.layout} rows, {self.fill:.1%} full; {self.num_cut} were"
            f" {done} seq_len={self.config.seq_len}"
        )

    def fingerprint(self) -> dict[str, str]:
        """Returns the `data.fingerprint` of the rows of tokens, and so of the tokenizer."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> dict[str, str]:
        return fingerprint.of_arrays(self.names, self._rows)

    @property
    def row_sizes(self) -> dict[str, int]:
        """The sizes that a model must have (see `models.check_fits`)."""
        used, num_texts = self.tokenizer, len(self.config.text_fields)
        return dict(
            length=self.config.seq_len,
            vocab_size=used.vocab_size,
            token_types=used.token_types(num_texts),
        )

    def batch(
        self, index_B: np.ndarray, position_b: np.ndarray, length: int | None = None
    ) -> dict:
        """Returns the host batch of rows index_B[position_b] (-1: padding).

        index_B: the rows of the global batch. position_b: those of this process.
        text `Text` of int32 [b, L], label int32 or float32, index, position int32 [b],
        weight float32 [b]. L is `length`, or for None `self.length(index_B)`, which is the
        same in all processes.
        """
        index_b = index_B[position_b]
        real_b = index_b >= 0
        return {
            "text": token_rows.to_text(
                self._rows,
                index_b,
                self.length(index_B) if length is None else length,
                self.tokenizer.pad_id,
                self.tokenizer.special,
            ),
            "label": np.where(real_b, self.labels[index_b], self._no_label),
            "index": index_b.astype(np.int32),
            "position": position_b.astype(np.int32),
            "weight": real_b.astype(np.float32),
        }

    @property
    def _no_label(self) -> np.generic:
        return self.labels.dtype.type(UNLABELLED)

    def length(self, index_B: np.ndarray) -> int:
        """Returns the length of a batch of the rows index_B (-1: padding, of no length)."""
        if self.config.layout != "padded":
            return self.config.seq_len
        longest = self._lengths[index_B[index_B >= 0]].max(initial=0)
        fitting = (bucket for bucket in self.config.buckets if bucket >= longest)
        return min(next(fitting, self.config.seq_len), self.config.seq_len)


def open_texts(config_data: ConfigDict, bad_log: str) -> TextExamples:
    """Returns the tokenised examples of a data section.

    bad_log: a file for the names of broken rows; "": none. Raises UserError for a wrong
    section, and for a source that cannot be read.
    """
    chosen, bad_files = open_documents(config_data, bad_log)
    return TextExamples(chosen, config_data, bad_files)


def open_documents(config_data: ConfigDict, bad_log: str) -> tuple[Source, BadFiles]:
    """Returns the texts of a data section that are to be tokenised, and its broken rows."""
    checks.run(ROWS, config_data)
    errors.choose("data.layout", config_data.layout, LAYOUTS)
    errors.choose("data.label_kind", config_data.label_kind, records.KINDS)
    whole = source.open_source(config_data)
    count = len(whole) + len(whole.broken)
    bad_files = BadFiles(whole.where, count, config_data.max_bad_fraction, bad_log)
    for name, reason in whole.broken.items():
        bad_files.add(name, reason)
    return subset.select(whole, config_data.subset), bad_files


def _make_padded(
    source: Source, used: tokenizer.Tokenizer, config_data: ConfigDict
) -> TokenisedTexts:
    num_texts = len(config_data.text_fields)
    texts = [text for i in range(len(source)) for text in source.read(i)[0]]
    pieces = used.pieces(texts)
    made = layouts.pad_rows(pieces, used.template, num_texts, config_data.seq_len)
    return TokenisedTexts(made[0], len(pieces.tokens), made[1])


def _make_packed(
    source: Source, used: tokenizer.Tokenizer, config_data: ConfigDict
) -> TokenisedTexts:
    pieces = used.pieces([source.read(i)[0][0] for i in range(len(source))])
    made = layouts.pack_rows(pieces, used.template, config_data.seq_len)
    return TokenisedTexts(made[0], len(pieces.tokens), made[1])


def _make_full_sentences(
    source: Source, used: tokenizer.Tokenizer, config_data: ConfigDict
) -> TokenisedTexts:
    parts = [layouts.split_sentences(source.read(i)[0][0]) for i in range(len(source))]
    document = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    pieces = used.pieces([sentence for part in parts for sentence in part])
    made = layouts.fill_full_sentences(
        pieces, document, used.template, config_data.seq_len
    )
    return TokenisedTexts(made[0], len(pieces.tokens), made[1])


# data.layout -> (source, tokenizer, data section) -> rows
LAYOUTS: dict[str, Callable[..., TokenisedTexts]] = {
    "padded": _make_padded,
    "packed": _make_packed,
    "full_sentences": _make_full_sentences,
}
