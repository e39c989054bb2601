"""Rows of tokens: stored one after the other, assembled from spans, cut into batches."""

from typing import Any, NamedTuple

import numpy as np

from flax_adapt.base.types import Text

# Bits of TokenRows.flags.
STARTS_WORD, STARTS_SEGMENT, SECOND_TEXT = np.uint8(1), np.uint8(2), np.uint8(4)


class Pieces(NamedTuple):
    """Tokens of many texts, one after the other, without special tokens of a template.

    tokens   int32 [t]
    starts   bool [t]: the token begins a word
    offsets  int64 [n + 1]: text i is tokens[offsets[i] : offsets[i + 1]]
    """

    tokens: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray


class Template(NamedTuple):
    """The special tokens before, between and after the texts of a row.

    [CLS] A [SEP] and [CLS] A [SEP] B [SEP] with types 0 0 0 1 1 of BERT, or <s> A </s>
    and <s> A </s></s> B </s> with type 0 alone of RoBERTa.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    second_type: int

    def size(self, num_texts: int) -> int:
        """Returns how many special tokens a row of `num_texts` texts has."""
        between = len(self.between) * (num_texts - 1)
        return len(self.before) + between + len(self.after)


class TokenRows(NamedTuple):
    """Rows with their special tokens.

    tokens   int32 [t]
    flags    uint8 [t]: where words and segments start, and the second text of a pair
    offsets  int64 [n + 1]: row i is tokens[offsets[i] : offsets[i + 1]]
    """

    tokens: np.ndarray
    flags: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """The lengths of all rows, int64 [n]."""
        return np.diff(self.offsets)


class Spans(NamedTuple):
    """Parts of a pool of tokens, in the order in which rows contain them.

    row, begin, size  int64 [s]; flags: uint8 [s], set on every token of the span
    """

    row: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    flags: np.ndarray


class Pool(NamedTuple):
    """All tokens that rows are made of: those of the texts, then those of the template.

    before, between, after: where the parts of the template begin.
    """

    tokens: np.ndarray
    flags: np.ndarray
    before: int
    between: int
    after: int


def make_pool(pieces: Pieces, template: Template) -> Pool:
    """Returns the pool of the tokens of texts and of a template."""
    parts = (template.before, template.between, template.after)
    added = np.concatenate([np.array(part, np.int32) for part in parts])
    flags = pieces.starts.astype(np.uint8) * STARTS_WORD
    # Every document begins with the first token of the template.
    of_added = np.zeros(len(added), np.uint8)
    of_added[0] = STARTS_SEGMENT
    before = len(pieces.tokens)
    between = before + len(template.before)
    return Pool(
        np.concatenate([pieces.tokens, added]),
        np.concatenate([flags, of_added]),
        *(before, between, between + len(template.between)),
    )


def interleave(*columns: Spans) -> Spans:
    """Returns span 0 of every column, then span 1 of every column, and so on.

    The columns have the same length.
    """
    return Spans(
        *(np.stack(field, axis=1).reshape(-1) for field in zip(*columns, strict=True))
    )


def constant(row: np.ndarray, begin: int, size: int, flags: int | np.uint8) -> Spans:
    """Returns the same span for every row in `row`."""
    ones = np.ones(len(row), np.int64)
    return Spans(row, begin * ones, size * ones, np.full(len(row), flags, np.uint8))


def assemble(pool: Pool, spans: Spans, num_rows: int) -> TokenRows:
    """Returns rows assembled from spans, which must be sorted by row."""
    ends = np.cumsum(spans.size)
    total = int(ends[-1]) if len(ends) else 0
    source = np.arange(total) + np.repeat(spans.begin - (ends - spans.size), spans.size)
    sizes = np.bincount(spans.row, spans.size, num_rows).astype(np.int64)
    return TokenRows(
        pool.tokens[source],
        pool.flags[source] | np.repeat(spans.flags, spans.size),
        np.concatenate([[0], np.cumsum(sizes)]),
    )


def to_text(
    rows: TokenRows, index_b: np.ndarray, length: int, pad_id: int, special: np.ndarray
) -> Text:
    """Returns the rows `index_b` as int32 [b, length] arrays; -1 is a row of padding.

    special: bool [vocab_size], the tokens that belong to no word.
    """
    begin_b = rows.offsets[index_b]
    size_b = np.where(index_b >= 0, rows.offsets[index_b + 1] - begin_b, 0)
    place_1L = np.arange(length)[None]
    real_bL = place_1L < size_b[:, None]
    at_bL = np.where(real_bL, begin_b[:, None] + place_1L, 0)
    tokens_bL, flags_bL = rows.tokens[at_bL], rows.flags[at_bL] * real_bL
    first_bL = (flags_bL & STARTS_SEGMENT) != 0
    begins_bL = np.maximum.accumulate(np.where(first_bL, place_1L, 0), axis=1)
    # `Text` is declared with arrays of a device; on the host they are NumPy arrays.
    fields: list[Any] = [
        np.where(real_bL, tokens_bL, np.int32(pad_id)),
        ((flags_bL & SECOND_TEXT) != 0).astype(np.int32),
        np.cumsum(first_bL, axis=1, dtype=np.int32) * real_bL,
        ((place_1L - begins_bL) * real_bL).astype(np.int32),
        number_words(flags_bL, real_bL & ~special[tokens_bL]),
    ]
    return Text(*fields)


def number_words(flags_bL: np.ndarray, in_text_bL: np.ndarray) -> np.ndarray:
    """Returns int32 [b, L]: words numbered 0, 1, ... in the row; -1 outside `in_text_bL`.

    A word starts where the flags say so, and after a token that is no text.
    """
    after_none_bL = np.ones_like(in_text_bL)
    after_none_bL[:, 1:] = ~in_text_bL[:, :-1]
    starts_bL = ((flags_bL & STARTS_WORD) != 0) | after_none_bL
    words_bL = np.cumsum(starts_bL & in_text_bL, axis=1, dtype=np.int32) - np.int32(1)
    return np.where(in_text_bL, words_bL, np.int32(-1))
