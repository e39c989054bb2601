"""The door: order, shards, position, evaluation, bad files."""

import itertools
import subprocess
import sys

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from PIL import Image

from flax_adapt import data, defaults
from flax_adapt.base import errors
from flax_adapt.data import examples as examples_module

COUNT, SIZE = 11, 6


def config(door: str, **changes) -> ConfigDict:
    settings = {
        "modality": "image",
        "source": door,
        "data_dir": "",
        "split": "train",
        "classes": (),
        "image_size": SIZE,
        "channels": 3,
        "fit": "squash",
        "bits": 0,
        "window": "",
        "image_field": "",
        "split_field": "split",
        "label_field": "label",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "subset": {"per_class": 0, "fraction": 1.0, "seed": 0, "part": "chosen"},
        "augment": defaults.NO_AUGMENT,
        "views": (),
        "num_threads": 2,
        "prefetch_batches": 2,
        "max_bad_fraction": 0.0,
        "cache_bytes": 0,
        "jpeg_draft": False,
    }
    return ConfigDict(settings | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image i, of COUNT, is of the one colour 10 * i; two classes."""
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        path = root / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), (10 * i,) * 3).save(path)
    return root


@pytest.fixture
def images(folder):
    return data.open_examples(config(f"folder:{folder}"), "")


def take(iterator, count: int) -> list[dict]:
    return list(itertools.islice(iterator, count))


def indices(batches: list[dict]) -> list[int]:
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_is_what_the_loop_expects(images):
    batch = next(data.make_batches(images, 4, 0, 0, 1))
    assert {name: (v.dtype.name, v.shape) for name, v in batch.items()} == {
        "image": ("uint8", (4, SIZE, SIZE, 3)),
        "label": ("int32", (4,)),
        "index": ("int32", (4,)),
        "position": ("int32", (4,)),
        "weight": ("float32", (4,)),
    }
    for row, i in enumerate(batch["index"]):
        name, label = images.names[i], images.labels[i]
        number = int(name[2:4])
        np.testing.assert_array_equal(batch["image"][row], 10 * number)
        assert batch["label"][row] == label == number % 2
        assert images.class_names[label] == name[0]


# 4 does not divide 11: batches straddle epochs. 25 is more than two epochs a batch.
@pytest.mark.parametrize("batch_size", [4, 11, 25])
def test_every_epoch_has_each_example_once(images, batch_size):
    batches = take(data.make_batches(images, batch_size, 3, 0, 1), 12)
    seen = indices(batches)
    epochs = [seen[i : i + COUNT] for i in range(0, len(seen) - COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    np.testing.assert_array_equal(batches[5]["position"], np.arange(batch_size))


def test_seeds_differ_and_none_is_another_one_epoch_later(images):
    first = [indices(take(data.make_batches(images, 11, s, 0, 1), 3)) for s in range(4)]
    epochs = [tuple(seen[i : i + 11]) for seen in first for i in (0, 11, 22)]
    assert len(set(epochs)) == len(epochs)
    assert indices(take(data.make_batches(images, 11, 2, 0, 1), 3)) == first[2]


@pytest.mark.parametrize("make", [data.make_batches, data.eval_batches])
def test_processes_see_together_what_one_sees(images, make):
    seed = (5,) if make is data.make_batches else ()
    whole = take(make(images, 6, *seed, 0, 1), 5)
    parts = [take(make(images, 6, *seed, p, 3), 5) for p in range(3)]
    assert all(len(part) == len(whole) for part in parts)
    joined = [
        {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        for pieces in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_set_state_continues_exactly(images):
    iterator = data.make_batches(images, 4, 0, 0, 1)
    take(iterator, 5)
    state = iterator.get_state()
    following = take(iterator, 5)
    again = data.make_batches(images, 4, 0, 0, 1)
    again.set_state(state)
    assert_same(take(again, 5), following)


def test_a_checkpoint_continues_exactly(images, tmp_path):
    iterator = data.make_batches(images, 4, 0, 0, 1)
    take(iterator, 3)
    with ocp.CheckpointManager(tmp_path) as manager:
        save = grain.checkpoint.CheckpointSave(iterator)
        manager.save(3, args=ocp.args.Composite(data=save))
        following = take(iterator, 3)
        again = data.make_batches(images, 4, 0, 0, 1)
        restore = grain.checkpoint.CheckpointRestore(again)
        manager.restore(3, args=ocp.args.Composite(data=restore))
    assert_same(take(again, 3), following)


def test_prefetching_threads_and_caching_change_nothing(folder, monkeypatch):
    def first(cache_bytes: int, **changes) -> list[dict]:
        monkeypatch.setattr(examples_module, "CACHE_BYTES", cache_bytes)
        opened = data.open_examples(config(f"folder:{folder}", **changes), "")
        return take(data.make_batches(opened, 4, 0, 0, 1), 9)

    cached = first(10**9)
    assert_same(first(0), cached)
    assert_same(first(10**9, prefetch_batches=0, num_threads=1), cached)


@pytest.mark.parametrize(("cache_bytes", "decodings"), [(10**9, 1), (0, 3)])
def test_a_small_set_is_decoded_once(folder, monkeypatch, cache_bytes, decodings):
    monkeypatch.setattr(examples_module, "CACHE_BYTES", cache_bytes)
    opened = data.open_examples(config(f"folder:{folder}", prefetch_batches=0), "")
    calls, decode = [], examples_module.image.decode
    monkeypatch.setattr(
        examples_module.image, "decode", lambda *a: calls.append(a) or decode(*a)
    )
    take(data.make_batches(opened, COUNT, 0, 0, 1), 2)
    take(data.eval_batches(opened, COUNT, 0, 1), 1)
    assert len(calls) == decodings * COUNT


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_eval_sees_every_example_once_and_pads_with_weight_0(images, batch_size):
    batches = list(data.eval_batches(images, batch_size, 0, 1))
    seen = indices(batches)
    padding = -COUNT % batch_size
    assert seen == [*range(COUNT), *[-1] * padding]
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(weight, [1] * COUNT + [0] * padding)
    assert all(len(batch["image"]) == batch_size for batch in batches)
    last = {name: v[len(v) - padding :] for name, v in batches[-1].items()}
    assert not last["image"].any()
    assert np.all(last["label"] == -1)


def test_a_subset_is_indexed_by_its_own_rows(folder):
    changes = {"per_class": 2, "fraction": 1.0, "seed": 0, "part": "rest"}
    rest = data.open_examples(config(f"folder:{folder}", subset=changes), "")
    assert len(rest) == len(rest.names) == len(rest.labels) == COUNT - 4
    for batch in data.eval_batches(rest, 3, 0, 1):
        for i, pixels in zip(batch["index"], batch["image"], strict=True):
            assert i == -1 or np.all(pixels == 10 * int(rest.names[i][2:4]))


@pytest.mark.parametrize(("batch_size", "processes"), [(4, 3), (0, 1)])
def test_the_batch_must_divide_over_the_processes(images, batch_size, processes):
    told = f"batch_size={batch_size} must be a multiple of the {processes} processes"
    with pytest.raises(errors.UserError, match=told):
        data.make_batches(images, batch_size, 0, 0, processes)
    with pytest.raises(errors.UserError, match=told):
        data.eval_batches(images, batch_size, 0, processes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"channels": 4},
        {"mean": (0.5,)},
        {"num_threads": -1},
        {"prefetch_batches": -1},
        {"cache_bytes": -1},
        {"max_bad_fraction": 2.0},
        {"augment": {**defaults.NO_AUGMENT, "min_crop_area": 0.0}},
        {"views": ({**defaults.NO_AUGMENT, "hue": 0.6},)},
    ],
)
def test_wrong_settings_are_named(folder, wrong):
    with pytest.raises(errors.UserError, match=rf"data\.{next(iter(wrong))}"):
        data.open_examples(config(f"folder:{folder}", **wrong), "")


BAD = ("03.png", "07.png")


@pytest.fixture
def spoilt(tmp_path):
    """Of ten images one is cut short and one is text."""
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(1, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    whole = (tmp_path / BAD[0]).read_bytes()
    (tmp_path / BAD[0]).write_bytes(whole[: len(whole) // 2])
    (tmp_path / BAD[1]).write_text("sorry")
    return tmp_path


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_bad_files_are_blank_weightless_counted_and_logged(
    spoilt, tmp_path_factory, caplog, monkeypatch, cache_bytes
):
    monkeypatch.setattr(examples_module, "CACHE_BYTES", cache_bytes)
    log = tmp_path_factory.mktemp("log") / "bad.txt"
    door = config(f"folder:{spoilt}", max_bad_fraction=0.2)
    opened = data.open_examples(door, str(log))
    for batch in take(data.make_batches(opened, 10, 0, 0, 1), 3):
        bad = np.isin(batch["index"], [3, 7])
        np.testing.assert_array_equal(batch["weight"], 1 - bad)
        np.testing.assert_array_equal(batch["image"].any((1, 2, 3)), ~bad)
    assert sorted(opened.bad_files.names) == sorted(BAD)
    lines = sorted(line.split("\t")[0] for line in log.read_text().splitlines())
    assert lines == sorted(BAD)
    assert caplog.text.count("cannot decode") == 1


@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_too_many_bad_files_are_an_error_that_names_them(
    spoilt, tmp_path_factory, prefetch_batches
):
    log = str(tmp_path_factory.mktemp("log") / "bad.txt")
    changes = {"max_bad_fraction": 0.1, "prefetch_batches": prefetch_batches}
    opened = data.open_examples(config(f"folder:{spoilt}", **changes), log)
    with pytest.raises(errors.UserError) as caught:
        take(data.make_batches(opened, 2, 0, 0, 1), 6)
    for word in (*BAD, "2 of 10", "max_bad_fraction=0.1 allows 1", log):
        assert word in str(caught.value)


LEAVE = """
import sys
from ml_collections import ConfigDict
from flax_adapt import data

examples = data.open_examples(ConfigDict(eval(sys.argv[1])), "")
next(data.make_batches(examples, 4, 0, 0, 1))
print("left")
"""


def test_a_process_ends_though_batches_are_under_way(folder):
    settings = repr(config(f"folder:{folder}").to_dict())
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, settings],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
