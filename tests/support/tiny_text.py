"""A tiny corpus, tiny tokenizers written by hand, and the configs that read them."""

import json

from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as splits

from flax_adapt import defaults
from flax_adapt.data import source as sources

# (text, label): two topics, so that a model can tell them apart.
CORPUS = (
    ("the cat sat on the mat.", "animal"),
    ("A dog ran. The cat ran too!", "animal"),
    ("rain fell on the sea, and wind", "weather"),
    ("The wind is cold. Is the sea cold? It is.", "weather"),
    ("dogs and cats see the unseen mat", "animal"),
    ("cold rain, cold wind; cold sea", "weather"),
    ("the dog sat and the rain fell on the dog", "animal"),
    ("wind", "weather"),
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("the", "cat", "dog", "sat", "ran", "mat", "and", "rain", "wind", "sea", "cold",
    "fell", "on", "is", "see", "un", "##seen", "##s", "##able",
    "été", "ete", "中", "##文")  # fmt: skip
# 5 special tokens, letters alone and inside words, punctuation, words.
VOCABULARY = (
    *SPECIAL,
    *(prefix + letter for prefix in ("", "##") for letter in LETTERS if
      prefix + letter != "##s"),
    *".,!?;'()-",
    *WORDS,
)  # fmt: skip
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MERGES = ("t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat", "d o", "do g", "Ġ dog",
    "a n", "an d", "Ġ and", "r a", "i n", "ra in", "Ġ rain", "Ġ s", "Ġ c", "Ġ w")  # fmt: skip


def bert_folder(path):
    """A WordPiece tokenizer.json that also cuts and pads, as published ones do."""
    path.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = splits.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def vocab_folder(path, vocabulary=VOCABULARY):
    """The same WordPiece as vocab.txt alone."""
    path.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{token}\n" for token in vocabulary)
    (path / "vocab.txt").write_text(lines, "utf-8")
    return path


def roberta_folder(path):
    """Byte-level merges as vocab.json and merges.txt."""
    path.mkdir(parents=True, exist_ok=True)
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*ROBERTA_SPECIAL[:4], *sorted(splits.ByteLevel.alphabet()), *merged]
    tokens.append(ROBERTA_SPECIAL[4])
    ids = {token: i for i, token in enumerate(tokens)}
    (path / "vocab.json").write_text(json.dumps(ids), "utf-8")
    lines = "".join(f"{merge}\n" for merge in MERGES)
    (path / "merges.txt").write_text(f"#version: 0.2\n{lines}", "utf-8")
    return path


def jsonl(path, rows):
    """Writes a dict a line; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_text(lines, "utf-8")
    return path


def corpus_folder(path):
    """CORPUS as train.jsonl and test.jsonl; returns `path`."""
    rows = [{"text": text, "label": label} for text, label in CORPUS]
    jsonl(path / "train.jsonl", rows[:5])
    jsonl(path / "test.jsonl", rows[5:])
    return path


def section(source, tokenizer="", **changes):
    """A data section of texts, every field there."""
    fields = dict(
        modality="text",
        source=source,
        data_dir="",
        split="train",
        tokenizer=str(tokenizer),
        text_fields=("text",),
        label_field="label",
        label_kind="class",
        classes=(),
        layout="padded",
        seq_len=16,
        buckets=(8, 12),
        subset=defaults.ALL,
        prefetch_batches=2,
        max_bad_fraction=0.0,
    )
    return ConfigDict({**fields, **changes})


def open_source(door, **changes):
    """The source of a data section, before its subset."""
    return sources.open_source(section(door, **changes))


def rows_of(opened):
    """[(text or pair, class name or number)] of a source."""
    read = [opened.read(i) for i in range(len(opened))]
    names = opened.class_names
    return [(item, names[label] if names else label) for item, label in read]
