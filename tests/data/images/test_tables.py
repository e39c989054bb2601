"""Tables, Arrow files, sets of the Hub and tar shards hold the same examples as a folder."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
from ml_collections import ConfigDict
from PIL import Image
from pyarrow import parquet
from support import tiny

from flax_adapt import data
from flax_adapt.base import errors
from flax_adapt.data import source
from flax_adapt.data.images import shards

CLASSES = ("ant", "bee")
SPLITS = {"train": 3, "test": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SPLIT/CLASS/NUMBER.png; every image is of another shade."""
    root, shade = tmp_path_factory.mktemp("images"), 0
    for split, count in SPLITS.items():
        for label in CLASSES:
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                shade += 10
                pixels = np.full((8, 8), shade, np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


def rows_of(folder):
    """(path, class, split) of every image, in the order of the folder."""
    for split in SPLITS:
        for file in sorted((folder / split).rglob("*.png")):
            yield file, file.parent.name, split


def write_csv(folder, root, split_column=True):
    lines = ["file_name,label,split" if split_column else "file_name,label"]
    for file, label, split in rows_of(folder):
        shown = "TRAIN" if split == "train" else split
        lines.append(f"{file},{label}" + f",{shown}" * split_column)
    (root / "all.csv").write_text("\n".join(lines))
    return f"csv:{root / 'all.csv'}"


def write_jsonl_folder(folder, root):
    for split in SPLITS:
        rows = [
            json.dumps({"image": str(file), "label": CLASSES.index(label)})
            for file, label, at in rows_of(folder)
            if at == split
        ]
        (root / f"{split}.jsonl").write_text("\n".join(rows))
    return f"jsonl:{root}"


FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": list(CLASSES), "_type": "ClassLabel"},
}


def arrow_table(folder, split):
    """As `datasets` writes it: a struct of bytes and path, and class names in the schema."""
    rows = [(f, label) for f, label, at in rows_of(folder) if at == split]
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    fields = [pyarrow.field("image", image), pyarrow.field("label", pyarrow.int64())]
    noted = json.dumps({"info": {"features": FEATURES}})
    schema = pyarrow.schema(fields, metadata={"huggingface": noted})
    images = [{"bytes": f.read_bytes(), "path": f.name} for f, _ in rows]
    labels = [CLASSES.index(label) for _, label in rows]
    return pyarrow.table({"image": images, "label": labels}, schema=schema)


def write_parquet(folder, root, where=""):
    (root / where).mkdir(exist_ok=True)
    for split in SPLITS:
        table = arrow_table(folder, split)
        file = root / where / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table, file, row_group_size=2)
    return f"parquet:{root}"


def write_saved(folder, root):
    """The folder of `DatasetDict.save_to_disk`."""
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
    for split in SPLITS:
        (root / split).mkdir()
        table = arrow_table(folder, split)
        file = root / split / "data-00000-of-00001.arrow"
        with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    return f"hf:{root}"


