"""Data and weights on remote storage are the same as in a folder: every kind, bit for bit."""

import json
import tarfile

import jax
import numpy as np
import pyarrow
import pytest
from ml_collections import ConfigDict
from pyarrow import parquet
from support import storages, tiny, tiny_files

from flax_adapt import data, weights
from flax_adapt.base.errors import UserError
from flax_adapt.base.remote import addresses
from flax_adapt.data.images import folder as folders

IMAGES = {"image_size": 8, "split_field": "split"}


def image_sets(path):
    """SCHEME -> what follows its colon, below `path`."""
    tiny_files.image_folder(path / "images", train=3, test=1)
    rows = [
        dict(image=f"{split}/{name}/{n}.png", label=name, split=split)
        for split, count in (("train", 3), ("test", 1))
        for name in tiny_files.CLASSES
        for n in range(count)
    ]
    lines = ["image,label,split", *(",".join(row.values()) for row in rows)]
    (path / "images" / "all.csv").write_text("\n".join(lines))
    (path / "tables").mkdir()
    up = [json.dumps({**row, "image": f"../images/{row['image']}"}) for row in rows]
    (path / "tables" / "all.jsonl").write_text("\n".join(up))
    (path / "parquet").mkdir()
    for split in ("train", "test"):
        of_split = [row for row in rows if row["split"] == split]
        cells = [(path / "images" / row["image"]).read_bytes() for row in of_split]
        table = {"image": cells, "label": [row["label"] for row in of_split]}
        file = path / "parquet" / f"{split}-0.parquet"
        parquet.write_table(pyarrow.table(table), file)
    write_tars(path / "tars", path / "images", rows)
    return {
        "folder": "images",
        "csv": "images/all.csv",
        "jsonl": "tables/all.jsonl",
        "parquet": "parquet",
        "tar": "tars/{train,test}-*.tar",
    }


def write_tars(path, images, rows):
    path.mkdir()
    for split in ("train", "test"):
        with tarfile.open(path / f"{split}-0.tar", "w") as tar:
            for number, row in enumerate(rows):
                if row["split"] == split:
                    (path / "cls").write_text(row["label"])
                    tar.add(images / row["image"], f"{number}.png")
                    tar.add(path / "cls", f"{number}.cls")


def open_all(source):
    """(names, class names, examples of one batch) of a source."""
    section = ConfigDict({**tiny.digits(), **IMAGES, "source": source})
    examples = data.open_examples(section, "")
    (batch,) = data.eval_batches(examples, 8, 0, 1)
    return [*examples.names], examples.class_names, batch


def assert_same(ours, theirs):
    assert ours[:2] == theirs[:2]
    jax.tree.map(np.testing.assert_array_equal, ours[2], theirs[2])


def test_images_of_every_kind_are_those_of_a_folder(storage, tmp_path):
    sets = image_sets(tmp_path / "sets")
    address = storages.put(tmp_path / "sets", storage)
    for scheme, place in sets.items():
        names, *remote = open_all(f"{scheme}:{address}/{place}")
        names = [name.replace(address, f"{tmp_path}/sets") for name in names]
        assert_same((names, *remote), open_all(f"{scheme}:{tmp_path}/sets/{place}"))
        assert remote[0] == tiny_files.CLASSES


@pytest.mark.parametrize("scheme", ["jsonl", "csv", "text"])
def test_texts_are_those_of_a_file(file_storage, tmp_path, scheme):
    lines = {
        "jsonl": ['{"text": "one two", "label": "a"}', '{"text": "six", "label": "b"}'],
        "csv": ["text,label", "one two,a", "six,b"],
        "text": ["one two", "six"],
    }[scheme]
    file = tmp_path / f"x.{scheme}"
    file.write_text("\n".join(lines))
    address = storages.put(file, f"{file_storage}/{file.name}")
    config = {"split": "train", "label_field": "label", "label_kind": "class"}
    config |= {"text_fields": ("text",), "modality": "text", "classes": ()}
    config = config | ({"label_field": ""} if scheme == "text" else {})
    found = [
        data.source.open_source(ConfigDict({**config, "source": f"{scheme}:{where}"}))
        for where in (file, address)
    ]
    local, remote = ([one.read(i) for i in range(len(one))] for one in found)
    assert local == remote
    assert len(local) == 2
    assert found[0].names[1] == found[1].names[1]


def test_weights_are_equal_bit_for_bit(storage, tmp_path):
    local = tiny_files.mae_folder(tmp_path / "mae")
    address = storages.put(local, f"{storage}/mae")
    for path in (local, address, f"{address}/"):
        config, params, _ = weights.load(path, "mae", pooling=None)
        if path is local:
            expected = config, params
    assert config == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])


def test_texts_and_their_tokenizer_come_with_the_weights(file_storage, tmp_path):
    local = tiny_files.bert_folder(tmp_path / "bert")
    address = storages.put(local, f"{file_storage}/bert")
    words = [data.open_tokenizer(path).rust.get_vocab() for path in (local, address)]
    assert words[0] == words[1]


def test_a_workdir_is_no_weights_and_is_not_copied(file_storage, tmp_path):
    (tmp_path / "run" / "stages" / "one").mkdir(parents=True)
    (tmp_path / "run" / "stages" / "one" / "result.json").write_text("{}")
    address = storages.put(tmp_path / "run", f"{file_storage}/run")
    with pytest.raises(UserError, match="is the workdir of a run; give its stages"):
        weights.load(address, "mae", pooling=None)
    assert not (tmp_path / "cache").exists()


def test_a_missing_image_is_counted_as_in_a_folder(file_storage, tmp_path):
    tiny_files.image_folder(tmp_path / "set", train=2, test=0)
    rows = [f"train/ant/{n}.png,ant" for n in (0, 1, 2)]
    (tmp_path / "set" / "all.csv").write_text("\n".join(["image,label", *rows]))
    address = storages.put(tmp_path / "set", f"{file_storage}/set")
    section = ConfigDict(
        {**tiny.digits(), **IMAGES, "source": f"csv:{address}/all.csv"}
    )
    section.max_bad_fraction = 0.5
    examples = data.open_examples(section, "")
    list(data.eval_batches(examples, 8, 0, 1))
    assert len(examples.bad_files) == 1


def test_the_split_of_an_address_is_found_and_its_typo_is_one_line(
    file_storage, tmp_path
):
    tiny_files.image_folder(tmp_path / "set", train=1, test=1)
    address = storages.put(tmp_path / "set", f"{file_storage}/set")
    section = ConfigDict({**tiny.digits(), **IMAGES, "split": "tset"})
    with pytest.raises(UserError, match="has no such folder; it has") as caught:
        folders.open_folder(address, section)
    shown = addresses.restore(str(caught.value))
    assert shown.startswith(f"data.split='tset': {address} has no such folder")
