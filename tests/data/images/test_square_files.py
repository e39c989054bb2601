"""Files of decoded squares: their bytes, damage, and processes that write together."""

import os

import numpy as np
import pytest
from support.tiny_squares import LIMIT, forget, photo, shards

from flax_adapt.base import caches
from flax_adapt.data.images import square_files, squares


@pytest.fixture
def root(tmp_path):
    """Where squares are stored in this test."""
    forget()
    return tmp_path / "images"


def fill(root, first, count=20, limit=2**24):
    """Stores `count` squares of noise, of 30 KB, from number `first`."""
    shape = (100, 100, 3)
    stored = squares.Squares(root, f"set{first}", shape, limit)
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        pixels = rng.integers(0, 256, shape, np.uint8)
        found = stored.fetch(photo(number), lambda pixels=pixels: pixels)
        np.testing.assert_array_equal(found, pixels)
    stored.flush()


def test_all_shards_stay_within_the_limit_and_the_oldest_go_first(root, monkeypatch):
    monkeypatch.setattr(squares, "SHARD_BYTES", 10 * 30_000)
    fill(root, 0)
    (old,) = {path.parent for path in shards(root)}
    for number, path in enumerate(shards(root)):
        os.utime(path, (number, number))
    _, kept = shards(root)
    size = kept.stat().st_size
    forget()
    # Room for three shards: two of the old ones are there, and one must go.
    fill(root, 100, limit=3 * size + squares._SPARE_BYTES)
    assert [path for path in shards(root) if path.parent == old] == [kept]
    # The rest of this set finds no room, and deletes nothing that the process uses.
    fill(root, 200, count=90, limit=3 * size + squares._SPARE_BYTES)
    assert caches.count_bytes(shards(root)) <= 3 * size + squares._SPARE_BYTES
    assert len(shards(root)) == 3


def spoil_end(text):
    return text[: len(text) // 2]


def spoil_pixels(text):
    middle = text.index(b"PIXELS")
    return text[:middle] + b"CHANGE" + text[middle + 6 :]


def spoil_all(text):
    return bytes(len(text))


@pytest.mark.parametrize("spoil", [spoil_end, spoil_pixels, spoil_all])
def test_a_damaged_shard_is_decoded_again_and_said_once(root, caplog, spoil):
    shape = (20, 20, 3)
    pixels = np.frombuffer(b"PIXELS" * 200, np.uint8).reshape(shape)
    numbers = range(4)

    def fetch_all():
        opened, calls = squares.Squares(root, "set", shape, LIMIT), []
        for number in numbers:
            found = opened.fetch(photo(number), lambda: calls.append(0) or pixels)
            np.testing.assert_array_equal(found, pixels)
        opened.flush()
        return len(calls)

    assert (fetch_all(), fetch_all()) == (4, 0)
    (shard,) = shards(root)
    shard.write_bytes(spoil(shard.read_bytes()))
    assert fetch_all() == 4
    told = [r.getMessage() for r in caplog.records if "decoded again" in r.getMessage()]
    assert len(told) == 1
    assert str(shard) in told[0]
    assert fetch_all() == 0


def test_what_another_process_stored_meanwhile_is_not_stored_twice(root):
    shape, pixels = (20, 20, 3), np.zeros((20, 20, 3), np.uint8)
    one, other = (squares.Squares(root, "set", shape, LIMIT) for _ in range(2))
    for opened in (one, other):
        for number in range(3):
            opened.fetch(photo(number), lambda: pixels)
    one.flush()
    other.fetch(photo(3), lambda: pixels)
    other.flush()
    assert len(shards(root)) == 2
    keys = [key for path in shards(root) for key in square_files.open_shard(path)[1]]
    assert len(keys) == len({*keys}) == 4
