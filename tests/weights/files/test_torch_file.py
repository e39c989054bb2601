"""Files of torch.save: read without torch, exactly."""

import json
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support import torch_files
from support.hf_folders import assert_same, build, random_params, tensors_of
from support.torch_files import (
    FLOATS,
    FORMS,
    PLACE,
    call,
    dictionary,
    name,
    read,
    storage,
    tensor,
    value,
    write_code,
)

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import reading

FOLDER = Path(__file__).parent / "goldens_torch"


@pytest.mark.parametrize("form", FORMS)
def test_what_torch_wrote_is_read_exactly(form):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
    expected = dict(
        whole=whole,
        transposed=whole.T,
        column=whole[:, 2],
        block=whole[1:3, 1::2],
        half=whole.astype(np.float16),
        bfloat16=whole.astype(ml_dtypes.bfloat16),
        double=whole.astype(np.float64),
        ids=np.arange(3),
        mask=np.array([True, False]),
        scalar=np.array(2.5, np.float32),
        empty=np.empty((0, 3), np.float32),
        parameter=whole[0],
    )
    found = read(FOLDER / f"tensors_{form}.pt")
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, strict=True)


@pytest.mark.parametrize("file", ["training_zip", "training_legacy", "protocol_4"])
def test_parameters_are_found_beside_what_a_training_script_saves(file):
    found = read(FOLDER / f"{file}.pt")
    assert list(found) == ["weight", "bias"]
    np.testing.assert_array_equal(found["weight"], np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(found["bias"], [1, -1, 0.5])


@pytest.mark.parametrize("form", FORMS)
def test_old_spellings_are_read(tmp_path, form):
    """_rebuild_tensor without hooks, a parameter, torch.Size, a dict from Python 2."""
    rebuild = name("torch._utils", "_rebuild_tensor")
    size = call(name("torch", "Size"), value((2, 3)))
    old = call(rebuild, PLACE, value(0), size, value((3, 1)))
    parameter = call(
        name("torch._utils", "_rebuild_parameter"), old, b"\x88", dictionary({})
    )
    row = b"](" + value("a") + parameter + b"e"
    code = call(name("collections", "OrderedDict"), b"](" + row + b"e")
    found = read(write_code(tmp_path / "a.bin", code, form))
    np.testing.assert_array_equal(found["a"], FLOATS.reshape(2, 3))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (6, (1,), (1,)),
        (6, (), ()),
        (-1, (2,), (1,)),
        (5, (6,), (-1,)),
        (0, (2, 2), (5, 1)),
        (0, (2**62, 4), (1, 1)),
        (0, (2**40,), (0,)),
        (0, (0, 2**80), (1, 1)),
        (0, (-1, -6), (1, 1)),
        (0, (6,), (1, 1)),
        (0, (True,), (1,)),
        (0.0, (6,), (1,)),
        (0, (1,) * 70, (1,) * 70),
    ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path, offset, shape, strides):
    code = dictionary({"a": tensor(PLACE, offset, shape, strides)})
    path = write_code(tmp_path / "a.bin", code, "zip")
    with pytest.raises(UserError, match="not a readable torch file"):
        read(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0, 5, 7, 2**60])
