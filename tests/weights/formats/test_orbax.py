"""Orbax: written and read back exactly, on any devices, and damaged in every way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import tiny_text
from support.hf_folders import (
    CONFIG,
    TEXT,
    assert_same,
    build,
    build_text,
    random_params,
)
from support.hostile import STATE, files_of, outcome

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import orbax_arrays
from flax_adapt.weights.formats import table as formats

VOCABULARY = len(tiny_text.VOCABULARY)
# What a format could change without being noticed.
LARGEST = np.finfo(np.float32).max
HARD = np.array([-0.0, LARGEST, 1e-45, 1 + 2**-23, 0, -LARGEST, 7, 1e-38], np.float32)


def models_of(kind):
    if kind == "vit":
        return {task: build(task) for task in ("mae", "classify", "encoder")}
    sizes = dict(kind=kind, vocab_size=VOCABULARY)
    return {task: build_text(task, **sizes) for task in ("mlm", "classify", "encoder")}


@pytest.mark.parametrize("kind", ["vit", "bert", "roberta"])
def test_what_is_written_is_read_back_bit_by_bit(tmp_path, kind):
    beside = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    if kind != "vit":
        beside = dict(tokenizer=tiny_text.bert_folder(tmp_path / "tokenizer"))
    for task, model in models_of(kind).items():
        params = random_params(model)
        params["encoder"]["block_00"]["norm1"]["bias"] = HARD
        names = ("ant", "bee") if task == "classify" else None
        path = tmp_path / task
        weights.save_pretrained(
            path, model, params, class_names=names, format="orbax", **beside
        )
        assert formats.detect(path) == "orbax"
        config, loaded, report = weights.load(path, task, pooling=None)
        assert config == models.config_of(model)
        assert not report.ignored
        bits = [jax.tree.map(lambda x: np.asarray(x).view("u4"), t)
                for t in (params, loaded)]  # fmt: skip
        assert_same(*bits)
        num_classes = len(params["head"]["bias"]) if names else 0
        rest = tuple(f"LABEL_{n}" for n in range(2, num_classes))
        assert weights.class_names(path) == (names and names + rest)
        if kind == "vit":
            assert weights.pixel_statistics(path) == tuple(map(list, beside.values()))
        else:
            assert (path / "tokenizer.json").is_file()


def write_run(workdir, task, model, params):
    """What a stage of a run on text leaves, as far as weights are concerned."""
    stage = dict(name="one", model=dict(pooling="pooler"), data=dict(modality="text"))
    config = dict(model=TEXT | dict(pooler=False), stages=[stage])
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(config))
    state = {"params": params, "step": np.int32(7)}
    ocp.PyTreeCheckpointer().save(workdir / STATE / "state", state)
    return workdir / STATE


@pytest.mark.parametrize("task", ["mlm", "classify"])
def test_stages_of_text_are_read(tmp_path, task):
    model = build_text(task)
    params = random_params(model)
    path = write_run(tmp_path / "run", task, model, params)
    again, loaded, _ = weights.from_pretrained(path, task)
    assert again == model
    assert_same(loaded, params)
    assert weights.pixel_statistics(path) is None


def save_sharded(state, num_devices):
    """Arrays over so many devices, an optimizer's beside them, as a run saves them."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    large = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    params = {"encoder": {"a": large, "b": large[0]}, "head": {"c": large[:, :4]}}
    arrays = jax.device_put({"params": params, "opt_state": {"m": large}}, rows)
    ocp.PyTreeCheckpointer().save(state, arrays)
    return weights.strict.flatten(params)


def write_alone(state):
    """Arrays as `save` writes them: no OCDBT."""
    rng = np.random.default_rng(0)
    params = {"encoder/a": rng.standard_normal((64, 32)).astype(np.float32)}
    params["head/c"] = params["encoder/a"][0]
    orbax_arrays.write(state, params)
    return params


def read(state):
    return {k: tensor.get() for k, tensor in orbax_arrays.open_tensors(state).items()}


OTHER = """
import sys
from pathlib import Path
import numpy as np
sys.path[:0] = sys.argv[1].split(":")
import test_orbax as tests
import jax

assert jax.device_count() == 1
folder = Path(sys.argv[2])
np.savez(folder / "found.npz", **tests.read(folder / "four"))
tests.save_sharded(folder / "one", 1)
"""