def write_tar(folder, root, label_of=lambda label: (".cls", label)):
    for split in SPLITS:
        rows = [row for row in rows_of(folder) if row[2] == split]
        half = max(1, len(rows) // 2)
        for number in range(2):
            with tarfile.open(root / f"{split}-{number:03d}.tar", "w") as tar:
                for file, label, _ in rows[half * number : half * (number + 1) or None]:
                    extension, text = label_of(label)
                    name = f"{label}_{file.stem}"
                    add(tar, name + extension, text.encode())
                    add(tar, f"{name}.png", file.read_bytes())
    return f"tar:{root}/{{train,test}}-{{000..001}}.tar"


def add(tar, name, body):
    member = tarfile.TarInfo(name)
    member.size = len(body)
    tar.addfile(member, io.BytesIO(body))


WRITERS = {
    "csv": write_csv,
    "jsonl": write_jsonl_folder,
    "parquet": write_parquet,
    "hf saved": write_saved,
    "hf parquet": lambda folder, root: write_parquet(folder, root, "data").replace(
        "parquet:", "hf:"
    ),
    "tar": write_tar,
    "tar json": lambda folder, root: write_tar(
        folder, root, lambda label: (".json", json.dumps({"label": label}))
    ),
}


def section(source_, split="train", **changes):
    return ConfigDict({**tiny.digits(), "source": source_, "split": split, **changes})


def examples_of(config_data):
    """(pixels, class name) of every example, and how many there are."""
    opened = data.open_examples(config_data, "")
    (batch,) = data.eval_batches(opened, 8, 0, 1)
    real = batch["weight"] > 0
    labels = [opened.class_names[label] for label in batch["label"][real]]
    return batch["image"][real], labels


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_holds_the_same_examples_as_the_folder(
    folder, tmp_path, kind, split
):
    written = WRITERS[kind](folder, tmp_path)
    images, labels = examples_of(section(written, split))
    expected, classes = examples_of(section(f"folder:{folder}", split))
    np.testing.assert_array_equal(images, expected)
    if kind == "jsonl":  # its classes are numbers
        classes = [str(CLASSES.index(label)) for label in classes]
    assert labels == classes
    assert len(labels) == 2 * SPLITS[split]


@pytest.mark.parametrize("kind", WRITERS)
def test_labels_are_left_out_and_a_wrong_split_lists_those_there_are(
    folder, tmp_path, kind
):
    written = WRITERS[kind](folder, tmp_path)
    whole = source.open_source(section(written, label_field=""))
    np.testing.assert_array_equal(whole.labels, [-1] * 6)
    assert whole.class_names == ()
    with pytest.raises(
        errors.UserError, match=r"data\.split='val'.*(train|TRAIN).*"
    ) as caught:
        source.open_source(section(written, "val"))
    assert "\n" not in str(caught.value)


def test_datasets_itself_writes_what_is_read(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
    )
    saved = {
        split: datasets.Dataset.from_dict(
            {
                "image": [str(f) for f, _, at in rows_of(folder) if at == split],
                "label": [
                    CLASSES.index(c) for _, c, at in rows_of(folder) if at == split
                ],
            },
            features=features,
        )
        for split in SPLITS
    }
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    images, labels = examples_of(section(f"hf:{tmp_path / 'saved'}"))
    expected = examples_of(section(f"folder:{folder}"))
    np.testing.assert_array_equal(images, expected[0])
    assert labels == expected[1]


def test_a_row_group_is_read_when_it_is_asked_for_and_few_are_kept(
    folder, tmp_path, monkeypatch
):
    from flax_adapt.data import arrow

    write_parquet(folder, tmp_path)
    monkeypatch.setattr(arrow, "_KEPT_BYTES", 1)
    table = arrow.Table([tmp_path / "train-00000-of-00001.parquet"])
    assert not table._kept
    for row in (5, 0, 3):
        assert table.cell("image", row)["bytes"].startswith(b"\x89PNG")
        assert [*table._kept] == [row // 2]


def test_paths_are_relative_to_the_table(folder):
    (folder / "x.csv").write_text(
        "path,kind\ntrain/ant/0.png,ant\ntest/bee/0.png,bee\n"
    )
    try:
        images, labels = examples_of(
            section(f"csv:{folder / 'x.csv'}", label_field="kind")
        )
    finally:
        (folder / "x.csv").unlink()
    assert (images[0, 0, 0, 0], labels) == (10, ["ant", "bee"])


# The text of a csv -> what is said.
MISTAKES = {
    "a,b\nx.png,1": "which column of csv:{0} has the images? It has ['a', 'b']",
    "image,path\nx.png,1": "of which ['image', 'path'] has a usual name",
    "image,lable\nx.png,1": "data.label_field='label' is no column of csv:{0}",
    "image,labels\nx.png,1": "did you mean 'labels'?",
    "image,label\nx.png,1": "there is no {1}/x.png; paths are relative",
    "image,label,split\nx.png,1,fold1": "has the splits ['fold1']",
    "image,label\n": "has no row at all",
    "image,label\n ,1\n": "no path of an image",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_table_is_one_line(tmp_path, text):
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(errors.UserError) as caught:
        data.open_examples(section(f"csv:{file}"), "")
    assert MISTAKES[text].format(file, tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_braces_are_expanded_as_webdataset_does():
    assert shards.expand_braces("a-{08..10}.{tar,x}") == [
        f"a-{number}.{ending}"
        for number in ("08", "09", "10")
        for ending in ("tar", "x")
    ]
    assert shards.expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("kind", ["parquet", "hf", "tar"])
def test_what_is_no_such_file_is_one_line(tmp_path, kind):
    file = tmp_path / ("x.parquet" if kind != "tar" else "x.tar")
    for body, told in (
        (b"nothing of this kind" * 9, "no ta"),
        (None, "there is no such"),
    ):
        file.unlink() if body is None else file.write_bytes(body)
        with pytest.raises(errors.UserError, match=told) as caught:
            source.open_source(section(f"{kind}:{file}"))
        assert "\n" not in str(caught.value)
