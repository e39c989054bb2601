"""Replay of texts: lengths over both domains, documents counted, labels, resume."""

import numpy as np
import pytest
from support import tiny_replay, tiny_text
from support.tiny_replay import replay, texts

from flax_adapt import data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_replay.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_four_processes_see_together_the_texts_that_one_sees(corpus, layout, sampling):
    """The length too, though the longest row is in one of them only."""
    examples = texts(corpus, layout=layout, sampling=sampling)
    whole = tiny_replay.take(examples, 12, 4)
    parts = [tiny_replay.take(examples, 12, 4, 0, p, 4) for p in range(4)]
    tiny_replay.assert_same(
        tiny_replay.joined(parts), [tiny_replay.leaves(batch) for batch in whole]
    )


def test_a_batch_of_texts_is_as_long_as_the_longest_of_both_domains_needs(tmp_path):
    model = tiny_text.bert_folder(tmp_path / "model")
    sizes = dict(short=3, long=14)
    sections = {
        name: tiny_text.section(
            f"jsonl:{tiny_text.jsonl(tmp_path / name, [{'text': 'cat ' * words}])}",
            model,
            label_field="",
        )
        for name, words in sizes.items()
    }
    for ours, theirs in (("short", "long"), ("long", "short")):
        replayed = replay(sections[theirs], 1.0)
        examples = data.open_replay(sections[ours], replayed, "", 4)
        lengths = {}
        for index in ((0, -1), (1, -1), (0, 1)):
            # The first row alone, as a process of two reads it.
            batch = examples.batch(np.array(index), np.array([0]))
            lengths[index] = batch["text"].tokens_BL.shape[1]
        own = {"short": 8, "long": 16}
        assert list(lengths.values()) == [own[ours], own[theirs], 16]


def test_rows_of_texts_are_those_of_their_own_domain(corpus):
    examples = texts(corpus, sampling="stratified")
    assert examples.same_classes
    for batch in tiny_replay.take(examples, 6, 4):
        for row, i in enumerate(batch["index"]):
            text, label = tiny_text.CORPUS[i]
            assert examples.class_names[batch["label"][row]] == label
            (alone,) = examples.target.tokenizer.encode([(text,)])
            size = min(len(alone.tokens), 16) - 1
            tokens = batch["text"].tokens_BL[row]
            np.testing.assert_array_equal(tokens[:size], alone.tokens[:size])
            assert batch["domain"][row] == (i >= 5)


def test_of_packed_texts_documents_are_drawn_and_counted(corpus):
    """There are fewer rows than documents; no row holds what was not drawn."""
    fields = dict(layout="packed", seq_len=40)
    whole = texts(corpus, **fields)
    assert len(whole.target) < whole.target.num_texts == 5
    assert whole.source.num_texts == 3  # 0.6 of 5
    examples = texts(corpus, ratio=0.4, **fields)
    record = examples.record()["names"]
    assert (examples.target.num_texts, examples.source.num_texts) == (5, 2)
    assert len(record) == 2
    assert set(record) < {"test.jsonl:1", "test.jsonl:2", "test.jsonl:3"}
    kept = [tiny_text.CORPUS[5 + int(name[-1]) - 1][0] for name in record]
    encodings = examples.target.tokenizer.encode([(text,) for text in kept])
    inner = np.concatenate([encoding.tokens[1:-1] for encoding in encodings])
    rows = np.arange(len(examples.target), len(examples))
    tokens = examples.batch(rows, np.arange(len(rows)))["text"].tokens_BL
    special = examples.target.tokenizer.special
    np.testing.assert_array_equal(tokens[~special[tokens]], inner)


def test_numbers_and_classes_do_not_mix(corpus, tmp_path):
    file = tiny_text.jsonl(tmp_path / "x.jsonl", [{"text": "a", "label": 0.5}] * 3)
    numbers = dict(label_kind="number")
    ours = tiny_text.section(f"jsonl:{file}", corpus / "model", **numbers)
    theirs = tiny_text.section(f"jsonl:{corpus}", corpus / "model")
    nothing = tiny_text.section(
        f"jsonl:{file}", corpus / "model", label_field="", **numbers
    )
    file = tiny_text.jsonl(tmp_path / "y.jsonl", [{"text": "a", "label": -1}] * 3)
    without = tiny_text.section(f"jsonl:{file}", corpus / "model")
    for section in (theirs, nothing, without):
        examples = data.open_replay(ours, replay(section, 1.0), "", 4)
        assert not examples.same_classes
        (batch,) = data.eval_batches(examples, 6, 0, 1)
        assert batch["label"].dtype == examples.labels.dtype == np.float32
        assert (
            batch["label"].tolist() == examples.labels.tolist() == [0.5] * 3 + [-1] * 3
        )


def test_set_state_continues_exactly_with_texts(corpus):
    changes = dict(sampling="stratified", final_ratio=0.4, schedule="cosine")
    iterator = data.make_batches(texts(corpus, **changes), 4, 0, 0, 1)
    for _ in range(3):
        next(iterator)
    state, following = iterator.get_state(), [next(iterator) for _ in range(4)]
    again = data.make_batches(texts(corpus, **changes), 4, 0, 0, 1)
    again.set_state(state)
    tiny_replay.assert_same([next(again) for _ in range(4)], following)