def test_the_number_of_devices_does_not_matter(tmp_path):
    assert jax.device_count() == 8
    params = save_sharded(tmp_path / "four", 4)
    assert_same(read(tmp_path / "four"), params)
    here = f"{Path(__file__).parent}:{Path(__file__).parents[2]}"
    command = [sys.executable, "-c", OTHER, here, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert_same(dict(found), params)
    assert_same(read(tmp_path / "one"), params)


def flipped(at):
    def flip(file):
        content = bytearray(file.read_bytes())
        content[int(at * (len(content) - 1))] ^= 0x55
        file.write_bytes(content)

    return flip


WAYS = {
    "deleted": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(
        file.read_bytes()[: file.stat().st_size // 2]
    ),
    **{f"flipped at {at}": flipped(at) for at in (0, 0.1, 0.5, 0.9, 1)},
}


def damaged(state, copy):
    """Every file of a checkpoint in every way, a folder at a time: (file, way)."""
    for file in files_of(state):
        name = file.relative_to(state)
        for way, damage in WAYS.items():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(state, copy)
            damage(copy / name)
            yield str(name), way


@pytest.mark.parametrize("alone", [False, True])
def test_a_damaged_folder_is_one_line_or_arrays(tmp_path, capfd, alone):
    """Orbax keeps no checksum of the numbers; in OCDBT, of all that is around them."""
    state = tmp_path / "state"
    params = write_alone(state) if alone else save_sharded(state, 4)
    wanted = {name: array.shape for name, array in params.items()}
    refused = set()
    for file, way in damaged(state, tmp_path / "copy"):
        found = outcome(read, tmp_path / "copy")
        shapes = found and {name: array.shape for name, array in found.items()}
        assert shapes in (None, wanted) or alone, (file, way)
        if found is None:
            refused.add((file if alone else file.partition("/")[0], way))
    arrays = ("params.encoder.a/0.0", "params.encoder.a/.zarray", "params.head.c/0")
    needed = arrays if alone else ("manifest.ocdbt", "d")
    for way in ("deleted", "empty", "half"):
        assert {(name, way) for name in ("_METADATA", *needed)} <= refused
    assert alone or ("ocdbt.process_0", "deleted") in refused
    # Nor does Orbax print anything of its own.
    assert capfd.readouterr() == ("", "")


def test_a_shape_that_the_files_cannot_hold_is_refused(tmp_path):
    write_alone(tmp_path / "state")
    file = tmp_path / "state/params.encoder.a/.zarray"
    for shape in ([1 << 40, 1 << 20], [1 << 30, 32]):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": shape}))
        with pytest.raises(UserError, match="bytes and would unpack to"):
            orbax_arrays.open_tensors(tmp_path / "state")


def test_a_folder_of_something_else_is_one_line(tmp_path):
    path, params = tmp_path / "a", random_params(build("mae"))
    weights.save_pretrained(path, build("mae"), params, format="orbax")
    told = json.loads((path / "model.json").read_text())
    for text in ("{}", "[]", '{"model": 3}', json.dumps(told | {"pooling": {}})):
        (path / "model.json").write_text(text)
        outcome(weights.pixel_statistics, path)
        outcome(weights.class_names, path)
        assert outcome(weights.from_pretrained, path, "classify") is None
    (path / "model.json").unlink()
    with pytest.raises(UserError, match="is none of"):
        weights.load(path, "mae", pooling=None)
    assert CONFIG["kind"] == told["model"]["kind"]


def test_a_dtype_that_is_no_weight_is_refused_and_a_half_converted(tmp_path):
    path, params = tmp_path / "a", random_params(build("encoder", decoder=None))
    model = build("encoder", decoder=None)
    weights.save_pretrained(path, model, params, format="orbax")
    for dtype in (np.float16, np.int32):
        shutil.rmtree(path / "state")
        other = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        ocp.PyTreeCheckpointer().save(path / "state", {"params": other})
        if dtype == np.float16:
            _, loaded, report = weights.load(path, "encoder", pooling=None)
            assert set(report.converted.values()) == {"float16"}
            assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {
                np.dtype("float32")
            }
    with pytest.raises(UserError, match="dtype int32 is no weight"):
        weights.load(path, "encoder", pooling=None)
