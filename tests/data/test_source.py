"""Every kind of source: what is read, and what is said when it is not there."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import storages

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


# TFDS: a set of our own, written to array_record without TensorFlow.

SHADES = {"train": 10, "test": 4}


def shades_class(shade_path: str):
    """A builder of images of one shade, with three sets of features."""
    import tensorflow_datasets as tfds

    picture = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    label = tfds.features.ClassLabel(names=["dark", "light"])
    features = {
        "labelled": {"image": picture, "mask": picture, "label": label},
        "plain": {"image": picture},
        "words": {"text": tfds.features.Text(), "label": label},
    }

    class Shades(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in features]  # noqa: RUF012

        def _info(self):
            kept = features[self.builder_config.name]
            kept = tfds.features.FeaturesDict(kept)
            return tfds.core.DatasetInfo(builder=self, features=kept)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(n) for name, n in SHADES.items()}

        def _generate_examples(self, count):
            for i in range(count):
                label = ("dark", "light")[i % 2]
                example = {"text": str(i), "label": label, "mask": shade_path.format(0)}
                example["image"] = shade_path.format(i)
                kept = features[self.builder_config.name]
                yield i, {key: example[key] for key in kept}

    return Shades


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data_dir with shades:labelled, :plain and :words."""
    folder = tmp_path_factory.mktemp("prepared")
    for i in range(max(SHADES.values())):
        paint(folder / f"shade{i}.png", 20 * i)
    builder = shades_class(str(folder / "shade{}.png"))
    data_dir = str(folder / "data")
    for name in builder.builder_configs:
        shades = builder(data_dir=data_dir, config=name, file_format="array_record")
        shades.download_and_prepare()
    return data_dir


@pytest.mark.parametrize("kind", storages.KINDS)
def test_tfds_reads_the_same_from_an_address(prepared, monkeypatch, tmp_path, kind):
    name, root = "tfds:shades:labelled", storages.start(kind, monkeypatch, tmp_path)
    storages.put(prepared, f"{root}/prepared")
    places = (prepared, f"{root}/prepared")
    found = [source.open_source(config(name, "test", where)) for where in places]
    assert [*map(found[0].read, range(4))] == [*map(found[1].read, range(4))]


def test_tfds_reads_encoded_images_labels_and_slices(prepared):
    train = source.open_source(config("tfds:shades:labelled", "train", prepared))
    assert (len(train), train.class_names) == (10, ("dark", "light"))
    shades = [int(image.decode(train.read(i)[0], 4, 3)[0, 0, 0]) for i in range(10)]
    assert sorted(shades) == [20 * i for i in range(10)]
    np.testing.assert_array_equal(train.labels, [shade // 20 % 2 for shade in shades])
    assert isinstance(train.read(0)[0], bytes)

    part = source.open_source(config("tfds:shades:labelled", "train[:40%]", prepared))
    assert [part.read(i) for i in range(len(part))] == [train.read(i) for i in range(4)]


def test_tfds_without_labels_is_unlabelled(prepared):
    plain = source.open_source(config("tfds:shades:plain", "test", prepared))
    np.testing.assert_array_equal(plain.labels, [-1] * 4)
    assert (plain.class_names, plain.read(0)[1]) == ((), -1)


@pytest.mark.parametrize(
    ("name", "split", "told"),
    [
        ("shadow", "train", r"not prepared in .*'shades:labelled', 'shades:plain'"),
        ("shades", "train", r"not prepared in .*'shades:labelled', 'shades:plain'"),
        ("shades:plain", "val", r"'val'.*\{'train': 10, 'test': 4\}"),
        ("shades:plain", "train[:x]", r"there is \{'train': 10, 'test': 4\}"),
        ("shades:plain", "train[5:2]", r"is empty; there is \{'train': 10"),
        ("shades:words", "train", r"no one image feature.*'text': 'Text'"),
    ],
)
def test_tfds_errors_list_what_there_is(prepared, name, split, told):
    with pytest.raises(errors.UserError, match=told) as caught:
        source.open_source(config(f"tfds:{name}", split, prepared))
    assert "\n" not in str(caught.value)


def test_tfds_in_an_empty_or_missing_data_dir(tmp_path):
    for data_dir in (tmp_path, tmp_path / "gone"):
        with pytest.raises(errors.UserError, match=r"not prepared in .*nothing"):
            source.open_source(config("tfds:mnist", data_dir=str(data_dir)))


def test_tfds_in_tfrecord_says_how_to_rebuild(prepared, tmp_path):
    old = tmp_path / "shades" / "1.0.0"
    old.mkdir(parents=True)
    for file in pathlib.Path(prepared, "shades", "plain", "1.0.0").iterdir():
        text = file.read_bytes().replace(b'"array_record"', b'"tfrecord"')
        (old / file.name.replace("array_record", "tfrecord")).write_bytes(text)
    told = r"stored as tfrecord.*TensorFlow.*file_format='array_record'"
    with pytest.raises(errors.UserError, match=told):
        source.open_source(config("tfds:shades", data_dir=str(tmp_path)))


READ = """
import sys
from ml_collections import ConfigDict
from flax_adapt.data import source
from flax_adapt.data.images import image

shades = source.open_source(ConfigDict(dict(
    modality="image", source="tfds:shades:labelled", split="train",
    data_dir=sys.argv[1], classes=())))
assert len(shades.labels) == 10
assert image.decode(shades.read(0)[0], 4, 3).shape == (4, 4, 3)
assert "tensorflow" not in sys.modules
"""


def test_tfds_is_read_without_importing_tensorflow(prepared, tmp_path):
    """A TensorFlow that cannot be imported stands first on the path."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow imported')")
    root = os.path.dirname(os.path.dirname(source.__file__))
    path = os.pathsep.join((str(tmp_path), os.path.dirname(root)))
    done = subprocess.run(
        [sys.executable, "-c", READ, prepared],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


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
