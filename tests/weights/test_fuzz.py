"""Models of strangers, broken in every way: one line, or the model, and soon."""

import os
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from support.hf_folders import QUERY, assert_same, change_config, save_text, tensors_of
from support.hostile import FORMS, files_of, fuzz, largest, npz_arrays, outcome, write

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import files, reading

# Orbax takes its time: test_weights_orbax damages its files.
FILES = sorted({*FORMS} - {"orbax"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{form: (a folder, its parameters)}; tests change copies."""
    base = tmp_path_factory.mktemp("whole")
    return {form: (base / form, write(base / form, form)) for form in FORMS}


@pytest.fixture
def copy_of(folders, tmp_path):
    """A function form -> a fresh copy of its folder."""

    def copy(form):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return shutil.copytree(folders[form][0], tmp_path / "a")

    return copy


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(folders, form):
    """Or what follows would fuzz files that nobody can read."""
    folder, params = folders[form]
    assert_same(FORMS[form].load(folder)[1], params)


@fuzz(200)
@given(form=st.sampled_from(FILES), at=st.floats(0, 1, exclude_max=True))
def test_cut_files_are_errors(copy_of, form, at):
    folder = copy_of(form)
    file = largest(folder)
    file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)])
    assert FORMS[form].load(folder) is None


@fuzz(500)
@given(data=st.data(), form=st.sampled_from(FILES))
def test_flipped_bits_end_in_one_line_or_in_float32(copy_of, data, form):
    folder = copy_of(form)
    file = data.draw(st.sampled_from([largest(folder), *files_of(folder)]))
    content = bytearray(file.read_bytes())
    # Headers and directories stand at the ends: half of the flips are there.
    size = min(800, len(content))
    places = st.integers(-size, size - 1) | st.integers(0, len(content) - 1)
    bits = st.tuples(places, st.integers(0, 7))
    for at, bit in data.draw(st.lists(bits, min_size=1, max_size=4)):
        content[at] ^= 1 << bit
    file.write_bytes(content)
    assert is_one_line_or_float32(folder, form)


def is_one_line_or_float32(folder, form):
    """`outcome` asserts that an error is a UserError of one line."""
    path = folder / FORMS[form].path
    outcome(weights.pixel_statistics, path)
    outcome(weights.class_names, path)
    found = FORMS[form].load(folder)
    arrays = () if found is None else weights.strict.flatten(found[1]).values()
    return all(array.dtype == np.float32 for array in arrays)


PIECES = st.sampled_from([b"{", b"[", b'"', b"\\", b"\0", b"\n", b"9", b"-", b"\xff"])


@fuzz(250)
@given(
    form=st.sampled_from(FILES),
    pieces=st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=200),
    data=st.data(),
)
def test_bytes_put_into_any_file_end_in_one_line_or_in_float32(
    copy_of, form, pieces, data
):
    folder = copy_of(form)
    file = data.draw(st.sampled_from(files_of(folder)))
    content = file.read_bytes()
    at, end = (data.draw(st.integers(0, min(len(content), 3000))) for _ in range(2))
    file.write_bytes(content[:at] + pieces + content[max(at, end) :])
    assert is_one_line_or_float32(folder, form)


DTYPES = [
    *("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"),
    *("complex64", "uint16", "uint64"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]
SHAPES = st.lists(st.integers(0, 9), max_size=5).filter(lambda s: np.prod(s) < 10**4)


@fuzz(150)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), change=st.booleans())
def test_tensors_of_other_dtypes_and_shapes(copy_of, data, dtype, change):
    """A float is converted, another dtype refused by name; so is another shape."""
    folder = copy_of("safetensors")
    tensors = tensors_of(folder)
    name = data.draw(st.sampled_from(sorted(tensors)))
    before = tensors[name].shape
    shape = data.draw(SHAPES) if change else before
    tensors[name] = np.ones(shape, dtype)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    is_float = np.dtype(dtype).name in files.WEIGHTS
    if is_float and tuple(shape) == before:
        report = weights.from_pretrained(folder, "mae")[2]
        assert dict(report.converted) in ({}, {name: np.dtype(dtype).name})
    else:
        with pytest.raises(UserError) as error:
            weights.from_pretrained(folder, "mae")
        told = f"{name}: dtype {np.dtype(dtype).name} is no weight"
        # Of two faults the shape of the patches may be the one that is named.
        assert (
            is_float
            or told in str(error.value)
            or (change and name in str(error.value))
        )


def test_floats_beyond_float32_are_refused_by_name(copy_of):
    folder = copy_of("safetensors")
    tensors = tensors_of(folder)
    tensors[QUERY] = np.full(tensors[QUERY].shape, 1e300)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{QUERY}: has numbers that are too large"):
        weights.load(folder, "mae", pooling=None)


def test_integers_that_are_no_weights_are_ignored_by_rule(tmp_path):
    folder = tmp_path / "a"
    save_text(folder, "bert", "mlm")
    tensors = tensors_of(folder)
    tensors["bert.embeddings.position_ids"] = np.arange(9)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    report = weights.from_pretrained(folder, "mlm")[2]
    assert report.ignored["bert.embeddings.position_ids"] == "a buffer of ids"
    assert not report.converted


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "a.safetensors"])
def test_a_pipe_or_a_device_is_not_waited_for(copy_of, file):
    folder = copy_of("safetensors")
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    assert file == "a.safetensors" or FORMS["safetensors"].load(folder) is None
    assert outcome(reading.tensor_names, folder / file) is None
    assert outcome(npz_arrays, folder / file) is None
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    assert file == "a.safetensors" or FORMS["safetensors"].load(folder) is None
    assert outcome(reading.tensor_names, folder / file) is None
    assert outcome(npz_arrays, folder / file) is None


def test_harmless_changes_change_nothing(copy_of, folders):
    """Links as in the hub's cache, other order, metadata, fields that nobody knows."""
    folder = copy_of("safetensors")
    tensors = tensors_of(folder)
    tensors = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    blob = folder.parent / "blob"
    metadata = {"format": "pt", "x" * 1000: "\n\u2028"}
    safetensors.numpy.save_file(tensors, blob, metadata=metadata)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blob)
    change_config(folder, unknown={"a": [1, None]}, hidden_dropout_prob=0.3)
    (folder / "README.md").write_bytes(b"\xff\xfe")
    _, loaded, report = weights.from_pretrained(folder, "mae")
    assert_same(loaded, folders["safetensors"][1])
    assert not report.ignored
    assert not report.converted
