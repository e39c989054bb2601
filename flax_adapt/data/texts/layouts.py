"""Arranges the tokens of texts in rows, by the layouts of `data.layout`.

All functions depend on the tokens alone, so that every process gets the same rows.
"""

import re

import numpy as np

from flax_adapt.data.texts.token_rows import (
    SECOND_TEXT,
    Pieces,
    Spans,
    Template,
    TokenRows,
    assemble,
    constant,
    interleave,
    make_pool,
)

# The end of a sentence: . ! or ? and closing quotes or brackets, before white space and
# the first character of the next; or the end of a line. Greedy runs are tried once, at
# their first character, so that a line of dots costs no quadratic time.
SENTENCE_END = re.compile(
    r"(?<![.!?])[.!?]++[\"'”’)\]»]*+(?=\s++(\S))|(?<=\S)(?=\s*\n)"
)
OPENING = "\"'“‘(["


def pad_rows(
    pieces: Pieces, template: Template, num_texts: int, seq_len: int
) -> tuple[TokenRows, int]:
    """Returns (rows with one document or pair each, number of rows cut to `seq_len`).

    Of a pair the longer text is cut first; of two that are equally long, the second.
    """
    room = seq_len - template.size(num_texts)
    begin = pieces.offsets[:-1].reshape(-1, num_texts)
    size = np.diff(pieces.offsets).reshape(-1, num_texts)
    kept = np.minimum(size, room)
    if num_texts == 2:
        shared = np.maximum(room - size[:, 1], -(-room // 2))
        kept[:, 0] = np.minimum(size[:, 0], shared)
        kept[:, 1] = np.minimum(size[:, 1], room - kept[:, 0])
    pool, row = make_pool(pieces, template), np.arange(len(begin))
    second = SECOND_TEXT * np.uint8(template.second_type)
    plain = np.zeros(len(row), np.uint8)
    columns = [
        constant(row, pool.before, len(template.before), 0),
        Spans(row, begin[:, 0], kept[:, 0], plain),
    ]
    if num_texts == 2:
        columns += [
            constant(row, pool.between, len(template.between), 0),
            Spans(row, begin[:, 1], kept[:, 1], plain | second),
        ]
    last = second if num_texts == 2 else 0
    columns.append(constant(row, pool.after, len(template.after), last))
    cut = int(np.sum(np.any(kept < size, axis=1)))
    return assemble(pool, interleave(*columns), len(row)), cut


def pack_rows(
    pieces: Pieces, template: Template, seq_len: int
) -> tuple[TokenRows, int]:
    """Returns (rows with many documents each, number of documents that were split).

    Every piece of a document is a segment of its own, with its own special tokens.
    """
    room = seq_len - template.size(1)
    _, begin, size = split_long(pieces.offsets, room)
    row = renumber_rows(best_fit(size + template.size(1), seq_len))
    order = np.argsort(row, kind="stable")
    pool = make_pool(pieces, template)
    columns = (
        constant(row[order], pool.before, len(template.before), 0),
        Spans(row[order], begin[order], size[order], np.zeros(len(row), np.uint8)),
        constant(row[order], pool.after, len(template.after), 0),
    )
    num_rows = int(row.max()) + 1 if len(row) else 0
    cut = int(np.sum(np.diff(pieces.offsets) > room))
    return assemble(pool, interleave(*columns), num_rows), cut


def split_long(
    offsets: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (text, begin, size) of pieces of `room` tokens; a text's last is shorter."""
    sizes = np.diff(offsets)
    counts = np.maximum(1, -(-sizes // room))
    text = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = offsets[:-1][text] + number * room
    return text, begin, np.minimum(room, offsets[1:][text] - begin)


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Returns int64 [n], the bin of every item, by best fit decreasing.

    Items are placed from the longest on, each into the bin with the least space that is
    enough: at most 11/9 of the fewest bins possible (Johnson et al. 1974). Bins are listed
    by their free space, so that an item takes constant time.
    """
    bins = np.zeros(len(sizes), np.int64)
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces, count = 0, 0  # bit s of `spaces`: some bin has s free
    order = np.argsort(-sizes, kind="stable")
    for item, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            chosen = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
        else:
            space, chosen, count = capacity, count, count + 1
        bins[item] = chosen
        with_space[space - size].append(chosen)
        spaces |= 1 << (space - size)
    return bins


def renumber_rows(bins: np.ndarray) -> np.ndarray:
    """Returns bins numbered in the order of their first items."""
    _, first, inverse = np.unique(bins, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def fill_full_sentences(
    pieces: Pieces, document: np.ndarray, template: Template, seq_len: int
) -> tuple[TokenRows, int]:
    """Returns (rows of RoBERTa's FULL-SENTENCES, number of sentences that were cut).

    Liu et al. 2019, 4.2: rows are filled with whole sentences, across documents, with one
    separator between documents. A sentence longer than a row is cut into pieces. pieces:
    the sentences, in order. document: int64 [n], the document of each.
    """
    room = seq_len - template.size(1)
    text, begin, size = split_long(pieces.offsets, room)
    full = size > 0
    text, begin, size = text[full], begin[full], size[full]
    row, separated = fill_in_order(size, document[text], room)
    pool = make_pool(pieces, template)
    starts, ends = np.diff(row, prepend=-1) > 0, np.diff(row, append=row[-1:] + 1) > 0
    # The last token of the template is a separator.
    separator = pool.after + len(template.after) - 1
    columns = (
        constant(row, pool.before, len(template.before), 0),
        constant(row, separator, 1, 0),
        Spans(row, begin, size, np.zeros(len(row), np.uint8)),
        constant(row, pool.after, len(template.after), 0),
    )
    kept = np.stack([starts, separated, np.ones_like(starts), ends], axis=1).reshape(-1)
    spans = Spans(*(field[kept] for field in interleave(*columns)))
    cut = int(np.sum(np.diff(pieces.offsets) > room))
    num_rows = int(row[-1]) + 1 if len(row) else 0
    return assemble(pool, spans, num_rows), cut


def fill_in_order(
    sizes: np.ndarray, document: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row int64 [n], bool [n]: a separator stands before), at most `room` a row."""
    row, used, before = 0, 0, -1
    rows, separated = [], []
    for size, of in zip(sizes.tolist(), document.tolist(), strict=True):
        separator = int(used > 0 and of != before)
        if used + separator + size > room:
            row, used, separator = row + 1, 0, 0
        used, before = used + separator + size, of
        rows.append(row)
        separated.append(bool(separator))
    return np.array(rows, np.int64), np.array(separated, bool)


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text; joined they are the text.

    A sentence ends at the end of a line, and after . ! or ? (and closing quotes or
    brackets) before white space and a capital, a digit, or an opening quote or bracket. So
    "Dr. Who" is two sentences and "e.g. this" is one. Languages without white space between
    sentences are split at lines alone.
    """
    parts, begin = [], 0
    for end in SENTENCE_END.finditer(text):
        following = end.group(1)
        # A full stop at the end of a line ends one sentence, not two.
        is_end = following is None or _opens_sentence(following)
        if is_end and end.end() > begin:
            parts.append(text[begin : end.end()])
            begin = end.end()
    return [*parts, text[begin:]]


def _opens_sentence(character: str) -> bool:
    return character.isupper() or character.isdigit() or character in OPENING
