"""Tokenizers from all three kinds of files: the tokens, types and words they give."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support import tiny_text

from flax_adapt import data
from flax_adapt.base import errors

# Odd texts and their tokens by transformers 5.23: BertTokenizer and RobertaTokenizer
# (with its mask token declared as roberta-base's is, lstrip=True) from the same files.
# fmt: off
GOLDEN = (
    (('The cats  sat,\ton the\nmat.',),
     [2, 65, 66, 82, 68, 57, 77, 65, 70, 56, 3],
     [0, 55, 75, 72, 265, 86, 224, 276, 68, 87, 15, 201, 82, 81, 262, 202, 80, 68, 87, 17, 2]),
    (('\xc9t\xe9 caf\xe9 ete',),
     [2, 85, 7, 31, 36, 35, 85, 3],
     [0, 131, 235, 87, 131, 106, 224, 263, 73, 131, 106, 224, 72, 87, 72, 2]),
    (('\u4e2d\u6587 and rain\u4e2d',),
     [2, 86, 1, 71, 72, 86, 3],
     [0, 164, 120, 259, 166, 248, 233, 271, 275, 164, 120, 259, 2]),
    (('the \U0001f642 dog',),
     [2, 65, 1, 67, 3],
     [0, 261, 224, 176, 257, 251, 228, 268, 2]),
    (('   unseen    ',),
     [2, 80, 81, 3],
     [0, 224, 224, 224, 88, 81, 86, 72, 72, 81, 224, 224, 224, 224, 2]),
    (('',),
     [2, 3],
     [0, 2]),
    (('a [MASK] cat <mask> sat [SEP] </s> dog',),
     [2, 5, 4, 66, 1, 17, 31, 82, 41, 1, 68, 3, 1, 1, 23, 1, 67, 3],
     [0, 68, 224, 62, 48, 36, 54, 46, 64, 265, 279, 276, 68, 87, 224, 62, 54, 40, 51, 64,
      224, 2, 268, 2]),
    (('the cat', 'the dog ran?'),
     [2, 65, 66, 3, 65, 67, 69, 59, 3],
     [0, 261, 265, 2, 2, 261, 268, 224, 85, 269, 34, 2]),
    (("unable's (re-sat)!", '\u4e2d\u6587'),
     [2, 80, 83, 61, 23, 62, 22, 35, 64, 68, 63, 58, 3, 86, 1, 3],
     [0, 88, 81, 68, 69, 79, 72, 10, 86, 224, 11, 85, 72, 16, 86, 68, 87, 12, 4, 2, 2,
      164, 120, 259, 166, 248, 233, 2]),
    (('the\x00\u200bcat\xa0sat\u2028on',),
     [2, 65, 33, 31, 49, 68, 77, 3],
     [0, 261, 192, 162, 226, 237, 264, 130, 258, 86, 68, 87, 162, 226, 105, 82, 81, 2]),
    (('\u0130stanbul \ufb01sh Stra\xdfe', '\xb2\xbd'),
     [2, 78, 49, 31, 44, 32, 50, 42, 1, 1, 3, 1, 3],
     [0, 132, 112, 86, 87, 269, 69, 88, 79, 224, 175, 109, 227, 86, 75, 224, 54, 87, 272,
      131, 257, 72, 2, 2, 130, 114, 130, 125, 2]),
)
# fmt: on
PARALLELISM = "TOKENIZERS_PARALLELISM"
MAKERS = {
    "tokenizer.json": tiny_text.bert_folder,
    "vocab.txt": tiny_text.vocab_folder,
    "merges.txt": tiny_text.roberta_folder,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request, tmp_path_factory):
    folder = MAKERS[request.param](tmp_path_factory.mktemp("model"))
    return data.open_tokenizer(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tiny_text.bert_folder(tmp_path_factory.mktemp("bert"))
    return data.open_tokenizer(folder)


def is_bert(tokenizer) -> bool:
    return tokenizer.token(tokenizer.cls_id) == "[CLS]"


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: ascii(row[0])[:20])
def test_tokens_are_those_of_the_reference(tokenizer, row):
    texts, bert, roberta = row
    (encoding,) = tokenizer.encode([texts])
    assert encoding.tokens.tolist() == (bert if is_bert(tokenizer) else roberta)


def test_nothing_is_cut_or_padded_whatever_the_file_says(bert):
    long, short = bert.encode([("cat " * 50,), ("cat",)])
    assert (len(long.tokens), len(short.tokens)) == (52, 3)


def test_special_ids_are_found(tokenizer):
    tokens = (
        tiny_text.SPECIAL
        if is_bert(tokenizer)
        else ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
    )
    names = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
    assert tuple(tokenizer.token(getattr(tokenizer, name)) for name in names) == tokens
    assert sorted(np.flatnonzero(tokenizer.special)) == sorted(
        getattr(tokenizer, name) for name in names
    )


def test_token_and_decode_undo_encode(tokenizer):
    (encoding,) = tokenizer.encode([("the dog and the cat",)])
    assert tokenizer.decode(encoding.tokens) == "the dog and the cat"
    assert encoding.tokens.max() < tokenizer.vocab_size == len(tokenizer.special)


def test_types_tell_the_second_text_where_the_model_has_them(tokenizer):
    single, pair = (
        tokenizer.encode([texts])[0] for texts in (("the cat",), ("the cat", "dog"))
    )
    np.testing.assert_array_equal(single.token_types, 0)
    second = [0, 0, 0, 0, 1, 1] if is_bert(tokenizer) else [0] * 7
    np.testing.assert_array_equal(pair.token_types, second)


def test_a_word_is_shared_by_its_pieces_and_counts_on_over_a_pair(tokenizer):
    (encoding,) = tokenizer.encode([("the unseen cats", "cats")])
    tokens = [tokenizer.token(i).strip("#Ġ") for i in encoding.tokens]
    words = encoding.words.tolist()
    joined = {}
    for token, word in zip(tokens, words, strict=True):
        joined[word] = joined.get(word, "") + token
    del joined[-1]
    assert joined == {0: "the", 1: "unseen", 2: "cats", 3: "cats"}


def test_special_tokens_never_have_a_word_even_when_spelt_out(tokenizer):
    mask, sep = (tokenizer.token(i) for i in (tokenizer.mask_id, tokenizer.sep_id))
    (encoding,) = tokenizer.encode([(f"the {mask} cat {sep} 文",)])
    special = tokenizer.special[encoding.tokens]
    assert np.sum(encoding.tokens == tokenizer.mask_id) == 1
    np.testing.assert_array_equal(encoding.words == -1, special)
    # Numbered without gaps.
    words = encoding.words[~special]
    np.testing.assert_array_equal(np.unique(words), np.arange(words.max() + 1))


@pytest.mark.parametrize(("flagged", "words"), [(True, [-1, 0, -1, 1, -1]),
    (False, [-1, 0, 1, 2, -1])])  # fmt: skip
def test_more_special_tokens_have_no_word_either(tmp_path, flagged, words):
    folder = tiny_text.bert_folder(tmp_path)
    contents = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    size = len(tiny_text.VOCABULARY)
    more = {**contents["added_tokens"][0], "id": size, "content": "[DOC]"}
    contents["added_tokens"].append({**more, "special": flagged})
    (folder / "tokenizer.json").write_text(json.dumps(contents), "utf-8")
    (encoding,) = data.open_tokenizer(folder).encode([("the [DOC] cat",)])
    assert encoding.tokens[2] == size
    assert encoding.words.tolist() == words


def test_special_tokens_need_not_be_flagged_as_such(tmp_path):
    folder = tiny_text.bert_folder(tmp_path)
    contents = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for token in contents["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(contents), "utf-8")
    (encoding,) = data.open_tokenizer(folder).encode([("[MASK] 文",)])
    assert encoding.words.tolist() == [-1, -1, -1, -1]


def test_many_texts_are_as_each_alone(tokenizer):
    """More than one thread's share, and empty ones among them."""
    texts = [("the cat " * (i % 3) + "dog" * (i % 2),) for i in range(2500)]
    first = {text: tokenizer.encode([text])[0] for text in set(texts)}
    for text, many in zip(texts, tokenizer.encode(texts), strict=True):
        for ours, alone in zip(many, first[text], strict=True):
            np.testing.assert_array_equal(ours, alone)


