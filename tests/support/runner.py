"""Runs an experiment of `tiny_runs` in a process of its own, and reads what it left."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import load_file

TESTS = Path(__file__).parent.parent
# A run in a process of its own. It writes the examples of every batch that a step used,
# and can stop itself with a signal just before a given step.
RUNNER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
from support import tiny_runs
from flax_adapt import __main__
from flax_adapt.base import config
from flax_adapt.stage import loop

workdir, stop = sys.argv[1], json.loads(sys.argv[2])
seen = open(Path(workdir) / "seen.jsonl", "a")
advance = loop.Run.advance

def spying(run, step):
    batches, stage = run.batches, run.stage.label
    if stop and (stage, step) == (stop["stage"], stop["step"]):
        run.checkpoints._manager.wait_until_finished()
        os.kill(os.getpid(), stop["signal"])
    class Spy:
        def __next__(self):
            batch = next(batches)
            line = dict(stage=stage, step=step, index=batch["index"].tolist())
            seen.write(json.dumps(line) + "\\n")
            seen.flush()
            return batch
    run.batches = Spy()
    advance(run, step)
    run.batches = batches

loop.Run.advance = spying
experiment = tiny_runs.experiment(
    sys.argv[5], Path(sys.argv[6]), **json.loads(sys.argv[4])
)
config.load = lambda name: experiment
sys.exit(__main__.main(["run", "--config=tiny", f"--workdir={{workdir}}", "--noreport"]))
"""


def launch(straight, workdir, stop=None, devices=1, **changes):
    """Runs the experiment of `straight` in another workdir (or in its own)."""
    workdir.mkdir(exist_ok=True)
    arguments = [str(workdir), json.dumps(stop), str(devices), json.dumps(changes)]
    arguments += [straight.parent.name, str(straight.parent)]
    code = RUNNER.format(tests=str(TESTS))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
    )


def tensors(workdir, stage):
    """Exported parameters and the whole last checkpoint of a stage, as arrays."""
    folder = workdir / "stages" / stage
    step = max(int(p.name) for p in (folder / "checkpoints").iterdir())
    saved = folder / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(saved).item_metadata.tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names
        )
        state = reader.restore(saved, restore_args=as_numpy)
    return load_file(folder / "export" / "model.safetensors"), state


def last_seen(workdir):
    """(stage, step) -> indices; a step that ran again must have seen the same."""
    seen = {}
    for line in (workdir / "seen.jsonl").read_text().splitlines():
        row = json.loads(line)
        place = (row["stage"], row["step"])
        assert seen.setdefault(place, row["index"]) == row["index"]
    return seen


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
