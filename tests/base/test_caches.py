"""Folders of files that only save time."""

import os

import numpy as np

from flax_adapt.base import caches


def test_a_folder_of_arrays_stays_within_its_bytes_and_loses_the_oldest(tmp_path):
    arrays = {"00": np.arange(250, dtype=np.float32).reshape(25, 1, 10)}
    for number, name in enumerate("abc"):
        path = tmp_path / f"{name}.npz"
        caches.write_arrays(path, arrays, limit=2900)
        os.utime(path, (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.npz", "c.npz"]
    np.testing.assert_array_equal(caches.read_arrays(path)["00"], arrays["00"])
    path.write_bytes(path.read_bytes()[:500])
    assert caches.read_arrays(path) is caches.read_arrays(tmp_path / "a.npz") is None
