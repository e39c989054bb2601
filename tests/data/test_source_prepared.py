"""Prepared TensorFlow datasets: what is read, and what is said when it is not there."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import storages, tiny_text

from flax_adapt.base import errors
from flax_adapt.data import source
from flax_adapt.data.images import image


def config(door: str, split: str = "train", data_dir: str = "") -> ConfigDict:
    fields = dict(modality="image", source=door, classes=(), label_field="label")
    return ConfigDict({**fields, "split": split, "data_dir": data_dir})


# A set of our own, written to array_record without TensorFlow.
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
        Image.new("RGB", (6, 5), (20 * i, 0, 0)).save(folder / f"shade{i}.png")
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


@pytest.mark.parametrize("name", ["labelled", "words"])
def test_records_have_one_identity_in_all_slices_and_sums_of_a_split(prepared, name):
    def opened(split):
        if name == "labelled":
            return source.open_source(config("tfds:shades:labelled", split, prepared))
        fields = dict(split=split, data_dir=prepared)
        words = tiny_text.section("tfds:shades:words", **fields)
        return source.open_source(ConfigDict(words))

    splits = ("train", "test", "train[30%:]", "test[:2]+train[:40%]")
    known = {}
    for one in map(opened, splits):
        some = one.take(np.arange(len(one))[::-1])
        for found in (one, some):
            for row, identity in enumerate(found.identities()):
                assert known.setdefault(identity, found.read(row)) == found.read(row)
    assert len(known) == sum(SHADES.values())


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
