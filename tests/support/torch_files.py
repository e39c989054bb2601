"""Files as torch.save writes them, made by hand: no torch is needed, and lies are easy."""

import pickle
import struct
import zipfile

import numpy as np

from flax_adapt.weights.files import torch as torch_file

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = dict(protocol_version=VERSION, little_endian=True, type_sizes={})
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "bfloat16": "BFloat16Storage",
}


def value(thing):
    """The opcodes that push a plain thing."""
    return pickle.dumps(thing, 2)[2:-1]


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key, size, kind="FloatStorage"):
    fields = value("storage"), name("torch", kind), value(key), value("cpu")
    return b"(" + b"".join(fields) + value(size) + b"tQ"


def tensor(place, offset, shape, strides):
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    hooks = call(name("collections", "OrderedDict"))
    numbers = value(offset), value(tuple(shape)), value(tuple(strides))
    return call(rebuild, place, *numbers, b"\x89", hooks)


def dictionary(items):
    """`items`: {key: opcodes}."""
    rows = b"".join(value(key) + code for key, code in items.items())
    return call(name("collections", "OrderedDict")) + b"(" + rows + b"u"


def program(code):
    return b"\x80\x02" + code + b"."


def write_zip(
    path, code, storages, *, byteorder=b"little", compress=zipfile.ZIP_STORED
):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", program(code))
        archive.writestr("archive/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")


def write_legacy(path, code, storages, *, machine=MACHINE, itemsize=4):
    head = [pickle.dumps(thing, 2) for thing in (MAGIC, VERSION, machine)]
    with open(path, "wb") as file:
        file.write(b"".join(head) + program(code))
        file.write(pickle.dumps(list(storages), 2))
        for content in storages.values():
            file.write(struct.pack("<q", len(content) // itemsize) + content)


WRITERS = {"zip": write_zip, "legacy": write_legacy}


def write(path, tensors, form):
    """Writes {name: float32 array}, each with its storage."""
    write_sets(path, {"": tensors}, form)


def write_sets(path, sets, form="zip", **others):
    """Writes {place: {name: float32 array}} as {place: state dict}; "" is the top.

    A place "a.b" is a state dict in a dict. others: plain things beside them.
    """
    rows, storages = {key: value(thing) for key, thing in others.items()}, {}
    for place, tensors in sets.items():
        items = _items(tensors, storages)
        *outer, last = place.split(".")
        inner = {last: dictionary(items)} if place else items
        for name in reversed(outer):
            inner = {name: dictionary(inner)}
        rows |= inner
    WRITERS[form](path, dictionary(rows), storages)


def _items(tensors, storages):
    """The opcodes of each tensor; its bytes go to `storages`. float32, but for int32."""
    items = {}
    for key, array in tensors.items():
        dtype = np.int32 if array.dtype == np.int32 else np.float32
        array, number = np.ascontiguousarray(array, dtype), str(len(storages))
        strides = [step // 4 for step in array.strides]
        place = storage(number, array.size, STORAGES[array.dtype.name])
        items[key] = tensor(place, 0, array.shape, strides)
        storages[number] = array.tobytes()
    return items


FORMS = sorted(WRITERS)
FLOATS = np.arange(6, dtype=np.float32)
PLACE = storage("0", FLOATS.size)


def write_code(path, code, form, **storages):
    """Writes a program, with FLOATS as storage "0" or with other storages."""
    WRITERS[form](path, code, storages or {"0": FLOATS.tobytes()})
    return path


def read(path):
    """{name: array} of a file."""
    with torch_file.open_file(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
