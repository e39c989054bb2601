"""Files of safetensors and .npz, each made by hand to lie in another way."""

import io
import json
import os
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from support.attacks import Attack, npy, write_header
from support.hostile import fuzz, npz_arrays, outcome

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import files, reading
from flax_adapt.weights.files import npz as npz_file


def read(path):
    """{name: array} of one file in its dtypes."""
    with reading.open_tensors(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


GOOD = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HEADERS = {
    "twice": b"{" + GOOD + b"," + GOOD + b"}",
    "twice inside": b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "deep": b'{"a":' * 50_000,
    "NaN": GOOD.join([b"{", b"}"]).replace(b"[2]", b"[NaN]"),
    "float": {"a": entry(shape=(2.0,))},
    "bool": {"a": entry("F32", (True,), (0, 4))},
    "negative": {"a": entry(shape=(-1, -2))},
    "huge": {"a": entry(shape=(2**62, 4), span=(0, 2**64))},
    "overflow": {"a": entry(shape=(2**63, 2, 2), span=(0, 0))},
    "backwards": {"a": entry(shape=(0,), span=(8, 0))},
    "beyond": {"a": entry(span=(8, 16))},
    "too short": {"a": entry(shape=(1,))},
    "gap": {"a": entry(shape=(1,), span=(4, 8))},
    "overlap": {"a": entry(), "b": entry()},
    "half overlap": {"a": entry("F32", (1,), (0, 4)), "b": entry("U8", (6,), (2, 8))},
    "no end": {"a": {"dtype": "F32", "shape": [2]}},
    "more": {"a": {**entry(), "more": 1}},
    "unknown dtype": {"a": entry(dtype="F4")},
    "dtype of nothing": {"a": entry(dtype=None)},
    "text": {"a": "F32"},
    "list": [entry()],
    "metadata": {"__metadata__": [], "a": entry()},
    "name": {"a\nb": entry()},
    "long name": {"a" * 1000: entry()},
    "dimensions": {"a": entry(shape=(1,) * 70 + (2,))},
    "not UTF-8": b'{"\xff":1}',
    "data left over": {},
}


def test_a_good_header_is_read(tmp_path):
    """Or the tests below would prove nothing."""
    found = read(write_header(tmp_path / "a.safetensors", b"{" + GOOD + b"}  "))
    np.testing.assert_array_equal(found["a"], np.zeros(2, np.float32), strict=True)
    assert not read(write_header(tmp_path / "a.safetensors", {}, b""))


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_one_line(tmp_path, kind):
    path = write_header(tmp_path / "a.safetensors", HEADERS[kind])
    with pytest.raises(UserError, match=r"a\.safetensors: ") as error:
        reading.tensor_names(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("size", [0, 1, 100, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_one_line(tmp_path, size):
    path = write_header(tmp_path / "a.safetensors", b"{" + GOOD + b"}", size=size)
    text = f"a header of {size} bytes" if size > 60 else "JSON"
    with pytest.raises(UserError, match=text):
        reading.tensor_names(path)


HEADER = json.dumps({"a": entry(), "b": entry("F16", (0, 3), (8, 8))}).encode()


@fuzz(200)
@given(data=st.data())
def test_headers_that_we_read_are_those_that_the_library_reads(tmp_path_factory, data):
    """With any two bytes changed, and the same tensors then."""
    text = bytearray(HEADER)
    for _ in range(2):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(
            st.sampled_from(b'0123456789[]{}:," abFU-.e')
        )
    folder = tmp_path_factory.mktemp("header")
    path = write_header(folder / "a.safetensors", bytes(text), bytes(range(8)))
    found = outcome(read, path)
    if found is not None:
        with safetensors.safe_open(path, framework="numpy") as file:
            assert set(file.keys()) == set(found)
            for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
                np.testing.assert_array_equal(
                    file.get_tensor(name), found[name], strict=True
                )


def npz_of(path, arrays, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


ARRAYS = dict(
    whole=np.arange(6, dtype=np.float32).reshape(2, 3),
    fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    big=np.arange(3, dtype=">f4"),
    scalar=np.float32(2.5),
    empty=np.empty((0, 3), np.float32),
    half=np.arange(3, dtype=np.float16),
    step=np.array(7),
)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_savez_wrote_is_read_exactly(tmp_path, compressed):
    arrays = ARRAYS | {"Transformer/encoder_norm/scale": np.ones(3, np.float32)}
    path = npz_of(tmp_path / "a.npz", arrays, compressed)
    found = npz_arrays(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with npz_file.open_tensors(path) as tensors:
        assert tensors["big"].dtype == "float32"
        assert tensors["big"].get().dtype.isnative
        assert tensors["fortran"].shape == (2, 3)
        with pytest.raises(UserError, match="step: dtype int64 is no weight"):
            tensors["step"].get()


def test_bfloat16_is_known_as_numpy_writes_it(tmp_path):
    """As two bytes of nothing: numpy.save does not know the type."""
    values = np.arange(4, dtype=ml_dtypes.bfloat16)
    with npz_file.open_tensors(npz_of(tmp_path / "a.npz", {"a": values})) as tensors:
        assert tensors["a"].dtype == "bfloat16"
        np.testing.assert_array_equal(tensors["a"].get(), [0, 1, 2, 3])


def test_an_array_of_objects_is_refused_and_never_made(tmp_path):
    marker = tmp_path / "ran"
    array = np.array([Attack(marker), 1], dtype=object)
    path = npz_of(tmp_path / "a.npz", {"a": array})
    with pytest.raises(UserError, match="a: dtype object is no weight"):
        npz_arrays(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["a"]
    assert marker.exists(), "the attack does not work at all"


PARTS = {
    "longer": npy(shape="(3,)"),
    "shorter": npy(shape="(1,)"),
    "huge": npy(shape=f"({2**40},)"),
    "overflow": npy(shape=f"({2**62}, 4)"),
    "negative": npy(shape="(-1, -2)"),
    "bool": npy(shape="(True, 2)"),
    "no shape": npy(shape="2"),
    "dimensions": npy(shape=f"({'1, ' * 70}2)"),
    "objects": npy(descr="'|O'"),
    "fields": npy(descr="[('a', '<f4')]"),
    "rows": npy(descr="('<f4', (2,))", shape="(1,)"),
    "code": npy(shape="__import__('os').system('true')"),
    "deep": npy(shape="(" * 400 + ")" * 400),
    "minus": npy(shape="-" * 900 + "2"),
    "long header": npy(shape="(2,)" + " " * 5000),
    "version 2": npy(version=2),
    "no magic": bytes(100),
    "nothing": b"",
    "infinite": npy(shape="(1e999,)"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_that_lies_is_one_line(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", PARTS[kind])
    text = "no plain array" if kind == "version 2" else r"a\.npz: "
    with (
        pytest.raises(UserError, match=text) as error,
        npz_file.open_tensors(tmp_path / "a.npz"),
    ):
        pass  # found out before an array is asked for
    assert str(error.value).isprintable()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy())
    assert set(npz_arrays(tmp_path / "a.npz")) == {"a"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("a.npy", "a")])
def test_two_arrays_of_one_name_are_an_error(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in names:
            archive.writestr(name, npy())
    with pytest.raises(UserError, match="two arrays a"):
        npz_arrays(tmp_path / "a.npz")


@fuzz(200)
@given(compressed=st.booleans(), data=st.data())
def test_flipped_bits_of_an_npz_end_in_one_line_or_in_arrays(
    tmp_path_factory, compressed, data
):
    file = io.BytesIO()
    npz_of(file, ARRAYS, compressed)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(content[:end])
    found = outcome(npz_arrays, path)
    assert found is None or {type(array) for array in found.values()} <= {np.ndarray}


def test_a_file_is_read_in_parts_that_fit_in_memory(tmp_path):
    path = tmp_path / "a"
    path.touch()
    os.truncate(path, 10 << 30)
    with files.open_file(path) as file:
        assert len(file.read()) == files.MAX_PART
        with pytest.raises(UserError, match="cannot be right"):
            file.read(files.MAX_PART + 1)


def test_tensors_of_safetensors_are_read_when_they_are_asked_for(tmp_path):
    header = {"a": entry(shape=(1 << 16,), span=(0, 1 << 18))}
    values = np.arange(1 << 16, dtype=np.float32)
    path = write_header(tmp_path / "a.safetensors", header, values.tobytes())
    with reading.open_tensors(path) as tensors:
        assert tensors["a"].shape == (1 << 16,)
        np.testing.assert_array_equal(tensors["a"].get(), values)
        os.truncate(path, 1000)
        with pytest.raises(UserError, match="cut short"):
            tensors["a"].get()
