"""Words that a WordPiece tokenizer gets: spelt as it spells, each of them one token."""

import pytest
from support import tiny_text

from flax_adapt.base.errors import UserError
from flax_adapt.data.texts import new_tokens, tokenizer

WORDS = "Seacat\n\n cat \nunseen\nseacat\nwinds\n"


def grow(folder, tmp_path):
    used = tokenizer.open_tokenizer(folder)
    file = tmp_path / "words.txt"
    file.write_text(WORDS, "utf-8")
    new = new_tokens.split_words(used, new_tokens.read_words(file))
    (tmp_path / "grown").mkdir()
    new_tokens.write_tokenizer(used, new, tmp_path / "grown")
    return used, new, tokenizer.open_tokenizer(tmp_path / "grown")


@pytest.mark.parametrize("make", [tiny_text.bert_folder, tiny_text.vocab_folder])
def test_a_new_word_is_one_token_and_no_other_text_changes(tmp_path, make):
    used, new, grown = grow(make(tmp_path / "a"), tmp_path)
    assert new.words == ("seacat", "unseen", "winds")  # "cat" was there
    assert new.first == used.vocab_size == len(tiny_text.VOCABULARY)
    assert grown.vocab_size == used.vocab_size + 3
    old = [used.token(i) for i in new.pieces[1]]
    assert old == ["un", "##seen"]
    found = grown.encode([("The SEACAT winds.",)])[0].tokens
    assert [grown.token(i) for i in found] == [
        *("[CLS]", "the", "seacat", "winds", ".", "[SEP]"),
    ]
    text = [("the cat saw rain, wind and the sea",)]
    assert used.encode(text)[0].tokens.tolist() == grown.encode(text)[0].tokens.tolist()


@pytest.mark.parametrize(
    ("word", "text"),
    [("sea-cat", "'sea-cat' is 3 words to the tokenizer"), ("a b", "is 2 words")],
)
def test_a_word_that_is_several_is_refused_by_name(tmp_path, word, text):
    used = tokenizer.open_tokenizer(tiny_text.bert_folder(tmp_path / "a"))
    with pytest.raises(UserError, match=text):
        new_tokens.split_words(used, [word])


def test_a_tokenizer_that_is_no_word_piece_is_refused_by_name(tmp_path):
    used = tokenizer.open_tokenizer(tiny_text.roberta_folder(tmp_path / "a"))
    with pytest.raises(UserError, match="is a BPE; words are added to a WordPiece"):
        new_tokens.split_words(used, ["seacat"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"\n \n", "holds no word"),
        (b"\xff\xfe\xff", "not UTF-8"),
    ],
)
def test_a_file_without_words_is_one_line(tmp_path, content, text):
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=text):
        new_tokens.read_words(file)
