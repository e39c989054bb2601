"""Every kind of source: what is read, and what is said when it is not there."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from flax_adapt.base import errors
from flax_adapt.data import source
from flax_adapt.data.images import image


def config(door: str, split: str = "train", data_dir: str = "") -> ConfigDict:
    fields = {
        "modality": "image",
        "source": door,
        "classes": (),
        "label_field": "label",
    }
    return ConfigDict({**fields, "split": split, "data_dir": data_dir})


def open_folder(path, split: str = "train") -> source.Source:
    return source.open_source(config(f"folder:{path}", split))


def paint(path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (shade, 0, 0)).save(path)


@pytest.fixture
def splits(tmp_path):
    """train has classes a, b; test has b, c; names and depth as people have them."""
    for i, file in enumerate(
        ("train/b/2.PNG", "train/b/10.jpg", "train/a/deep/er/x.JPeG", "test/c/1.bmp")
    ):
        paint(tmp_path / file, 40 * i)
    paint(tmp_path / "test/b/._1.png")
    paint(tmp_path / "test/b/1.webp")
    paint(tmp_path / "train/.hidden/1.png")
    (tmp_path / "train/b/notes.txt").write_text("not an image")
    return tmp_path


def test_folder_lists_every_image_once_sorted_by_name(splits):
    assert list(open_folder(splits).names) == [
        "train/a/deep/er/x.JPeG",
        "train/b/10.jpg",
        "train/b/2.PNG",
    ]
    assert list(open_folder(splits, "test").names) == ["test/b/1.webp", "test/c/1.bmp"]


def test_folder_labels_mean_the_same_in_every_split(splits):
    train, test = open_folder(splits), open_folder(splits, "test")
    assert train.class_names == test.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(train.labels, [0, 1, 1])
    np.testing.assert_array_equal(test.labels, [1, 2])
    assert train.labels.dtype == np.int32


def test_folder_reads_the_image_of_the_name(splits):
    path, label = open_folder(splits).read(2)
    assert image.decode(path, 4, 3)[0, 0, 0] == 0
    assert (path.name, label) == ("2.PNG", 1)


def test_folder_split_names_may_be_capitals(splits):
    (splits / "train").rename(splits / "Train")
    assert open_folder(splits).names[0] == "Train/a/deep/er/x.JPeG"


def test_folder_without_splits_is_all_train(tmp_path):
    paint(tmp_path / "cat/1.png")
    paint(tmp_path / "dog/1.png")
    whole = open_folder(tmp_path)
    assert list(whole.names) == ["cat/1.png", "dog/1.png"]
    assert whole.class_names == ("cat", "dog")
    with pytest.raises(errors.UserError, match=r"no split folder.*part='rest'"):
        open_folder(tmp_path, "test")


def test_folder_follows_links_but_not_for_ever(splits):
    os.symlink(splits / "test" / "c", splits / "train" / "c")
    os.symlink(splits / "train", splits / "train" / "b" / "again")
    assert [name for name in open_folder(splits).names if "again" in name] == []
    assert "train/c/1.bmp" in open_folder(splits).names


def test_folder_errors_list_what_there_is(splits):
    with pytest.raises(errors.UserError, match=r"no such folder.*\['test', 'train'\]"):
        open_folder(splits / "trian")
    with pytest.raises(errors.UserError, match=r"it has \['test', 'train'\]"):
        open_folder(splits, "val")
    (splits / "val").mkdir()
    with pytest.raises(errors.UserError, match=r"no image in .*val.*\.jpeg"):
        open_folder(splits, "val")


def test_unknown_doors_list_the_known(tmp_path):
    for door in ("folder", "builtin:", "mnist"):
        with pytest.raises(
            errors.UserError, match=r"\['builtin', 'csv', 'folder', .*'tfds', 'tsv'\]"
        ):
            source.open_source(config(door))
    with pytest.raises(
        errors.UserError, match=r"'s3'.*\['builtin', 'csv', 'folder', .*'tfds', 'tsv'"
    ):
        source.open_source(config("s3:bucket"))
    with pytest.raises(errors.UserError, match=r"\['digits', 'mnist5k'\]"):
        source.open_source(config("builtin:imagenet"))
    with pytest.raises(errors.UserError, match=r"'test'.*has only train, labelled, "):
        source.open_source(config("builtin:digits", "test"))


@pytest.mark.parametrize(
    ("name", "count", "size"), [("digits", 1797, 8), ("mnist5k", 5000, 28)]
)
def test_builtin_sets_are_the_ten_digits(name, count, size):
    digits = source.open_source(config(f"builtin:{name}"))
    pixels = np.stack([digits.read(i)[0] for i in range(len(digits))])
    assert pixels.shape == (count, size, size)
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    assert digits.class_names == tuple("0123456789")
    assert set(digits.labels) == set(range(10))
    assert [digits.read(i)[1] for i in range(9)] == list(digits.labels[:9])
    assert (digits.names[17], len(set(digits.names))) == (f"{name}/000017", count)


@pytest.mark.shared_data
def test_reads_real_prepared_data(shared_data):
    for split, count in (("train", 1440), ("test", 360)):
        data_dir = str(shared_data / "tfds")
        steel = source.open_source(config("tfds:neu_det", split, data_dir))
        assert (len(steel), len(steel.class_names)) == (count, 6)
        np.testing.assert_array_equal(np.bincount(steel.labels), [count // 6] * 6)
        assert image.decode(steel.read(7)[0], 96, 3).std() > 1


@pytest.mark.shared_data
def test_reads_a_real_folder(shared_data):
    train, test = (
        open_folder(shared_data / "folders" / "sign_digits", split)
        for split in ("train", "test")
    )
    assert train.class_names == test.class_names == tuple("0123456789")
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert image.decode(train.read(3)[0], 32, 3).std() > 1
