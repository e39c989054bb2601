"""How texts become rows, with made-up tokens, none of which is twice in the corpus."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_adapt.data.texts import layouts
from flax_adapt.data.texts.token_rows import Pieces, Template, to_text

BERT = Template(before=(2,), between=(3,), after=(3,), second_type=1)
ROBERTA = Template(before=(0,), between=(2, 2), after=(2,), second_type=0)
SPECIAL = np.arange(10_000) < 5


def pieces_of(sizes) -> Pieces:
    """Texts of so many tokens, which are 5, 6, 7, ..."""
    offsets = np.cumsum([0, *sizes])
    tokens = np.arange(5, 5 + offsets[-1], dtype=np.int32)
    return Pieces(tokens, np.ones(len(tokens), bool), offsets)


def text_of(rows, length: int):
    every = np.arange(len(rows.lengths))
    return to_text(rows, every, length, pad_id=1, special=SPECIAL)


def content(tokens: np.ndarray) -> np.ndarray:
    return tokens[~SPECIAL[tokens]]


SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30)
LENGTHS = st.integers(8, 32)
TEMPLATES = st.sampled_from([BERT, ROBERTA])


@settings(deadline=None)
@given(SIZES, LENGTHS, TEMPLATES)
def test_packing_keeps_every_token_once_and_documents_whole(sizes, length, template):
    pieces = pieces_of(sizes)
    rows, split = layouts.pack_rows(pieces, template, length)
    text = text_of(rows, length)
    assert sorted(content(text.tokens_BL)) == pieces.tokens.tolist()
    assert rows.lengths.max() <= length
    room = length - 2
    assert split == sum(size > room for size in sizes)
    expected = []
    for begin, end in itertools.pairwise(pieces.offsets):
        starts = range(begin, max(end, begin + 1), room)
        expected += [pieces.tokens[i : min(i + room, end)].tolist() for i in starts]
    found = []
    for row in range(len(text.tokens_BL)):
        segments = text.segments_BL[row]
        for segment in range(1, segments.max() + 1):
            tokens = text.tokens_BL[row][segments == segment].tolist()
            assert (tokens[0], tokens[-1]) == (template.before[0], template.after[0])
            found.append(tokens[1:-1])
            positions = text.positions_BL[row][segments == segment]
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
        # Documents lie one after the other, then padding.
        real = segments[segments > 0]
        assert np.all(np.diff(real) >= 0)
        assert np.all(segments[len(real) :] == 0)
    assert sorted(found) == sorted(expected)
    # Rows are in the order of their first documents.
    firsts = [row[~SPECIAL[row]].min(initial=10**6) for row in text.tokens_BL]
    assert all(size > 0 for size in sizes) <= (sorted(firsts) == firsts)


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 80))
def test_bins_hold_at_most_what_fits_and_no_two_could_be_one(sizes, capacity):
    bins = layouts.best_fit(np.array(sizes), capacity)
    filled = np.bincount(bins, sizes)
    assert filled.max() <= capacity
    assert np.all(filled > 0)
    # The last opened was opened because nothing else had room for its first item.
    assert len(filled) == 1 or sum(sorted(filled)[:2]) > capacity


@settings(deadline=None)
@given(SIZES, LENGTHS, TEMPLATES, st.data())
def test_full_sentences_keep_every_token_once_in_order(sizes, length, template, draw):
    jumps = draw.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    document = np.cumsum(jumps)
    pieces = pieces_of(sizes)
    rows, cut = layouts.fill_full_sentences(pieces, document, template, length)
    text, room = text_of(rows, length), length - 2
    assert content(text.tokens_BL).tolist() == pieces.tokens.tolist()
    assert cut == sum(size > room for size in sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    seen = []
    for tokens, segments in zip(text.tokens_BL, text.segments_BL, strict=True):
        assert set(segments) <= {0, 1}
        inside = tokens[segments == 1]
        assert (inside[0], inside[-1]) == (template.before[0], template.after[0])
        sentences = owner[content(inside) - 5]
        # One separator wherever the document changes, and nowhere else.
        changes = np.flatnonzero(np.diff(document[sentences])) + 1
        separators = np.flatnonzero(SPECIAL[inside[1:-1]]) - np.arange(len(changes))
        np.testing.assert_array_equal(separators, changes)
        seen.append((len(inside), set(sentences.tolist()), document[sentences[-1]]))
    for (used, here, last), (_, there, _) in itertools.pairwise(seen):
        # Only a sentence longer than a row is in two; and the next would not have fitted.
        assert all(sizes[i] > room for i in here & there)
        following = min(there)
        separator = document[following] != last
        assert (
            following in here or used + separator + min(sizes[following], room) > length
        )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=9),
    LENGTHS,
    TEMPLATES,
)
def test_pairs_are_cut_the_longer_first(sizes, length, template):
    pieces = pieces_of([size for pair in sizes for size in pair])
    rows, cut = layouts.pad_rows(pieces, template, 2, length)
    room = length - template.size(2)
    kept, at = [], 0
    for first, second in sizes:
        short = [first, second]
        while sum(short) > room:  # the second where both are as long
            short[0 if short[0] > short[1] else 1] -= 1
        a = list(range(at + 5, at + 5 + short[0]))
        b = list(range(at + first + 5, at + first + 5 + short[1]))
        kept.append([*template.before, *a, *template.between, *b, *template.after])
        at += first + second
    text = text_of(rows, length)
    for row, tokens in enumerate(kept):
        np.testing.assert_array_equal(text.tokens_BL[row][: len(tokens)], tokens)
        np.testing.assert_array_equal(text.tokens_BL[row][len(tokens) :], 1)
    assert cut == sum(first + second > room for first, second in sizes)


def test_a_pair_by_hand():
    rows, _ = layouts.pad_rows(pieces_of([2, 1]), BERT, 2, 8)
    text = text_of(rows, 8)
    assert text.tokens_BL.tolist() == [[2, 5, 6, 3, 7, 3, 1, 1]]
    assert text.token_types_BL.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    assert text.segments_BL.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert text.positions_BL.tolist() == [[0, 1, 2, 3, 4, 5, 0, 0]]
    assert text.words_BL.tolist() == [[-1, 0, 1, -1, 2, -1, -1, -1]]


def test_packed_rows_by_hand():
    rows, _ = layouts.pack_rows(pieces_of([3, 1]), ROBERTA, 9)
    text = text_of(rows, 9)
    assert text.tokens_BL.tolist() == [[0, 5, 6, 7, 2, 0, 8, 2, 1]]
    assert text.token_types_BL.tolist() == [[0] * 9]
    assert text.segments_BL.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0]]
    assert text.positions_BL.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0]]
    assert text.words_BL.tolist() == [[-1, 0, 1, 2, -1, -1, 3, -1, -1]]


def test_a_word_cut_by_the_end_of_a_row_is_a_word_in_both():
    pieces = pieces_of([8])._replace(starts=np.arange(8) == 0)
    text = text_of(layouts.pack_rows(pieces, BERT, 8)[0], 8)
    assert text.words_BL.tolist() == [
        [-1, 0, 0, 0, 0, 0, 0, -1],
        [-1, 0, 0, -1, -1, -1, -1, -1],
    ]


@given(st.text(st.sampled_from("ab A1.!?\n\t\"'()é中"), max_size=40))
def test_sentences_joined_are_the_text(text):
    assert "".join(layouts.split_sentences(text)) == text


@pytest.mark.parametrize(
    "sentences",
    [
        ["One ends.", " Two? ", 'Says "three!"', " (Four) 5.", " 6 is", "\nseven"],
        ["No end e.g. here, at 3.5 or a.b"],
        ["Wait...", " What?!", " 'Yes.'", " “Ja.”", "\n\nEnd."],
    ],
)
def test_sentences_end_where_it_is_said(sentences):
    found = layouts.split_sentences("".join(sentences))
    assert [part.strip() for part in found] == [part.strip() for part in sentences]
