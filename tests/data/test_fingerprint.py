"""A fingerprint changes with the examples, and not with where or when they were copied."""

import os
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny

from flax_adapt import data
from flax_adapt.data import fingerprint


def folder_of(root):
    for name in ("a", "b"):
        for number in range(3):
            path = root / "train" / name / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number).save(path)
    return root


def of(source, **changes):
    section = ConfigDict({**tiny.digits(**changes), "source": source})
    return data.open_examples(section, "").fingerprint()


def test_a_folder_that_moved_is_the_same(tmp_path):
    here = folder_of(tmp_path / "here")
    before = of(f"folder:{here}")
    assert before.keys() == {"names", "sizes"}
    shutil.copytree(here, tmp_path / "there")
    os.utime(tmp_path / "there/train/a/0.bmp", (0, 0))
    assert of(f"folder:{tmp_path / 'there'}") == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda root: (root / "a/0.bmp").rename(root / "a/7.bmp"), "names"),
        (lambda root: Image.new("L", (9, 8)).save(root / "b/1.bmp"), "sizes"),
        (lambda root: (root / "b/1.bmp").write_bytes(b""), "sizes"),
    ],
)
def test_a_changed_file_is_seen(tmp_path, change, field):
    root = folder_of(tmp_path)
    before = of(f"folder:{root}")
    change(root / "train")
    after = of(f"folder:{root}")
    assert [name for name in before if before[name] != after[name]] == [field]


def test_examples_in_memory_are_told_apart_by_content():
    whole, few = of("builtin:digits"), of("builtin:digits", subset=tiny.FEW)
    assert whole == of("builtin:digits")
    assert whole.keys() == {"names", "contents"}
    assert whole["contents"] != few["contents"]


def test_a_digest_knows_where_an_item_ends_and_what_it_is():
    items = (["ab", "c"], ["a", "bc"], ["abc"], [b"abc", 1], [np.zeros(2)])
    items += ([np.zeros((2, 1))], [np.zeros(2, np.float32)], [])
    assert len({fingerprint.digest(each) for each in items}) == len(items)
