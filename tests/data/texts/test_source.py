"""Texts from every kind of source: what is read, what is broken, what is said."""

import numpy as np
import pytest
from support import tiny_text
from support.tiny_text import open_source, rows_of

from flax_adapt.base import errors


def write(path, contents: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = contents.encode() if isinstance(contents, str) else contents
    path.write_bytes(data)
    return path


def test_jsonl_reads_texts_labels_and_lines(tmp_path):
    lines = '\ufeff{"text": "a\u2028b", "label": "y"}\r\n\n{"label": "x", "text": ""}'
    opened = open_source(f"jsonl:{write(tmp_path / 'x.jsonl', lines)}")
    assert rows_of(opened) == [(("a\u2028b",), "y"), (("",), "x")]
    assert opened.class_names == ("x", "y")
    assert opened.labels.dtype == np.int32
    assert list(opened.names) == ["x.jsonl:1", "x.jsonl:3"]


def test_csv_quotes_as_the_rfc_says(tmp_path):
    lines = '\ufefftext,label\r\n"a, ""b""\nc",y\r\n\r\n,x\r\n'
    opened = open_source(f"csv:{write(tmp_path / 'x.csv', lines)}")
    assert rows_of(opened) == [(('a, "b"\nc',), "y"), (("",), "x")]
    # A row is named by the line where it begins.
    assert list(opened.names) == ["x.csv:2", "x.csv:5"]


def test_tsv_knows_no_quotes(tmp_path):
    lines = 'label\ttext\nx\t"a, "b\ny\tit\'s "c"\n'
    opened = open_source(f"tsv:{write(tmp_path / 'x.tsv', lines)}")
    assert rows_of(opened) == [(('"a, "b',), "x"), (('it\'s "c"',), "y")]


def test_csv_fields_may_be_long(tmp_path):
    file = write(tmp_path / "x.csv", "text,label\n" + "a" * 200_000 + ",x")
    assert len(open_source(f"csv:{file}").read(0)[0][0]) == 200_000


def test_pairs_are_two_fields_in_the_order_asked(tmp_path):
    file = tiny_text.jsonl(tmp_path / "x.jsonl", [{"a": "1", "b": "2"}])
    opened = open_source(f"jsonl:{file}", text_fields=("b", "a"), label_field="")
    assert rows_of(opened) == [(("2", "1"), -1)]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_number_labels_are_floats_without_classes(tmp_path, kind):
    contents = {
        "jsonl": '{"text": "a", "label": 2}\n{"text": "b", "label": -0.5}\n',
        "csv": "text,label\na,2\nb,-0.5\n",
    }
    file = write(tmp_path / f"x.{kind}", contents[kind])
    opened = open_source(f"{kind}:{file}", label_kind="number")
    assert (opened.labels.tolist(), opened.labels.dtype) == ([2, -0.5], np.float32)
    assert (opened.class_names, opened.read(1)) == ((), (("b",), -0.5))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([10, 9], ("9", "10")),
        (["b", "10", "9"], ("10", "9", "b")),
        ([True, False], ("false", "true")),
    ],
)
def test_classes_are_in_the_order_of_numbers_or_of_text(tmp_path, labels, names):
    rows = [{"text": "a", "label": label} for label in labels]
    opened = open_source(f"jsonl:{tiny_text.jsonl(tmp_path / 'x.jsonl', rows)}")
    assert opened.class_names == names
    assert [name for _, name in rows_of(opened)] == [str(x).lower() for x in labels]


def test_class_names_mean_the_same_in_every_split(tmp_path):
    for split, labels in {"train": "ca", "Test": "b", "train_more": "dd"}.items():
        rows = [{"text": "x", "label": label} for label in labels]
        tiny_text.jsonl(tmp_path / f"{split}.jsonl", rows)
    # GLUE's way to say that a test split has no labels, and a broken line elsewhere.
    tiny_text.jsonl(tmp_path / "hidden.jsonl", [{"text": "x", "label": -1}, {}])
    opened = {s: open_source(f"jsonl:{tmp_path}", split=s) for s in ("train", "test")}
    assert [o.class_names for o in opened.values()] == [("a", "b", "c", "d")] * 2
    assert [o.labels.tolist() for o in opened.values()] == [[2, 0], [1]]
    assert list(opened["test"].names) == ["Test.jsonl:1"]
    hidden = open_source(f"jsonl:{tmp_path}", split="hidden")
    assert (hidden.labels.tolist(), list(hidden.broken)) == ([-1], ["hidden.jsonl:2"])


def test_a_split_that_is_not_there_lists_those_that_are(tmp_path):
    folder = tiny_text.corpus_folder(tmp_path)
    with pytest.raises(errors.UserError, match=r"no dev\.jsonl .*\['test', 'train'\]"):
        open_source(f"jsonl:{folder}", split="dev")
    with pytest.raises(errors.UserError, match=r"no train\.csv .*no \.csv file"):
        open_source(f"csv:{folder}")
    with pytest.raises(errors.UserError, match=r"one file, .* part='rest'"):
        open_source(f"jsonl:{folder / 'train.jsonl'}", split="test")
    with pytest.raises(
        errors.UserError, match=r"no such file or folder; .*train\.jsonl"
    ):
        open_source(f"jsonl:{folder / 'trian.jsonl'}")