def test_a_storage_is_as_long_as_it_says(tmp_path, form, size):
    code = dictionary({"a": tensor(storage("0", size), 0, (0,), (1,)), "b": tensor(
        storage("0", size), 0, (min(size, 5),), (1,))})  # fmt: skip
    path = write_code(tmp_path / "a.bin", code, form)
    with pytest.raises(UserError, match=r"a\.bin"):
        read(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", [("IntStorage", 6), ("FloatStorage", 3)])
def test_a_storage_has_one_type_and_one_size(tmp_path, form, other):
    kind, size = other
    second = tensor(storage("0", size, kind), 0, (3,), (1,))
    code = {"a": tensor(PLACE, 0, (6,), (1,)), "b": second}
    path = write_code(tmp_path / "a.bin", dictionary(code), form)
    with pytest.raises(UserError, match="a storage has two types or sizes"):
        read(path)


def test_a_part_cannot_be_longer_than_its_file(tmp_path):
    """Nor is memory taken for it: the directory says 2 GB, of which one float is read."""
    size = 1 << 31
    code = dictionary({"a": tensor(storage("0", size // 4), 0, (1,), (1,))})
    path = write_code(tmp_path / "a.bin", code, "zip", **{"0": bytes(24)})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"archive/data/0") - 46  # its row in the directory
    content[at + 20 : at + 28] = struct.pack("<LL", size, size)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"its part 'data/0' has {size} bytes"):
        read(path)


def test_a_pickle_longer_than_any_model_needs_is_refused(tmp_path):
    path = write_code(tmp_path / "a.bin", b"N0" * (9 << 20), "zip")
    with pytest.raises(UserError, match=r"data\.pkl is too long"):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_parts_of_one_name_are_an_error(tmp_path):
    path = tmp_path / "a.bin"
    torch_files.write(path, {"a": FLOATS}, "zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(UserError, match="two parts of one name"):
        read(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["a\nb", "\x1b[2J", "a" * 1000])
def test_a_name_that_cannot_be_printed_is_refused(tmp_path, form, key):
    torch_files.write(tmp_path / "a.bin", {key: FLOATS}, form)
    with pytest.raises(UserError, match="is no name of a tensor") as error:
        reading.tensor_names(tmp_path / "a.bin")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_is_read_when_it_is_asked_for(tmp_path, form):
    path, large = tmp_path / "a.bin", np.arange(1 << 16, dtype=np.float32)
    torch_files.write(path, {"a": large}, form)
    with reading.open_tensors(path) as tensors:
        assert tensors["a"].shape == (1 << 16,)
        assert tensors["a"].dtype == "float32"
        np.testing.assert_array_equal(tensors["a"].get(), large)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(UserError, match=r"a\.bin: "):
            tensors["a"].get()


def test_views_of_several_storages_are_told_apart_and_are_copies(tmp_path):
    views = {
        f"{key}{offset}": tensor(storage(key, 6), offset, (4,), (1,))
        for key in "01"
        for offset in (0, 2)
    }
    contents = {"0": FLOATS.tobytes(), "1": (FLOATS + 10).tobytes()}
    path = write_code(tmp_path / "a.bin", dictionary(views), "zip", **contents)
    found = read(path)
    found["00"][:] = found["10"][:] = -1
    np.testing.assert_array_equal(found["02"], [2, 3, 4, 5])
    np.testing.assert_array_equal(found["12"], [12, 13, 14, 15])


def test_a_big_endian_file_is_refused(tmp_path):
    code = dictionary({"a": tensor(PLACE, 0, (6,), (1,))})
    contents = {"0": FLOATS.tobytes()}
    torch_files.write_zip(tmp_path / "zip", code, contents, byteorder=b"big")
    machine = torch_files.MACHINE | dict(little_endian=False)
    torch_files.write_legacy(tmp_path / "legacy", code, contents, machine=machine)
    for form in FORMS:
        with pytest.raises(UserError, match="little-endian"):
            read(tmp_path / form)


def test_a_compressed_file_is_refused(tmp_path):
    code = dictionary({"a": tensor(storage("0", 2**22), 0, (2**22,), (1,))})
    torch_files.write_zip(
        tmp_path / "a", code, {"0": bytes(2**24)}, compress=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UserError, match="torch compresses nothing"):
        read(tmp_path / "a")


def test_a_key_is_a_name_in_the_archive_and_no_path(tmp_path):
    (tmp_path / "secret").write_bytes(FLOATS.tobytes())
    for key in (str(tmp_path / "secret"), "../../secret", "../data.pkl", "0\0"):
        code = dictionary({"a": tensor(storage(key, 6), 0, (6,), (1,))})
        with pytest.raises(UserError, match=r"a\.bin"):
            read(write_code(tmp_path / "a.bin", code, "zip"))


def test_a_parameter_holds_a_tensor(tmp_path):
    rebuild = name("torch._utils", "_rebuild_parameter")
    code = {"a": tensor(PLACE, 0, (6,), (1,)), "b": call(rebuild, PLACE, b"\x88", b"N")}
    path = write_code(tmp_path / "a.bin", dictionary(code), "zip")
    with pytest.raises(UserError, match="a parameter without a tensor"):
        read(path)


@pytest.mark.parametrize(("copies", "fits"), [(2, True), (40, False)])
def test_tensors_may_share_a_storage_but_not_without_end(tmp_path, copies, fits):
    place, content = storage("0", 2000), bytes(8000)
    views = {f"a{n}": tensor(place, 0, (2000,), (1,)) for n in range(copies)}
    path = tmp_path / "a.bin"
    write_code(path, dictionary(views), "zip", **{"0": content})
    if fits:
        assert len(read(path)) == copies
    else:
        with pytest.raises(UserError, match="has 320000 bytes of tensors"):
            read(path)


def to_torch(folder, form, parts):
    """Replaces model.safetensors by files of torch, one or several with an index."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    if parts == 1:
        torch_files.write(folder / "pytorch_model.bin", tensors, form)
        return
    weight_map = {}
    for part in range(parts):
        file = f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        chosen = dict(list(tensors.items())[part::parts])
        torch_files.write(folder / file, chosen, form)
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_folder_of_torch_files_is_the_same_model(tmp_path, form, parts):
    model = build("mae")
    params = random_params(model)
    weights.save_pretrained(tmp_path / "a", model, params)
    to_torch(tmp_path / "a", form, parts)
    again, loaded, report = weights.from_pretrained(tmp_path / "a", "mae")
    assert again == model
    assert_same(loaded, params)
    assert not report.converted


def test_safetensors_are_read_where_there_are_both(tmp_path):
    model = build("mae")
    params = random_params(model)
    weights.save_pretrained(tmp_path / "a", model, params)
    (tmp_path / "a" / "pytorch_model.bin").write_text("anything")
    assert_same(weights.from_pretrained(tmp_path / "a", "mae")[1], params)


def test_an_index_of_torch_files_cannot_point_out_of_its_folder(tmp_path):
    model = build("mae")
    weights.save_pretrained(tmp_path / "a", model, random_params(model))
    to_torch(tmp_path / "a", "zip", 2)
    index = tmp_path / "a" / "pytorch_model.bin.index.json"
    for file in ("../x.bin", "model.safetensors", str(tmp_path / "x.bin")):
        index.write_text(json.dumps({"weight_map": {"a": file}}))
        with pytest.raises(UserError, match="is not the name of a shard"):
            weights.model_config(tmp_path / "a")
