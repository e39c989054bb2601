"""A prepared data set against misfortunes, opened and through `features`.

Either the right number of examples comes out and exit code 0, or one line that names what
is wrong and exit code 2: never a traceback.
"""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny, tiny_files

from flax_adapt import data
from flax_adapt.base import errors

COUNTS = {"train": 4, "test": 2}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Weights of a MAE, and a data_dir with greys:1.0.0 of images with labels."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("prepared")
    tiny_files.mae_folder(root / "mae")
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i,) * 3).save(root / f"{i}.png")

    class Greys(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            picture = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            label = tfds.features.ClassLabel(names=["dark", "light"])
            kept = tfds.features.FeaturesDict({"image": picture, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=kept)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(n) for name, n in COUNTS.items()}

        def _generate_examples(self, count):
            for i in range(count):
                label = ("dark", "light")[i % 2]
                yield i, {"image": str(root / f"{i}.png"), "label": label}

    builder = Greys(data_dir=str(root / "data"), file_format="array_record")
    builder.download_and_prepare()
    return root


def records(folder):
    (found,) = folder.glob("greys-train.array_record*")
    return found


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    whole = np.frombuffer(file.read_bytes(), np.uint8).copy()
    whole[len(whole) // 4 : 3 * len(whole) // 4] ^= 255
    file.write_bytes(whole.tobytes())


# What is done to the folder of the version, the split that is read, and what comes out.
CASES = {
    "good": (lambda folder: None, "train", 4),
    "one item": (lambda folder: None, "train[:1]", 1),
    "none": (lambda folder: None, "train[:0]", "is empty; there is"),
    "another split": (lambda folder: None, "val", "='val': "),
    "missing": (shutil.rmtree, "train", "is not prepared in"),
    "no description": (
        lambda folder: (folder / "dataset_info.json").unlink(),
        *("train", "is not prepared in"),
    ),
    "empty description": (
        lambda folder: (folder / "dataset_info.json").write_bytes(b""),
        *("train", "is damaged; prepare it again"),
    ),
    "binary description": (
        lambda folder: (folder / "dataset_info.json").write_bytes(b"\xff\x00"),
        *("train", "is damaged; prepare it again"),
    ),
    "no types": (
        lambda folder: (folder / "features.json").unlink(),
        *("train", "is damaged; prepare it again"),
    ),
    "torn types": (
        lambda folder: cut(folder / "features.json"),
        *("train", "is damaged; prepare it again"),
    ),
    "no records": (
        lambda folder: records(folder).unlink(),
        *("train", "is damaged; prepare it again"),
    ),
    "empty records": (
        lambda folder: records(folder).write_bytes(b""),
        *("train", "is damaged; prepare it again"),
    ),
    "torn records": (
        lambda folder: cut(records(folder)),
        *("train", "is damaged; prepare it again"),
    ),
    "flipped records": (
        lambda folder: flip(records(folder)),
        *("train", "is damaged; prepare it again"),
    ),
}


def outcome(data_dir, split):
    """How many examples can be read, or what is said instead."""
    fields = dict(image_size=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    fields |= dict(source="tfds:greys", data_dir=str(data_dir), split=split)
    try:
        examples = data.open_examples(ConfigDict({**tiny.digits(), **fields}), "")
        batches = list(data.eval_batches(examples, 4, 0, 1))
    except errors.UserError as error:
        return str(error)
    return int(sum(batch["weight"].sum() for batch in batches))


def through_features(main, intact, data_dir, split, out):
    code, _, error = main(
        *("features", f"--init={intact / 'mae'}", "--data=tfds:greys"),
        *(f"--data_dir={data_dir}", f"--split={split}", f"--out={out}"),
        *("--batch_size=4", "--mean=0.5,0.5,0.5", "--std=0.5,0.5,0.5"),
    )
    assert "Traceback" not in error
    if code == 0:
        return len(np.load(out)["embeddings"])
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("flax-adapt: ")
    return error.strip()


@pytest.mark.parametrize("case", CASES)
def test_prepared_data_sets(main, intact, tmp_path, case):
    change, split, expected = CASES[case]
    data_dir = shutil.copytree(intact / "data", tmp_path / "data")
    change(data_dir / "greys/1.0.0")
    for found in (
        outcome(data_dir, split),
        through_features(main, intact, data_dir, split, tmp_path / "out.npz"),
    ):
        if isinstance(expected, int):
            assert found == expected
        else:
            assert expected in str(found)
            assert "\n" not in found
