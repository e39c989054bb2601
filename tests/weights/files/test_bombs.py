"""Files of weights made to run something, or to take all memory and time."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import torch_files
from support.attacks import Attack, npy, write_header
from support.hf_folders import build, change_config, random_params, save_text
from support.hostile import npz_arrays, outcome

from flax_adapt import weights
from flax_adapt.weights.files import reading
from flax_adapt.weights.files import torch as torch_file


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "model.safetensors", "config.json", "a.pth", "a.npz"]
)
def test_a_pickle_in_the_place_of_any_file_never_runs(tmp_path, file):
    folder, marker = tmp_path / "a", tmp_path / "ran"
    weights.save_pretrained(folder, build("mae"), random_params(build("mae")))
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    attack = pickle.dumps({"a": Attack(marker)})
    for content in (attack, torch_files.MAGIC.to_bytes(10, "little") + attack):
        (folder / file).write_bytes(content)
        path = folder / file if file.startswith("a.") else folder
        function = npz_arrays if file == "a.npz" else reading.tensor_names
        if file == "config.json":
            function = weights.model_config
        assert outcome(function, path) is None
    assert not marker.exists()


def stored_zip(path, size):
    """A directory of `size` bytes of parts without a name, and little else."""
    row = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *[0] * 14)
    rows = row * (size // len(row))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, len(rows), 0, 0)
    path.write_bytes(torch_file.ZIP + rows + end)


def sparse(path, header=b""):
    """A file that says it is 100 GB and takes none."""
    path.write_bytes(header)
    os.truncate(path, 100 << 30)


def compressed_bomb(path):
    """100 MB of zeros, packed in 100 KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        content = npy(shape=f"({25 << 20},)", data=bytes(100 << 20))
        archive.writestr("a.npy", content)


def write_bombs(folder):
    """Files of which each would take all memory, or minutes, where it is trusted."""
    write_header(folder / "lists.safetensors", b"[" + b"[]," * (5 << 20) + b"[]]")
    write_header(folder / "deep.safetensors", b'{"a":' * (3 << 20))
    write_header(folder / "number.safetensors", b'{"a":' + b"9" * (15 << 20))
    row = b'"%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    rows = b",".join(row % n for n in range(60_000))
    write_header(folder / "many.safetensors", b"{" + rows + b"}", b"")
    write_header(folder / "long.safetensors", b" " * (40 << 20))
    sparse(folder / "sparse.safetensors", struct.pack("<Q", 90 << 30))
    for name in ("sparse.npz", "sparse.bin", "sparse.json"):
        sparse(folder / name)
    sparse(folder / "legacy.bin", pickle.dumps(torch_files.MAGIC, 2))
    for name in ("directory.npz", "directory.bin", "long.npz"):
        stored_zip(folder / name, (15 if "d" in name else 40) << 20)
    compressed_bomb(folder / "zeros.npz")
    (folder / "objects.json").write_bytes(b"[" + b"{}," * (5 << 20) + b"{}]")


SIZES = [
    *(dict(num_hidden_layers=n) for n in (257, 10**9)),
    *(dict(hidden_size=n, num_attention_heads=1) for n in (16_384, 10**9, 10**18)),
    *(dict(image_size=n, patch_size=1) for n in (1000, 8192, 10**9)),
    *(dict(num_channels=n) for n in (1024, 10**9)),
    *(dict(intermediate_size=n) for n in (1 << 17, 10**12, 10**30)),
    dict(decoder_num_hidden_layers=10**9),
    dict(decoder_hidden_size=16_384, decoder_intermediate_size=1 << 17),
]
TEXT_SIZES = [dict(vocab_size=n) for n in (10**6, 10**18, 10**30)]
TEXT_SIZES += [dict(max_position_embeddings=10**10), dict(type_vocab_size=10**10)]


def write_folders(folder):
    """Models whose config asks for parameters of any size."""
    for n, sizes in enumerate(SIZES):
        model = build("mae")
        weights.save_pretrained(folder / f"vit{n}", model, random_params(model))
        change_config(folder / f"vit{n}", **sizes)
    for n, sizes in enumerate(TEXT_SIZES):
        save_text(folder / f"text{n}", "bert", "mlm")
        change_config(folder / f"text{n}", **sizes)


SCRIPT = """
import resource, sys, time
from pathlib import Path
import jax
from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import npz as npz_file, reading

def load(path):
    if path.suffix == ".npz":
        with npz_file.open_tensors(path) as tensors:
            [tensor.read() for tensor in tensors.values()]
    elif path.suffix == ".json":
        reading.read_json(path)
    elif path.is_dir():
        fresh = "decoder" if path.name.startswith("vit") else "mlm"
        task = "mae" if path.name.startswith("vit") else "mlm"
        key = jax.random.key(0)
        found = weights.from_pretrained(path, task, fresh=(fresh,), key=key)
        jax.block_until_ready(found[1])
    else:
        with reading.open_tensors(path) as tensors:
            [tensor.get() for tensor in tensors.values()]

jax.random.key(0)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)
for path in map(Path, sys.argv[1:]):
    start = time.process_time()
    try:
        load(path)
        text = "loaded"
    except UserError as error:
        text = str(error)
    print(path.name, f"{time.process_time() - start:.1f}", text[:2000], sep="\\t")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_bombs_end_soon_and_in_one_gigabyte(tmp_path):
    write_bombs(tmp_path)
    write_folders(tmp_path)
    paths = sorted(tmp_path.iterdir())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    rows = [line.split("\t") for line in child.stdout.splitlines()]
    assert len(rows) == len(paths)
    for name, seconds, text in rows:
        print(name, seconds, text[-200:])  # pytest shows it where the test fails
        assert float(seconds) < 20, name
        assert "MemoryError" not in text, name
        assert text.startswith(str(tmp_path)), (name, text)
