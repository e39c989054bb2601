"""Decoded squares on disk: the same pixels, whatever happens to their files."""

import json
import logging
import os
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow
import pytest
from array_record.python import array_record_module
from ml_collections import ConfigDict
from PIL import Image
from pyarrow import parquet
from support.tiny_squares import LIMIT, forget, photo, shards

from flax_adapt import data
from flax_adapt.data import examples as examples_module
from flax_adapt.data.images import square_files, squares
from flax_adapt.defaults.image_section import image_data

COUNT, SIZE = 6, 16


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Where squares are stored in this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(examples_module, "CACHE_BYTES", 0)  # in memory
    forget()
    yield tmp_path / "cache" / "flax_adapt" / "images"
    squares._share.cache_clear()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "train" / "a"
    path.mkdir(parents=True)
    for number in range(COUNT):
        (path / f"{number}.bmp").write_bytes(photo(number))
    return tmp_path


def read(source, **changes):
    """Returns the squares [n, S, S, C] of a source, one batch after the other."""
    fields = dict(image_size=SIZE, num_threads=2, prefetch_batches=0, cache_bytes=LIMIT)
    section = ConfigDict(image_data(str(source), "train", **{**fields, **changes}))
    opened = data.open_examples(section, "")
    batches = data.eval_batches(opened, 2, 0, 1)
    pixels = np.concatenate([batch["image"] for batch in batches])[: len(opened)]
    if opened._squares is not None:
        opened._squares.flush()
    return pixels


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by an entry for every image that is decoded."""
    calls, decode = [], examples_module.image.decode
    monkeypatch.setattr(
        examples_module.image, "decode", lambda *a: calls.append(a) or decode(*a)
    )
    return calls


def as_folder(root):
    return f"folder:{root}"


def as_csv(root):
    names = [f"train/a/{number}.bmp" for number in range(COUNT)]
    (root / "train.csv").write_text("\n".join(["image", *names]))
    return f"csv:{root / 'train.csv'}"


def as_jsonl(root):
    rows = [{"image": f"train/a/{number}.bmp"} for number in range(COUNT)]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{root / 'rows.jsonl'}"


def as_tar(root):
    with tarfile.open(root / "train-0.tar", "w") as tar:
        for number in range(COUNT):
            tar.add(root / "train" / "a" / f"{number}.bmp", f"{number}.bmp")
    return f"tar:{root}/train-*.tar"


def as_parquet(root):
    column = [{"bytes": photo(number), "path": None} for number in range(COUNT)]
    parquet.write_table(pyarrow.table({"image": column}), root / "train.parquet")
    return f"parquet:{root / 'train.parquet'}"


@pytest.mark.parametrize("make", [as_folder, as_csv, as_jsonl, as_tar, as_parquet])
def test_stored_pixels_are_those_that_are_decoded(folder, decoded, make):
    source = make(folder)
    label = {} if make is as_folder else {"label_field": ""}
    plain = read(source, cache_bytes=0, **label)
    np.testing.assert_array_equal(read(source, **label), plain)
    assert len(decoded) == 2 * COUNT
    forget()
    np.testing.assert_array_equal(read(source, **label), plain)
    assert len(decoded) == 2 * COUNT


def test_a_row_read_twice_is_decoded_once_before_its_shard_is_written(folder, decoded):
    section = image_data(as_folder(folder), "train", image_size=SIZE, cache_bytes=LIMIT)
    opened = data.open_examples(ConfigDict(section), "")
    first, again = (opened.batch(np.arange(COUNT), np.arange(COUNT)) for _ in "12")
    np.testing.assert_array_equal(first["image"], again["image"])
    assert len(decoded) == COUNT


@pytest.mark.parametrize(
    "changes",
    [{"fit": "crop"}, {"window": "10:90"}, {"channels": 1}, {"image_size": 9}],
)
def test_squares_of_other_settings_are_not_mixed(folder, changes):
    if "channels" in changes:
        changes = changes | dict(mean=(0.5,), std=(0.5,))
    read(as_folder(folder))
    plain = read(as_folder(folder), cache_bytes=0, **changes)
    np.testing.assert_array_equal(read(as_folder(folder), **changes), plain)


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_changed_is_decoded_again(folder, keeps_time):
    before = read(as_folder(folder))
    file = folder / "train" / "a" / "2.bmp"
    time = file.stat().st_mtime_ns
    file.write_bytes(photo(100))
    os.utime(file, ns=(time, time if keeps_time else time + 10**9))
    forget()
    after = read(as_folder(folder))
    np.testing.assert_array_equal(after, read(as_folder(folder), cache_bytes=0))
    changed = np.flatnonzero((after != before).any((1, 2, 3)))
    assert changed.tolist() == [2]


def test_undecodable_files_are_counted_as_without_a_cache(folder):
    (folder / "train" / "a" / "1.bmp").write_bytes(bytes(10_000))
    for _ in range(2):
        pixels = read(as_folder(folder), max_bad_fraction=0.5)
        assert not pixels[1].any()
        assert pixels[[0, 2, 3, 4, 5]].any((1, 2, 3)).all()
        forget()
    with pytest.raises(Exception, match="cannot be decoded"):
        read(as_folder(folder))


def test_nothing_is_stored_of_tiny_files_and_without_bytes(folder, root, decoded):
    read(as_folder(folder), cache_bytes=0)
    for number in range(COUNT):
        Image.new("RGB", (9, 7)).save(folder / "train" / "a" / f"{number}.bmp")
    read(as_folder(folder))
    assert not root.exists()


@pytest.mark.parametrize("kind", ["no folder", "full", "fails while writing"])
def test_a_disk_that_takes_nothing_costs_only_time(
    folder, root, monkeypatch, caplog, kind
):
    if kind == "no folder":
        (folder / "cache").write_text("a file where the folder should be")
    elif kind == "full":
        usage = squares.shutil.disk_usage(folder)
        monkeypatch.setattr(
            squares.shutil, "disk_usage", lambda path: usage._replace(free=10_000)
        )
    else:
        writer = array_record_module.ArrayRecordWriter
        monkeypatch.setattr(
            array_record_module,
            "ArrayRecordWriter",
            lambda path, options: writer("/dev/full", options),
        )
    monkeypatch.setattr(squares, "SHARD_BYTES", 2 * SIZE**2 * 3)
    plain = read(as_folder(folder), cache_bytes=0)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(read(as_folder(folder)), plain)
    told = [r for r in caplog.records if "no more decoded images" in r.getMessage()]
    assert len(told) == 1
    assert not shards(root)
    assert not [*root.glob(f"*/*{square_files.UNFINISHED}")]


def test_processes_share_what_one_of_them_stored(folder, root, decoded):
    program = (
        "import sys, numpy as np\n"
        "from ml_collections import ConfigDict\n"
        "from flax_adapt import data\n"
        "from flax_adapt.data import examples\n"
        "from flax_adapt.defaults.image_section import image_data\n"
        "examples.CACHE_BYTES = 0\n"
        "section = image_data(sys.argv[1], 'train', image_size=16, num_threads=2)\n"
        "opened = data.open_examples(ConfigDict(section), '')\n"
        "opened.batch(np.arange(6), np.arange(6))\n"
    )
    # It stores what it decoded when it ends.
    command = [sys.executable, "-c", program, as_folder(folder)]
    subprocess.run(command, check=True)
    assert len(shards(root)) == 1
    stored = read(as_folder(folder))
    assert not decoded
    np.testing.assert_array_equal(stored, read(as_folder(folder), cache_bytes=0))


def test_squares_of_another_version_of_a_decoder_are_not_read(
    folder, decoded, monkeypatch
):
    read(as_folder(folder))
    version = square_files.importlib.metadata.version
    newer = {"pillow": "99.0"}
    monkeypatch.setattr(
        square_files.importlib.metadata,
        "version",
        lambda name: newer.get(name) or version(name),
    )
    square_files.describe_decoders.cache_clear()
    forget()
    read(as_folder(folder))
    square_files.describe_decoders.cache_clear()
    assert len(decoded) == 2 * COUNT