def test_no_text_gives_no_encoding(tokenizer):
    assert tokenizer.encode([]) == []


def test_texts_and_pairs_are_not_mixed(bert):
    with pytest.raises(ValueError, match="not both"):
        bert.encode([("a",), ("b", "c"), ("d",)])


@pytest.mark.parametrize(
    ("settings", "extra", "lowered"),
    [
        ({}, (), True),
        ({}, ("Cat",), False),
        ({"do_lower_case": False}, (), False),
        ({"do_lower_case": True}, ("Cat",), True),
    ],
)
def test_case_is_kept_where_settings_or_the_vocabulary_say_so(
    tmp_path, settings, extra, lowered
):
    folder = tiny_text.vocab_folder(tmp_path, (*tiny_text.VOCABULARY, *extra))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    opened = data.open_tokenizer(folder)
    (encoding,) = opened.encode([("The",)])
    assert (opened.token(encoding.tokens[1]) == "the") == lowered


def test_special_tokens_may_have_other_names(tmp_path):
    names = {"[CLS]": "<cls>", "[MASK]": "<blank>"}
    tokens = [names.get(token, token) for token in tiny_text.VOCABULARY]
    folder = tiny_text.vocab_folder(tmp_path, tokens)
    with pytest.raises(errors.UserError, match=r"has no cls token .*\[CLS\], <s>"):
        data.open_tokenizer(folder)
    declared = {"cls_token": "<cls>", "mask_token": {"content": "<blank>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(declared))
    opened = data.open_tokenizer(folder)
    assert (opened.cls_id, opened.mask_id) == (2, 4)
    assert opened.encode([("a <blank>",)])[0].tokens.tolist()[-2:] == [4, 3]


def test_added_tokens_follow_the_vocabulary(tmp_path):
    folder, size = tiny_text.vocab_folder(tmp_path), len(tiny_text.VOCABULARY)
    (folder / "added_tokens.json").write_text(json.dumps({"covid": size}))
    opened = data.open_tokenizer(folder)
    assert opened.encode([("the covid",)])[0].tokens[2] == size
    assert opened.vocab_size == size + 1
    (folder / "added_tokens.json").write_text(json.dumps({"covid": size + 3}))
    with pytest.raises(errors.UserError, match=r"added_tokens\.json do not follow"):
        data.open_tokenizer(folder)


def test_a_folder_without_a_tokenizer_says_what_it_needs(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    told = r"tokenizer\.json or vocab\.txt or .*there is \['config\.json'\]"
    with pytest.raises(errors.UserError, match=told):
        data.open_tokenizer(tmp_path)
    with pytest.raises(errors.UserError, match="there is no folder"):
        data.open_tokenizer(tmp_path / "gone")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(errors.UserError, match=r"cannot read tokenizer\.json"):
        data.open_tokenizer(tmp_path)


def test_a_tokenizer_that_adds_no_special_tokens_is_refused(tmp_path):
    folder = tiny_text.bert_folder(tmp_path)
    contents = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    contents["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(contents), "utf-8")
    with pytest.raises(errors.UserError, match="CLS A SEP B SEP"):
        data.open_tokenizer(folder)


def test_files_to_copy_are_those_that_exist(tmp_path):
    folder = tiny_text.roberta_folder(tmp_path)
    (folder / "config.json").write_text("{}")
    assert data.open_tokenizer(folder).files == (
        folder / "vocab.json",
        folder / "merges.txt",
    )


FORK = """
import os, sys
from flax_adapt import data

tokenizer = data.open_tokenizer(sys.argv[1])
before = tokenizer.encode([("the cat",)] * 3000)
child = os.fork()
if child == 0:
    after = tokenizer.encode([("the cat",)] * 10)
    os._exit(0 if len(after) == 10 else 1)
print(os.waitpid(child, 0)[1])
"""


def test_a_fork_neither_hangs_nor_warns(tmp_path):
    folder = tiny_text.bert_folder(tmp_path)
    kept = {k: v for k, v in os.environ.items() if k != PARALLELISM}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(folder)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize(("own", "then"), [(None, "false"), ("true", "true")])
def test_the_users_setting_of_threads_stays(tmp_path, monkeypatch, own, then):
    # Set first, so that whatever is set here ends with this test.
    monkeypatch.setenv(PARALLELISM, own or "")
    if own is None:
        monkeypatch.delenv(PARALLELISM)
    data.open_tokenizer(tiny_text.bert_folder(tmp_path))
    assert os.environ[PARALLELISM] == then
