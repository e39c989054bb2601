"""Batches of texts: lengths, processes, what is cut, broken and counted."""

import itertools
import logging

import numpy as np
import pytest
from support import tiny_text

from flax_adapt import data
from flax_adapt.base import errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus and, in `model`, its tokenizer."""
    root = tmp_path_factory.mktemp("texts")
    tiny_text.bert_folder(root / "model")
    return tiny_text.corpus_folder(root)


@pytest.fixture
def open_texts(folder):
    def opened(**changes):
        door = f"jsonl:{folder}"
        section = tiny_text.section(door, folder / "model", **changes)
        return data.open_examples(section, "")

    return opened


def take(iterator, count: int) -> list[dict]:
    return list(itertools.islice(iterator, count))


def whole(examples) -> dict:
    """All rows as one batch."""
    (batch,) = data.eval_batches(examples, len(examples), 0, 1)
    return batch


def test_a_batch_is_what_the_loop_expects(open_texts):
    examples = open_texts()
    batch = next(data.make_batches(examples, 4, 0, 0, 1))
    assert set(batch) == {"text", "label", "index", "position", "weight"}
    shapes = {(field.dtype.name, field.shape) for field in batch["text"]}
    assert len(shapes) == 1
    assert shapes <= {("int32", (4, length)) for length in (8, 12, 16)}
    assert batch["weight"].dtype == np.float32
    for row, i in enumerate(batch["index"]):
        text, label = tiny_text.CORPUS[i]
        assert examples.class_names[batch["label"][row]] == label
        assert examples.names[i] == f"train.jsonl:{i + 1}"
        (alone,) = examples.tokenizer.encode([(text,)])
        kept = alone.tokens[:15].tolist()[: len(alone.tokens) - 1]
        tokens, segments = batch["text"].tokens_BL[row], batch["text"].segments_BL[row]
        inside = tokens[segments == 1].tolist()
        assert inside == [*kept, examples.tokenizer.sep_id]
        assert np.all(tokens[segments == 0] == examples.tokenizer.pad_id)


@pytest.mark.parametrize("layout", ["padded", "packed", "full_sentences"])
@pytest.mark.parametrize("make", [data.make_batches, data.eval_batches])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_see_together_what_one_sees(open_texts, layout, make, processes):
    """The length too, though the longest row is in one of them only."""
    seed = (5,) if make is data.make_batches else ()
    examples = open_texts(layout=layout)
    expected = take(make(examples, 4, *seed, 0, 1), 6)
    parts = [take(make(examples, 4, *seed, p, processes), 6) for p in range(processes)]
    for one, *pieces in zip(expected, *parts, strict=True):
        for name in ("label", "index", "position", "weight"):
            joined = np.concatenate([piece[name] for piece in pieces])
            np.testing.assert_array_equal(joined, one[name])
        for i, field in enumerate(one["text"]):
            joined = np.concatenate([piece["text"][i] for piece in pieces])
            np.testing.assert_array_equal(joined, field)


@pytest.mark.parametrize("buckets", [(), (8, 12), (4, 9, 99)])
def test_a_batch_is_as_long_as_the_least_bucket_that_fits(open_texts, buckets):
    examples = open_texts(buckets=buckets)
    allowed = sorted({*(b for b in buckets if b < 16), 16})
    lengths = set()
    for batch in data.eval_batches(examples, 1, 0, 1):
        row = batch["text"]
        longest = int(np.sum(row.segments_BL > 0))
        length = row.tokens_BL.shape[1]
        assert length == next(b for b in allowed if b >= longest)
        lengths.add(length)
    assert len(lengths) == min(2, len(allowed))


def test_rows_of_padding_do_not_make_a_batch_longer(folder):
    texts = [{"text": "cat"}, {"text": "cat " * 14}]
    file = tiny_text.jsonl(folder / "two" / "x.jsonl", texts)
    section = tiny_text.section(f"jsonl:{file}", folder / "model", label_field="")
    examples = data.open_examples(section, "")
    for index, length in (((0, -1), 8), ((0, 1), 16), ((-1, -1), 8)):
        batch = examples.batch(np.array(index), np.arange(2))
        assert batch["text"].tokens_BL.shape == (2, length)


@pytest.mark.parametrize("layout", ["packed", "full_sentences"])
def test_other_layouts_have_one_length_and_no_labels(open_texts, layout):
    examples = open_texts(layout=layout)
    batch = whole(examples)
    assert batch["text"].tokens_BL.shape == (len(examples), 16)
    assert (examples.class_names, set(batch["label"].tolist())) == ((), {-1})
    assert len(examples.names) == len(examples) == len(examples.labels)


@pytest.mark.parametrize("layout", ["padded", "packed", "full_sentences"])
def test_padding_rows_are_empty_and_weigh_nothing(open_texts, layout):
    examples = open_texts(layout=layout)
    last = list(data.eval_batches(examples, len(examples) + 3, 0, 1))[-1]
    np.testing.assert_array_equal(last["index"][-3:], -1)
    np.testing.assert_array_equal(last["weight"][-3:], 0)
    np.testing.assert_array_equal(last["weight"][:-3], 1)
    np.testing.assert_array_equal(last["label"][-3:], -1)
    pad = examples.tokenizer.pad_id
    for field, blank in zip(last["text"], (pad, 0, 0, 0, -1), strict=True):
        np.testing.assert_array_equal(field[-3:], blank)


@pytest.mark.parametrize("make", [tiny_text.bert_folder, tiny_text.roberta_folder])
def test_full_sentences_are_tokenised_as_their_texts_are(tmp_path, make):
    """Byte-level tokens depend on the white space before them."""
    rows = [{"text": "The cat.  A dog? \n\n Rain (and wind)."}, {"text": "The dog\n1"}]
    section = tiny_text.section(
        f"jsonl:{tiny_text.jsonl(tmp_path / 'x.jsonl', rows)}",
        make(tmp_path / "model"),
        label_field="",
        layout="full_sentences",
    )
    examples = data.open_examples(section, "")
    special = examples.tokenizer.special
    tokens = whole(examples)["text"].tokens_BL
    encodings = examples.tokenizer.encode([(row["text"],) for row in rows])
    expected = np.concatenate([encoding.tokens for encoding in encodings])
    found = tokens[~special[tokens]]
    np.testing.assert_array_equal(found, expected[~special[expected]])


def test_sentences_never_share_a_word(folder):
    file = tiny_text.jsonl(folder / "lines" / "x.jsonl", [{"text": "cats\ndog\ncat"}])
    section = tiny_text.section(f"jsonl:{file}", folder / "model", label_field="")
    section.layout = "full_sentences"
    words = whole(data.open_examples(section, ""))["text"].words_BL
    assert words[0, :7].tolist() == [-1, 0, 0, 1, 2, -1, -1]


def test_what_is_cut_is_counted_and_logged(open_texts, caplog):
    caplog.set_level(logging.INFO)
    for layout, done in (("padded", "cut to"), ("packed", "split to fit in")):
        examples = open_texts(layout=layout, seq_len=10, buckets=())
        encodings = examples.tokenizer.encode([(t,) for t, _ in tiny_text.CORPUS[:5]])
        lengths = np.array([len(encoding.tokens) for encoding in encodings])
        assert 0 < examples.num_cut == np.sum(lengths > 10) < 5
        assert examples.num_tokens == np.sum(lengths - 2)
        assert (examples.num_texts, examples.fill <= 1) == (5, True)
        assert f"{examples.num_cut} were {done} seq_len=10" in caplog.text


def test_empty_texts_are_rows_of_special_tokens(folder):
    file = tiny_text.jsonl(folder / "empty" / "x.jsonl", [{"text": ""}, {"text": "a"}])
    section = tiny_text.section(f"jsonl:{file}", folder / "model", label_field="")
    batch = whole(data.open_examples(section, ""))
    assert batch["text"].tokens_BL[0, :3].tolist() == [2, 3, 0]
    assert batch["weight"].tolist() == [1, 1]


def test_labels_that_are_numbers_come_as_floats(folder):
    rows = [{"text": "a", "label": i / 2} for i in range(3)]
    file = tiny_text.jsonl(folder / "numbers" / "x.jsonl", rows)
    section = tiny_text.section(f"jsonl:{file}", folder / "model", label_kind="number")
    (batch,) = data.eval_batches(data.open_examples(section, ""), 4, 0, 1)
    assert batch["label"].dtype == np.float32
    assert batch["label"].tolist() == [0, 0.5, 1, -1]


def test_set_state_continues_exactly(open_texts):
    examples = open_texts(layout="packed")
    iterator = data.make_batches(examples, 2, 0, 0, 1)
    take(iterator, 5)
    state, following = iterator.get_state(), take(iterator, 4)
    again = data.make_batches(examples, 2, 0, 0, 1)
    again.set_state(state)
    for one, other in zip(take(again, 4), following, strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_array_equal(one["text"], other["text"])


def test_a_subset_is_of_texts_before_they_are_packed(open_texts):
    half = dict(per_class=0, fraction=0.5, seed=0)
    chosen, rest = (
        open_texts(layout="packed", subset={**half, "part": part})
        for part in ("chosen", "rest")
    )
    assert (chosen.num_texts, rest.num_texts) == (3, 2)
    assert chosen.num_tokens + rest.num_tokens == open_texts().num_tokens


def test_broken_rows_are_logged_by_line_up_to_a_limit(folder, tmp_path, caplog):
    rows = [{"text": "a", "label": "x"}] * 8
    file = tiny_text.jsonl(tmp_path / "x.jsonl", [*rows, {"text": "b"}, {}])
    log = tmp_path / "bad.log"
    section = tiny_text.section(f"jsonl:{file}", folder / "model", max_bad_fraction=0.2)
    examples = data.open_examples(section, str(log))
    assert (len(examples), examples.bad_files.names) == (8, ("x.jsonl:9", "x.jsonl:10"))
    lines = [line.split("\t")[0] for line in log.read_text().splitlines()]
    assert lines == ["x.jsonl:9", "x.jsonl:10"]
    section.max_bad_fraction = 0.1
    told = r"2 of 10 .*max_bad_fraction=0\.1 allows 1: x\.jsonl:9, .*no field 'label'"
    with pytest.raises(errors.UserError, match=told):
        data.open_examples(section, "")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seq_len": 7}, r"data\.seq_len must be at least 8"),
        ({"buckets": (12, 8)}, r"data\.buckets must be increasing"),
        ({"buckets": (0, 8)}, r"data\.buckets must be increasing"),
        ({"text_fields": ()}, r"data\.text_fields must be one name or two"),
        ({"layout": "ragged"}, r"data\.layout='ragged'.*'full_sentences'"),
        ({"label_kind": "rank"}, r"data\.label_kind='rank'.*\['class', 'number'\]"),
        ({"max_bad_fraction": 2.0}, r"data\.max_bad_fraction"),
        ({"prefetch_batches": -1}, r"data\.prefetch_batches"),
        ({"modality": "sound"}, r"data\.modality='sound'"),
        ({"layout": "packed", "text_fields": ("text", "label")}, r"'padded' for pairs"),
    ],
)
def test_wrong_settings_are_named(open_texts, changes, told):
    with pytest.raises(errors.UserError, match=told):
        open_texts(**changes)


@pytest.mark.shared_data
def test_real_texts_fill_their_rows(shared_data, folder):
    door = f"jsonl:{shared_data / 'text' / 'citation_intent'}"
    filled = {}
    for layout in ("padded", "packed", "full_sentences"):
        section = tiny_text.section(
            door, folder / "model", layout=layout, seq_len=256, buckets=(64, 128)
        )
        examples = data.open_examples(section, "")
        assert examples.num_texts == 1688
        filled[layout] = examples.fill
    assert filled["packed"] > 0.95 > filled["full_sentences"] > 0.7
