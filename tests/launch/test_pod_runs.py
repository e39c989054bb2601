"""Whole experiments by `launch/local_pod.py`: 2 processes with 4 devices give what one gives.

All are `long`: every process compiles for itself.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent.parent
LOCAL_POD = TESTS.parent / "launch" / "local_pod.py"
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support import tiny_runs, tiny_text

def get_config():
    root = Path({root!r})
    if (root / "made").exists():  # the files are there: processes read them by now
        tiny_text.corpus_folder = tiny_text.bert_folder = lambda path: path
    experiment = tiny_runs.experiment({name!r}, root)
    (root / "made").touch()
    return experiment
"""
# Masked images, self-distillation and classifiers; masked text; contrast; GLAD.
EXPERIMENTS = ("image", "text", "contrast", "glad")
MESHES = {
    "data": (-1, 1, 1),
    "fsdp": (1, -1, 1),
    "tensor": (4, 1, 2),
    "mixed": (2, 2, 2),
}
# Meshes on which every stage also recomputes its blocks, in a loop.
SAVING = ("fsdp", "mixed")
TIMEOUT = 1800
STEPS = "--config.stages.0.num_steps=60"
pytestmark = pytest.mark.long


def start(root, workdir, processes, devices, *flags, options=()):
    command = [sys.executable, LOCAL_POD, f"--processes={processes}"]
    command += [f"--devices={devices}", "--grace=20", *options, "run", "--noreport"]
    command += [f"--config={root}/config.py", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments, **options):
    """Runs to the end; returns what was printed."""
    started = start(*arguments, **options)
    out, error = started.communicate(timeout=TIMEOUT)
    assert started.returncode == 0, error
    return out


def mesh_flags(name):
    axes = zip(("data", "fsdp", "tensor"), MESHES[name], strict=True)
    return [f"--config.mesh.{axis}={size}" for axis, size in axes]


def memory_flags(name, alone):
    """Flags that save memory in every stage of the config of a workdir, on some meshes."""
    stages = json.loads((alone / "config.json").read_text())["stages"]
    saving = ("remat=blocks", "scan=True") if name in SAVING else ()
    return [
        f"--config.stages.{n}.memory.{field}"
        for n in range(len(stages))
        for field in saving
    ]


def losses(workdir):
    """{(stage, step): loss}, of training and evaluation."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = {}
    for line in map(json.loads, lines):
        for name in ("loss", "eval_loss"):
            if name in line:
                found[line["stage"], line["step"], name] = line[name]
    return found


def assert_same_losses(workdir, other):
    assert losses(workdir) == pytest.approx(losses(other), rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Returns a function: name -> (folder of the config, workdir of one process)."""
    made = {}

    def make(name, *flags):
        if (name, flags) not in made:
            root = tmp_path_factory.mktemp("pod") / name
            root.mkdir()
            code = CONFIG.format(tests=str(TESTS), name=name, root=str(root))
            (root / "config.py").write_text(code)
            run(root, root / "alone", 1, 1, *flags)
            made[name, flags] = root, root / "alone"
        return made[name, flags]

    return make


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_processes_with_four_devices_have_the_losses_of_one(
    experiments, tmp_path, name, mesh
):
    root, alone = experiments(name)
    flags = [*mesh_flags(mesh), *memory_flags(mesh, alone)]
    run(root, tmp_path / "run", 2, 4, *flags)
    assert_same_losses(tmp_path / "run", alone)


