"""Hostile files of torch: nothing of them runs, and they end soon, in one line."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import torch_files
from support.depth import examples_of
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

from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import torch as torch_file


class Attack:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.made_of = function, arguments

    def __reduce__(self):
        return self.made_of


def hostile(marker):
    """{name in the error: opcodes}, each of which would make the file `marker`."""
    command = f"touch {marker}"
    system = call(name("os", "system"), value(command))
    nested = call(name("builtins", "getattr"), name("os", "path"), value("os"))
    return {
        "posix.system": pickle.dumps(Attack(os.system, command), 2)[2:-1],
        "posix.system, protocol 4": pickle.dumps(Attack(os.system, command), 4)[2:-1],
        "os.system": dictionary({"a": system}),
        "builtins.eval": call(
            name("builtins", "eval"), value(f"open({str(marker)!r}, 'w')")
        ),
        "builtins.getattr": call(nested, value(command)),
        "copyreg._reconstructor": call(name("copyreg", "_reconstructor")),
        "numpy.core.multiarray._reconstruct": name(
            "numpy.core.multiarray", "_reconstruct"
        ),
        "torch.load": call(name("torch", "load"), value(str(marker))),
        "torch.serialization.load": name("torch.serialization", "load"),
        "torch.FloatTensor": name("torch", "FloatTensor"),
        "argparse.os.system": value("argparse") + value("os.system") + b"\x93",
        "argparse.Namespace.__init__": value("argparse")
        + value("Namespace.__init__")
        + b"\x93",
        "collections.OrderedDict.fromkeys": name("collections", "OrderedDict.fromkeys"),
        "os.popen": tensor(call(name("os", "popen"), value(command)), 0, (6,), (1,)),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attack", hostile(""))
def test_a_global_that_is_not_allowed_is_named_and_never_run(tmp_path, form, attack):
    marker = tmp_path / "ran"
    path = write_code(tmp_path / "a.bin", hostile(marker)[attack], form)
    named = attack.split(",")[0].replace(".", r"\.")
    with pytest.raises(UserError, match=f"names '{named}'") as error:
        read(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_the_attack_works_on_pickle_itself(tmp_path):
    """Or the test above would prove nothing."""
    code = hostile(tmp_path / "ran")["os.system"]
    pickle.loads(torch_files.program(code))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "state",
    [
        value({"items": 1, "__class__": 2, "keys": None}),
        value((None, {"__class__": 1, "get": 2})),
        value({"_metadata": {"": {"version": 1}}}),
    ],
    ids=["attributes", "slots", "metadata"],
)
def test_a_state_changes_nothing(tmp_path, state):
    code = dictionary({"a": tensor(PLACE, 0, (6,), (1,))}) + state + b"b"
    found = read(write_code(tmp_path / "a.bin", code, "zip"))
    np.testing.assert_array_equal(found["a"], FLOATS)


@pytest.mark.parametrize(
    "code",
    [
        tensor(PLACE, 0, (6,), (1,)) + value({"storage": 1}) + b"b",
        PLACE + value({"size": 10**9}) + b"b",
        name("argparse", "Namespace") + value({"call": 1}) + b"b",
        call(name("torch", "FloatStorage"), value(8)),
        call(value("text")),
        b"(i" + b"os\nsystem\n",  # INST
        value("posix") + b"\x8c\x06system" + b"(tR",
        b"\x82\x01",  # EXT1: the registry of extensions
        value("an id") + b"Q",
        b"P1\n",
        b"",
        b"R",
        b"(((t",
    ],
)
def test_nothing_but_the_known_can_be_built_or_changed(tmp_path, code):
    path = write_code(tmp_path / "a.bin", dictionary({}) + code, "zip")
    with pytest.raises(UserError, match=r"a\.bin: ") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_one_line(tmp_path, form):
    path, cut = tmp_path / "a.bin", tmp_path / "cut.bin"
    torch_files.write(path, {"a": FLOATS, "b": FLOATS.reshape(2, 3)}, form)
    content = path.read_bytes()
    assert set(read(path)) == {"a", "b"}
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.bin: ") as error:
            read(cut)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_file_is_found_out_before_its_tensors_are_asked_for(tmp_path, form):
    path = tmp_path / "a.bin"
    torch_files.write(path, {"a": FLOATS}, form)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError), torch_file.open_file(path):
        pass


def ends_well(path):
    """Reads what can be read; no other exception than a UserError of one line."""
    try:
        arrays = read(path)
    except UserError as error:
        return "\n" not in str(error)
    limit = torch_file.MAX_SHARING * path.stat().st_size
    return sum(array.nbytes for array in arrays.values()) <= limit


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=examples_of(300), deadline=None)
@given(data=st.data())
def test_flipped_bits_end_in_one_line_or_in_arrays(tmp_path_factory, form, data):
    path = tmp_path_factory.mktemp("flip") / "a.bin"
    torch_files.write(path, {"a": FLOATS, "b": FLOATS.reshape(2, 3)}, form)
    content = bytearray(path.read_bytes())
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 7))
    for place, bit in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] ^= 1 << bit
    path.write_bytes(content)
    assert ends_well(path)


PIECES = [
    *(bytes([code]) for code in range(256)),
    *(b"](", b"}(", b"(", b"t", b"q\0", b"h\0", b"\x85", b"\x86", b"\x87", b"R", b"b"),
    *(value("a"), value(3), PLACE, name("torch._utils", "_rebuild_tensor_v2")),
    *(name("collections", "OrderedDict"), tensor(PLACE, 0, (6,), (1,)), b"Q", b"s"),
]


@settings(max_examples=examples_of(500), deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_program_ends_in_one_line_or_in_arrays(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("program") / "a.bin"
    assert ends_well(write_code(path, b"".join(pieces), "zip"))


def bombs():
    """Small programs that take for ever, or all memory, where they are trusted."""
    keys = b"".join(value(n * (2**61 - 1)) + b"N" for n in range(1, 100_000))
    rows = b"](" + b"".join(b"]" + b"(K\1K\2e" for _ in range(100_000)) + b"e"
    copy = name("collections", "OrderedDict")
    share = {
        n: tensor(storage("0", 2**18), 0, (2**18,), (1,)) for n in map(str, range(900))
    }
    return {
        "hash": b"}" + b")" + b"q\0h\0\x86" * 60 + b"Ns",
        "memo": b"Nr\xff\xff\xff\xff",
        "collisions": b"}(" + keys + b"u",
        "copies": copy + b"q\0" + rows + b"q\1" + b"h\0h\1\x85R" * 100_000,
        "long text": b"\x8d" + b"\xff" * 7 + b"\x0f",
        "bytearray": b"\x96" + b"\xff" * 5 + b"\0\0\0",
        "frame": b"\x95" + b"\xff" * 7 + b"\x7f",
        "long": b"\x8b\xff\xff\xff\x7f",
        "steps": b"]" * 2_000_000,
        "dictionaries": b"}" * 2_000_000,
        "shared": dictionary(share),
    }  # fmt: skip


SCRIPT = """
import resource, sys, time
from pathlib import Path
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import torch as torch_file

taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)
for path in map(Path, sys.argv[1:]):
    start = time.process_time()
    try:
        with torch_file.open_file(path) as file:
            text = f"{len([file.get_tensor(name) for name in file.keys()])} tensors"
    except UserError as error:
        text = str(error)
    print(path.name, f"{time.process_time() - start:.1f}", text, sep="\\t")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_bombs_end_soon_and_in_one_gigabyte(tmp_path):
    contents = {"shared": bytes(2**20)}
    paths = [
        write_code(
            tmp_path / kind, code, "zip", **{"0": contents.get(kind, FLOATS.tobytes())}
        )
        for kind, code in bombs().items()
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rows = [line.split("\t") for line in child.stdout.splitlines()]
    assert len(rows) == len(paths)
    for kind, seconds, text in rows:
        assert float(seconds) < 20, kind
        assert "MemoryError" not in text, kind
        assert text.startswith(str(tmp_path)), (kind, text)
