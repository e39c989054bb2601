"""Two real processes on one machine: the numbers, files and stops of one process."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tiny_runs
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from flax_adapt import __main__, checkpoint, defaults, preemption, recipe, sharding
from flax_adapt.errors import UserError

HERE = Path(__file__).parent
TIMEOUT = 240  # a process that waits for another never ends by itself
# One of the processes. Told to, each sends itself SIGTERM before a step; from then on it
# is slow, since JAX notices a signal within a second. Process 1 may write nothing.
WORKER = """
import json, os, signal, sys, time
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
import test_processes
from flax_adapt import __main__, config, logs, loop, weights

stop, changes, flags = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
advance = loop.Run.advance

def spying(run, step):
    if stop and (run.stage.label, step) == (stop["stage"], stop["step"]):
        os.kill(os.getpid(), signal.SIGTERM)
    if stop and step >= stop["step"]:
        time.sleep(1)
    advance(run, step)

def refused(*arguments, **options):
    raise AssertionError("process 1 writes")

loop.Run.advance = spying
if "--process_id=1" in flags:
    logs.write_json = weights.save_pretrained = refused
    logs._replace = logs.SummaryWriter = refused
config.load = lambda name: test_processes.experiment(**changes)
sys.exit(__main__.main(["run", "--config=tiny", *flags]))
"""
ALL_DATA = dict(data=-1, fsdp=1, tensor=1)


def experiment(mesh=ALL_DATA, num_stages=2, texts="", replays=False):
    """Process 1 finds nothing in the compile cache, so there is little to compile.

    texts: a folder for the files of the experiment on text, which then is the one.
    replays: pre-training replays digits, half as many as it has.
    """
    if texts:
        whole = tiny_runs.texts(Path(texts), mesh=mesh)
        pretrain, _, finetune = whole.stages
        return ConfigDict({**whole, "stages": (pretrain, finetune)}).lock()
    replay = defaults.replay(tiny.digits(), 0.5) if replays else None
    stages = tiny.pretrain(num_steps=8, replay=replay), tiny.finetune()
    model = {**tiny.MODEL, "depth": 1}
    return tiny.experiment(*stages[:num_stages], mesh=mesh, model=model)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, process_id, port, stop, changes):
    flags = [f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}"]
    flags += ["--num_processes=2", f"--process_id={process_id}"]
    code = WORKER.format(tests=str(HERE))
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(stop), json.dumps(changes), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_two(workdir, stop=None, **changes):
    """Runs both to their end; returns what each printed."""
    port = free_port()
    both = [start(workdir, number, port, stop, changes) for number in (0, 1)]
    try:
        deadline = time.monotonic() + TIMEOUT
        while any(each.poll() is None for each in both):
            failed = any(each.returncode for each in both)
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        # One may be on its way out; one that waits for a dead partner is ended below.
        deadline = time.monotonic() + 10
        while any(each.poll() is None for each in both) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for each in both:
            each.kill()
    printed = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], printed
    return [out for out, _ in printed]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, its eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    recipe.run(experiment(), workdir, force=False)
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two processes that got SIGTERM, and what they printed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, run_two(workdir, dict(stage="pretrain", step=3))


@pytest.fixture(scope="module")
def together(stopped, tmp_path_factory):
    """Two processes that went on to the end."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(stopped[0], workdir)
    return workdir, run_two(workdir)


def assert_same_run(workdir, other, stages=("pretrain", "finetune")):
    for stage in stages:
        folders = [w / "stages" / stage for w in (workdir, other)]
        ours, theirs = (json.loads((f / "result.json").read_text()) for f in folders)
        for name in ("train", "eval"):
            assert ours[name].keys() == theirs[name].keys()
            for metric, value in ours[name].items():
                assert value == pytest.approx(theirs[name][metric], rel=1e-5), metric
        ours, theirs = (load_file(f / "export" / "model.safetensors") for f in folders)
        assert ours.keys() == theirs.keys()
        for name, leaf in theirs.items():
            if name.endswith("key.bias"):
                continue  # its gradient is rounding alone: test_step.py
            limit = 1e-5 * np.abs(leaf).max()
            np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=limit)


def test_sigterm_stops_both_at_the_same_step_with_a_checkpoint(stopped):
    workdir, printed = stopped
    lines = [text.strip().splitlines()[-1] for text in printed]
    assert lines[0] == lines[1]
    assert lines[0].startswith("stage pretrain stopped at step ")
    step = int(lines[0].split(";")[0].rsplit(" ", 1)[1])
    assert 3 <= step < 8
    assert (workdir / f"stages/pretrain/checkpoints/{step}").is_dir()
    assert not (workdir / "results.json").exists()


