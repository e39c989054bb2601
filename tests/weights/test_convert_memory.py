"""Weights larger than memory: a conversion takes no more of it for a larger file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support import torch_files
from support.hf_folders import SIZES, save, tensors_of

# Each line: source, target, format of the target, flags. Together every format is read
# and written, and a pickle of torch in its two forms.
STEPS = (
    ("hf", "bv.npz", "big_vision", ()),
    ("bv.npz", "timm", "timm", ()),
    ("timm", "orbax", "orbax", ("--change=gelu=erf",)),
    ("orbax", "fb.safetensors", "facebook_mae", ()),
    ("a.pth", "from_pth", "huggingface", ("--known=heads=8",)),
    ("bin", "from_bin", "orbax", ()),
)
# The peak that `getrusage` tells is at least that of the process that started this one.
MEASURE = """
import json, sys
from pathlib import Path
from flax_adapt import __main__

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith(name)]
    return int(found) * 1024

small, large, steps = sys.argv[1:]
for folder in (Path(small), Path(large)):
    peaks = []
    for source, target, form, flags in json.loads(steps):
        before = status("VmRSS")
        paths = [f"--from={folder / source}", f"--to={folder / target}"]
        assert __main__.main(["convert", *paths, f"--format={form}", *flags]) == 0
        peaks.append(status("VmHWM") - before)
print("PEAKS", *peaks)
"""


def sources(folder, width):
    """The files that no step makes; returns the size of the largest."""
    sizes = SIZES | dict(width=width, mlp_dim=2 * width, depth=14, heads=8)
    folder.mkdir()
    save(folder / "hf", "encoder", **sizes, gelu="tanh")
    save(folder / "pth.safetensors", "encoder", "facebook_mae", **sizes)
    tensors = load_file(folder / "pth.safetensors")
    torch_files.write(folder / "a.pth", tensors, "zip")
    save(folder / "bin", "encoder", **sizes)
    torch_files.write(
        folder / "bin/pytorch_model.bin", tensors_of(folder / "bin"), "legacy"
    )
    (folder / "bin/model.safetensors").unlink()
    return (folder / "a.pth").stat().st_size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Of a file of 120 MB a command needs less than half, beside what it started with.

    The same commands on small files come first: they bring in all of JAX.
    """
    sources(tmp_path / "small", 8)
    largest = sources(tmp_path / "large", 512)
    assert largest > 100e6
    folders = [str(tmp_path / size) for size in ("small", "large")]
    command = [sys.executable, "-c", MEASURE, *folders, json.dumps(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = list(map(int, done.stdout.split("PEAKS")[1].split()))
    print(f"{largest} bytes, peaks {peaks}")
    assert max(peaks) < largest / 2, peaks