def wait_for_step(started, workdir, step):
    deadline = time.monotonic() + TIMEOUT
    while not any(done >= step for _, done, _ in losses(workdir)):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def process_of(started, number):
    """The pid of process `number`, a child of the launcher."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    for pid in children.read_text().split():
        if f"--process_id={number}" in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    raise AssertionError(f"process {number} does not run")


def test_what_two_saved_one_and_four_continue(experiments, tmp_path):
    """SIGTERM to process 1 alone saves on both; then other devices and another mesh."""
    root, alone = experiments("image", STEPS)
    saved, options = tmp_path / "saved", ["--signal-to=1"]
    flags = [STEPS, *mesh_flags("mixed")]
    started = start(root, saved, 2, 4, *flags, options=options)
    wait_for_step(started, saved, 5)
    started.send_signal(signal.SIGTERM)
    out, error = started.communicate(timeout=TIMEOUT)
    assert started.returncode == 0, error
    assert "[0] stage pretrain stopped at step " in out
    assert "[1] stage pretrain stopped at step " in out
    for processes, devices, mesh in ((1, 1, "data"), (4, 2, "fsdp")):
        workdir = tmp_path / f"on_{processes}"
        shutil.copytree(saved, workdir)
        run(root, workdir, processes, devices, STEPS, *mesh_flags(mesh))
        assert_same_losses(workdir, alone)


def is_saving(workdir):
    return any(workdir.glob("stages/pretrain/checkpoints/*tmp*"))


@pytest.mark.parametrize("during", ["step", "save"])
def test_a_killed_process_ends_the_other_and_the_run_goes_on_the_same(
    experiments, tmp_path, during
):
    root, alone = experiments("image", STEPS)
    workdir, flags = tmp_path / "run", [STEPS, *mesh_flags("fsdp")]
    started = start(root, workdir, 2, 4, *flags)
    wait_for_step(started, workdir, 5)
    while during == "save" and not is_saving(workdir):
        assert started.poll() is None, "it never saves"
    os.kill(process_of(started, 1), signal.SIGKILL)
    killed = time.monotonic()
    _, error = started.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert started.returncode == 128 + signal.SIGKILL
    assert "local_pod: process 1 was ended by signal 9" in error.splitlines()[-1]
    assert not (workdir / "results.json").exists()
    run(root, workdir, 2, 4, *flags)
    assert_same_losses(workdir, alone)


def measure_all(root, alone, folder, processes, devices):
    """Writes features, predictions and eval.json of a finished run into `folder`."""
    (export,) = alone.glob("stages/finetune*/export")
    shutil.copytree(alone, folder / "run")
    read = [f"--init={export}", "--data=builtin:digits"]
    for words in (
        ["features", *read, f"--out={folder / 'features.npz'}", "--batch_size=12"],
        ["predict", *read, f"--out={folder / 'predicted.csv'}"],
        ["eval", f"--config={root}/config.py", f"--workdir={folder / 'run'}"],
    ):
        command = [sys.executable, LOCAL_POD, f"--processes={processes}"]
        command += [f"--devices={devices}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr
    with np.load(folder / "features.npz") as found:
        arrays = dict(found)
    rows = list(csv.reader((folder / "predicted.csv").read_text().splitlines()))
    return arrays, rows, json.loads((folder / "run" / "eval.json").read_text())


def test_features_predictions_and_eval_of_two_processes_are_those_of_one(
    experiments, tmp_path
):
    root, alone = experiments("image")
    found = []
    for processes, devices in ((1, 1), (2, 4)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found.append(measure_all(root, alone, folder, processes, devices))
    (arrays, rows, measured), (others, other_rows, other_measured) = found
    embeddings = arrays.pop("embeddings")
    np.testing.assert_allclose(others.pop("embeddings"), embeddings, atol=1e-5)
    assert arrays.keys() == others.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(others[name], values)
    assert [row[:2] for row in other_rows] == [row[:2] for row in rows]
    for row, other in zip(measured, other_measured, strict=True):
        words = {name for name, value in row.items() if isinstance(value, str)}
        assert {name: other.pop(name) for name in words} == {
            name: row.pop(name) for name in words
        }
        assert other == pytest.approx(row, rel=1e-3, abs=0.01)


def test_a_host_holds_its_part_of_the_weights():
    """Loading and exporting ViT-H: below 0.7 of the file and 1 GB (process 0 exports)."""
    script = TESTS.parent / "benchmarks" / "host_memory.py"
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (limit,) = (float(line.split()[-1]) for line in lines if line.startswith("file: "))
    loaded = [float(line.split()[2]) for line in lines if "after loading" in line]
    exported = [
        float(line.split()[2])
        for line in lines
        if line.startswith("process 1") and "after the export" in line
    ]
    assert len(loaded) == 2
    assert len(exported) == 1
    assert max(*loaded, *exported) < limit
