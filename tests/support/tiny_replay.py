"""Replay sections, examples of two domains, and what their batches hold, for tests."""

import itertools

import numpy as np
from ml_collections import ConfigDict
from support import tiny, tiny_text

from flax_adapt import data, defaults

NUM_STEPS = 4
# What there is of orders; 2 of the scheduled ones run both ways.
ORDERS = {
    "uniform": dict(sampling="uniform"),
    "stratified": dict(sampling="stratified"),
    "uniform, rising": dict(sampling="uniform", final_ratio=1.0, schedule="linear"),
    "stratified, falling": dict(
        sampling="stratified", final_ratio=0.1, schedule="cosine"
    ),
}


def replay(source, ratio=0.5, **changes):
    """A replay section of a data section; constant and uniform."""
    fields = dict(
        data=source,
        ratio=ratio,
        final_ratio=ratio,
        schedule="constant",
        sampling="uniform",
        buffer_size=0,
        seed=0,
    )
    return ConfigDict({**fields, **changes})


def few(count, **changes):
    """So many digits of each class."""
    subset = {**defaults.ALL, "per_class": count, "seed": 1}
    return tiny.digits(subset=subset, **changes)


def digits(ratio=0.5, source=None, num_steps=NUM_STEPS, **changes):
    """20 digits, and by default 10 of 200 others replayed."""
    section = ConfigDict(few(2))
    replayed = replay(source or few(20, num_threads=2), ratio, **changes)
    return data.open_replay(section, replayed, "", num_steps)


def corpus(root):
    """A corpus of 5 and of 3 texts, and in `model` a tokenizer; returns `root`."""
    tiny_text.bert_folder(root / "model")
    return tiny_text.corpus_folder(root)


def texts(root, ratio=0.6, layout="padded", seq_len=16, **changes):
    """The 5 texts of `corpus(root)`; by default the 3 others are replayed."""
    fields = dict(layout=layout, seq_len=seq_len)
    ours, theirs = (
        tiny_text.section(f"jsonl:{root}", root / "model", split=split, **fields)
        for split in ("train", "test")
    )
    return data.open_replay(ours, replay(theirs, ratio, **changes), "", NUM_STEPS)


def take(examples, count, batch_size=6, seed=0, process=0, processes=1):
    """The first training batches of a process."""
    made = data.make_batches(examples, batch_size, seed, process, processes)
    return list(itertools.islice(made, count))


def rows(batches, domain):
    """What the batches hold of a domain, in order."""
    return [int(i) for b in batches for i in b["index"][b["domain"] == domain]]


def counts(batches):
    """How many source rows each batch has."""
    return [int(np.sum(batch["domain"])) for batch in batches]


def leaves(batch):
    """name -> array; of text each of its fields."""
    text = batch["text"]._asdict() if "text" in batch else {}
    return {name: v for name, v in batch.items() if name != "text"} | text


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(map(leaves, ours), map(leaves, theirs), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
            assert value.dtype == other[name].dtype


def joined(parts):
    """Global batches of the lists of batches of all processes."""
    return [
        {
            name: np.concatenate([leaves(piece)[name] for piece in pieces])
            for name in leaves(pieces[0])
        }
        for pieces in zip(*parts, strict=True)
    ]