def test_two_processes_give_the_numbers_of_one(together, alone):
    assert_same_run(together[0], alone)
    assert "accuracy" in together[1][0]  # the table
    assert "accuracy" not in together[1][1]


def test_two_processes_give_the_numbers_of_one_on_text(tmp_path):
    """Buckets, packed rows, and F1, which needs the decisions of both."""
    texts = str(tmp_path / "files")
    recipe.run(experiment(texts=texts), tmp_path / "alone", force=False)
    run_two(tmp_path / "run", texts=texts)
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_what_two_processes_saved_one_continues(stopped, alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    recipe.run(experiment(), workdir, force=False)
    assert_same_run(workdir, alone)


def test_every_step_is_logged_once(together):
    text = (together[0] / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    logged = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    wanted = [("pretrain", s) for s in range(1, 9)]
    assert logged == wanted + [("finetune", s) for s in range(1, 5)]
    assert len(list(together[0].glob("events/finetune/*"))) == 1


def test_processes_that_share_a_model_feed_the_same_rows(alone, tmp_path):
    """Each holds half of every matrix, so both need the whole batch."""
    workdir = tmp_path / "run"
    run_two(workdir, mesh=dict(data=1, fsdp=1, tensor=2), num_stages=1)
    assert_same_run(workdir, alone, ["pretrain"])


def test_two_processes_replay_what_one_replays(tmp_path):
    """Each draws the same examples of the source, and feeds its part of every batch."""
    changes = dict(num_stages=1, replays=True)
    workdirs = tmp_path / "alone", tmp_path / "run"
    recipe.run(experiment(**changes), workdirs[0], force=False)
    run_two(workdirs[1], **changes)
    assert_same_run(workdirs[1], workdirs[0], ["pretrain"])
    alone, together = (
        json.loads((workdir / "stages/pretrain/replay.json").read_text())
        for workdir in workdirs
    )
    assert alone == together
    assert len(alone["names"]) == 898


class Service:
    """JAX's preemption service on one of two processes that are always level.

    After a signal, all stop where `number` is one above the largest so far; never later.
    """

    def __init__(self):
        self.last, self.stops_at = 0, None

    def signal(self):
        self.stops_at = self.last + 1

    def poll(self, number):
        self.last = number
        return number == self.stops_at


@pytest.mark.parametrize("after", range(1, 8))
def test_a_signal_at_any_time_is_heard_at_the_next_poll(monkeypatch, after):
    """Also after the last step of a stage, when the next one starts again at step 0."""
    service, handler = Service(), preemption.Preemption()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    name = "reached_preemption_sync_point"
    monkeypatch.setattr(preemption.multihost_utils, name, service.poll)
    assert not any(handler.requested() for _ in range(after))
    service.signal()
    assert handler.requested()


def test_orbax_does_not_poll_the_preemption_service(monkeypatch, tmp_path):
    """It asks with step numbers, from a thread, and so would hide a signal."""
    asked = []
    name = "jax.experimental.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(name, lambda step: asked.append(step) or False)
    section = tiny.experiment(tiny.pretrain()).checkpoint
    saves = checkpoint.Checkpoints(tmp_path / "saves", section, "loss", "min")
    manager = saves._manager
    assert manager.should_save(1)
    assert not manager.reached_preemption(1)
    saves.close()
    assert not asked


def test_a_process_with_a_mistake_does_not_wait_for_the_others(monkeypatch, capsys):
    """An ordinary exit does, for minutes, and is then aborted with another code."""
    codes = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("os._exit", codes.append)
    __main__.main(["nope"])
    assert codes == [2]
    assert "'nope' is no command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        (dict(data=8, fsdp=1, tensor=1), (0, 1)),
        (dict(data=2, fsdp=2, tensor=2), (0, 1)),
        (dict(data=1, fsdp=1, tensor=8), (0, 1)),
    ],
)
def test_a_process_alone_feeds_the_whole_batch(sizes, share):
    assert sharding.share_of_process(sharding.make_mesh(sizes)) == share


def test_processes_that_would_share_rows_unevenly_are_refused():
    mesh = type("Mesh", (), dict(shape=dict(data=2, fsdp=1, tensor=3)))
    mesh.local_devices = jax.devices()[:2]
    with pytest.raises(UserError, match="tensor=3 must divide the 2 devices"):
        sharding.share_of_process(mesh)