BROKEN = {
    "jsonl": (
        b'{"text": "good", "label": "x"}\n{"text": \n["text"]\n"text"\n{"text": "a"}\n'
        b'{"text": 3, "label": "x"}\n{"text": "\xff", "label": "x"}\n'
        b'{"text": "a", "label": ["x"]}\n{"text": "\\ud800", "label": "x"}\n',
        {2: "not JSON", 3: "not a JSON object", 4: "not a JSON object",
         5: "no field 'label'", 6: "'text' is no string but 3", 7: "not UTF-8",
         8: "label is no string", 9: "not UTF-8"},
    ),
    "csv": (
        b'text,label\ngood,x\na,b,c\n"a"b,x\n"\xff\n\xff",x\nalone\n',
        {3: "3 fields where the header has 2", 4: "expected after", 5: "not UTF-8",
         7: "1 fields where"},
    ),
    "tsv": (
        b"text\tlabel\ngood\tx\na\tb\tc\n\xff\tx\n",
        {3: "3 fields where the header has 2", 4: "not UTF-8"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_rows_are_left_out_and_named_by_line(tmp_path, kind):
    contents, reasons = BROKEN[kind]
    opened = open_source(f"{kind}:{write(tmp_path / f'x.{kind}', contents)}")
    assert rows_of(opened) == [(("good",), "x")]
    assert list(opened.broken) == [f"x.{kind}:{line}" for line in reasons]
    for found, told in zip(opened.broken.values(), reasons.values(), strict=True):
        assert told in found


def test_a_quote_that_never_closes_is_an_error_not_one_long_field(tmp_path):
    file = write(tmp_path / "x.csv", 'text,label\na,x\n"b,y\nc,x\nd,y\n')
    with pytest.raises(errors.UserError, match=r"x\.csv:3: a quote .* never closed"):
        open_source(f"csv:{file}")


@pytest.mark.parametrize("value", ["much", "nan", "inf", None, 10**400])
def test_number_labels_must_be_finite_numbers(tmp_path, value):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": value}]
    file = tiny_text.jsonl(tmp_path / "x.jsonl", rows)
    opened = open_source(f"jsonl:{file}", label_kind="number")
    assert (len(opened), list(opened.broken)) == (1, ["x.jsonl:2"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"text_fields": ("txt",)},
            r"data\.text_fields: .*'txt' .*\['label', 'text'\]",
        ),
        ({"text_fields": ("text", "b")}, r"data\.text_fields: .*'b' in any row"),
        ({"label_field": "gold"}, r"data\.label_field: .*'gold' .*\['label', 'text'\]"),
        (
            {"label_kind": "number"},
            r"no row that can be read; train\.jsonl:1: the label",
        ),
    ],
)
def test_a_field_that_no_row_has_is_named_at_once(tmp_path, changes, told):
    folder = tiny_text.corpus_folder(tmp_path)
    with pytest.raises(errors.UserError, match=told) as caught:
        open_source(f"jsonl:{folder}", **changes)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_an_error(tmp_path):
    for kind, contents in (("jsonl", "\n"), ("csv", "text,label\n"), ("tsv", "")):
        with pytest.raises(errors.UserError, match="has no text at all"):
            open_source(f"{kind}:{write(tmp_path / 'x', contents)}")


def test_text_files_have_a_document_a_line(tmp_path):
    file = write(
        tmp_path / "x.txt", b"\xef\xbb\xbfone\r\n\n \t\ntwo\x0cthree\n\xff\nfour"
    )
    opened = open_source(f"text:{file}", label_field="")
    assert [item for item, _ in rows_of(opened)] == [
        ("one",),
        ("two\fthree",),
        ("four",),
    ]
    assert list(opened.names) == ["x.txt:1", "x.txt:4", "x.txt:6"]
    assert opened.broken == {"x.txt:5": "not UTF-8"}
    assert opened.labels.tolist() == [-1, -1, -1]


def test_text_folders_have_a_document_a_file(tmp_path):
    for name, contents in (
        ("train/b.txt", "B\nb"),
        ("train/a/1.TXT", ""),
        ("test/c.txt", "c"),
    ):
        write(tmp_path / name, contents)
    write(tmp_path / "train/notes.md", "no")
    write(tmp_path / "train/bad.txt", b"\xff")
    opened = open_source(f"text:{tmp_path}", label_field="")
    assert list(opened.names) == ["train/a/1.TXT", "train/b.txt"]
    assert rows_of(opened) == [(("",), -1), (("B\nb",), -1)]
    assert opened.broken == {"train/bad.txt": "not UTF-8"}


def test_text_says_what_it_cannot_do(tmp_path):
    write(tmp_path / "train.txt", "one\ntwo")
    with pytest.raises(errors.UserError, match=r"label_field=''"):
        open_source(f"text:{tmp_path}")
    with pytest.raises(errors.UserError, match=r"named itself: text:.*train\.txt"):
        open_source(f"text:{tmp_path}", label_field="")


def test_unknown_doors_list_those_of_the_modality(tmp_path):
    told = r"modality 'text' are \['csv', 'hf', 'jsonl', 'parquet', 'text', 'tfds', 'tsv'\]"
    with pytest.raises(errors.UserError, match=told):
        open_source("jsonl")
    with pytest.raises(errors.UserError, match=r"'folder' is unknown.*'jsonl'"):
        open_source(f"folder:{tmp_path}")
    with pytest.raises(
        errors.UserError, match=r"modality='sound'.*\['image', 'text'\]"
    ):
        open_source("jsonl:x", modality="sound")


@pytest.mark.shared_data
def test_reads_real_texts(shared_data):
    door = f"jsonl:{shared_data / 'text' / 'citation_intent'}"
    opened = {s: open_source(door, split=s) for s in ("train", "dev", "test")}
    assert [len(o) for o in opened.values()] == [1688, 114, 139]
    assert len({o.class_names for o in opened.values()}) == 1
    assert len(opened["dev"].class_names) == 6
    assert all(np.bincount(o.labels, minlength=6).min() > 0 for o in opened.values())
