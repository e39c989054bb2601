"""Files of tokenizers that are unlike the published ones: a mark in front, few tokens."""

import numpy as np
import pytest
import tokenizers as rust
from support import tiny_text
from tokenizers import models as rust_models

from flax_adapt import data
from flax_adapt.base import errors

BOM = "\ufeff".encode()
MARKED = {
    "tokenizer.json": (tiny_text.bert_folder, ("tokenizer.json",)),
    "vocab.txt": (tiny_text.vocab_folder, ("vocab.txt",)),
    "vocab.json": (tiny_text.roberta_folder, ("vocab.json", "merges.txt")),
}


@pytest.mark.parametrize("kind", MARKED)
def test_a_mark_before_a_text_in_utf_8_is_no_part_of_it(tmp_path, kind):
    make, names = MARKED[kind]
    expected = data.open_tokenizer(make(tmp_path / "a"))
    marked = make(tmp_path / "b")
    for name in names:
        (marked / name).write_bytes(BOM + (marked / name).read_bytes())
    settings = marked / "tokenizer_config.json"
    settings.write_bytes(BOM + b'{"do_lower_case": true}')
    found = data.open_tokenizer(marked)
    assert found.rust.get_vocab() == expected.rust.get_vocab()
    text = [("the cat sat on the mat",)]
    assert np.array_equal(found.encode(text)[0].tokens, expected.encode(text)[0].tokens)


def test_a_line_of_merges_that_is_no_pair_is_one_line(tmp_path):
    folder = tiny_text.roberta_folder(tmp_path)
    file = folder / "merges.txt"
    file.write_text(file.read_text("utf-8") + "only\n", "utf-8")
    with pytest.raises(errors.UserError, match=r"merges\.txt: 'only' is no pair"):
        data.open_tokenizer(folder)


def words_without_unknown(folder, kind, words):
    """A tokenizer.json of whole words whose model has no unknown token."""
    folder.mkdir(exist_ok=True)
    vocabulary = {token: i for i, token in enumerate((*tiny_text.SPECIAL, *words))}
    model = {
        "WordLevel": lambda: rust_models.WordLevel(vocabulary),
        "BPE": lambda: rust_models.BPE(vocabulary, []),
    }[kind]()
    tokenizer = rust.Tokenizer(model)
    tokenizer.pre_tokenizer = rust.pre_tokenizers.Whitespace()
    ends = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = rust.processors.BertProcessing(*ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", ["WordLevel", "BPE"])
def test_a_tokenizer_without_unknown_token_and_without_an_a_is_read(tmp_path, kind):
    words = "xyz" if kind == "BPE" else ("cat", "dog")
    tokenizer = data.open_tokenizer(words_without_unknown(tmp_path, kind, words))
    (found,) = tokenizer.encode([(words[0], words[1])])
    assert found.tokens.tolist() == [2, 5, 3, 6, 3]
    assert found.token_types.tolist() == [0, 0, 0, 1, 1]


def test_a_text_that_a_tokenizer_has_no_tokens_for_is_one_line(tmp_path):
    folder = words_without_unknown(tmp_path, "WordLevel", ("cat",))
    with pytest.raises(errors.UserError, match=r"cannot encode a text: .*unk") as error:
        data.open_tokenizer(folder).encode([("a cow",)])
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_makes_no_token_of_anything_is_one_line(tmp_path):
    """Its words have spaces, at which texts are split before they are looked up."""
    folder = words_without_unknown(tmp_path, "WordLevel", ("cat dog",))
    with pytest.raises(errors.UserError, match="makes no token of") as error:
        data.open_tokenizer(folder)
    assert "\n" not in str(error.value)
