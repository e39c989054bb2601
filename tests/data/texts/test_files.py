"""Texts in files as people have them: odd line ends, encodings, labels and other files."""

import pytest
from support import tiny_text
from support.tiny_replay import replay
from support.tiny_text import open_source, rows_of

from flax_adapt import data
from flax_adapt.base import errors


def write(path, contents):
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


def test_a_file_that_is_no_split_adds_no_class_and_is_named(tmp_path, caplog):
    for name, label in (("train", "a"), ("test", "b"), ("notes", "c"), ("fold1", "d")):
        tiny_text.jsonl(tmp_path / f"{name}.jsonl", [{"text": "x", "label": label}])
    assert open_source(f"jsonl:{tmp_path}").class_names == ("a", "b")
    told = "not a split, so not read: ['fold1.jsonl', 'notes.jsonl']"
    assert told in caplog.text
    # The split that is asked for is one whatever its name.
    fold = open_source(f"jsonl:{tmp_path}", split="fold1")
    assert fold.class_names == ("a", "b", "d")


def test_where_no_file_is_named_as_a_split_all_of_them_are(tmp_path):
    for name, label in (("fold1", "a"), ("fold2", "b")):
        tiny_text.jsonl(tmp_path / f"{name}.jsonl", [{"text": "x", "label": label}])
    for split in ("fold1", "fold2"):
        opened = open_source(f"jsonl:{tmp_path}", split=split)
        assert opened.class_names == ("a", "b")


TABLES = {
    "jsonl": '{"text": "a", "label": "%s"}\n{"text": "b", "label": "%s"}\n',
    "csv": "text,label\na,%s\nb,%s\n",
    "tsv": "text\tlabel\na\t%s\nb\t%s\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_spaces_around_a_label_are_no_part_of_it_and_an_empty_one_is_broken(
    tmp_path, kind
):
    file = write(tmp_path / f"x.{kind}", TABLES[kind] % (" cat ", "cat"))
    assert open_source(f"{kind}:{file}").class_names == ("cat",)
    file = write(tmp_path / f"y.{kind}", TABLES[kind] % ("cat", " "))
    opened = open_source(f"{kind}:{file}")
    assert (opened.class_names, len(opened)) == (("cat",), 1)
    assert list(opened.broken.values()) == ["the label is empty"]


@pytest.mark.parametrize("kind", [*TABLES, "text"])
@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_lines_end_in_cr_too_where_there_is_no_lf(tmp_path, kind, end):
    """As old Macs and some spreadsheets write."""
    lines = TABLES.get(kind, "a%.0s\nb%.0s\n") % ("x", "y")
    contents = b"\xef\xbb\xbf" + lines.replace("\n", end).encode()
    opened = open_source(
        f"{kind}:{write(tmp_path / f'x.{kind}', contents)}",
        label_field="" if kind == "text" else "label",
    )
    assert [item for item, _ in rows_of(opened)] == [("a",), ("b",)]
    first = 1 if kind in ("jsonl", "text") else 2
    assert [name.rpartition(":")[2] for name in opened.names] == [
        str(first),
        str(first + 1),
    ]


def test_a_cr_within_lines_that_end_in_lf_is_no_end(tmp_path):
    file = write(tmp_path / "x.txt", b"one\rstill one\ntwo\n")
    opened = open_source(f"text:{file}", label_field="")
    assert [item for item, _ in rows_of(opened)] == [("one\rstill one",), ("two",)]


@pytest.mark.parametrize("kind", [*TABLES, "text"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_refused_by_name(tmp_path, kind, encoding):
    lines = TABLES.get(kind, "a%.0s\nb%.0s\n") % ("x", "y")
    file = write(tmp_path / f"x.{kind}", lines.encode(encoding))
    with pytest.raises(errors.UserError, match="is UTF-16 or UTF-32; save it as UTF-8"):
        open_source(f"{kind}:{file}", label_field="" if kind == "text" else "label")


@pytest.mark.parametrize("layout", ["padded", "packed", "full_sentences"])
@pytest.mark.parametrize("text", ["", " \u00a0\t"])
def test_texts_that_are_all_empty_are_refused(tmp_path, layout, text):
    """Trained on, they have no token to hide: a loss of 0."""
    model = tiny_text.bert_folder(tmp_path / "model")
    rows = [{"text": text, "label": label} for label in "abab"]
    file = tiny_text.jsonl(tmp_path / "x.jsonl", rows)
    section = tiny_text.section(f"jsonl:{file}", model, layout=layout)
    told = "has no token at all: its 4 texts are empty"
    with pytest.raises(errors.UserError, match=told):
        data.open_examples(section, "")
    target = good(tmp_path, model, layout)
    with pytest.raises(errors.UserError, match=f"^replay: .*{told}"):
        data.open_replay(target, replay(section), "", 4)


def good(root, model, layout):
    file = tiny_text.jsonl(root / "y.jsonl", [{"text": "the cat", "label": "a"}] * 8)
    return tiny_text.section(f"jsonl:{file}", model, layout=layout)
