"""Runs experiments in two real processes on one machine; each has one device."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict
from support import tiny, tiny_runs

from flax_adapt import defaults

TESTS = Path(__file__).parent.parent
TIMEOUT = 900  # a process that waits for another never ends by itself
# One of the processes. Told to, each sends itself SIGTERM before a step; from then on it
# is slow, since JAX notices a signal within a second. Process 1 may write nothing.
WORKER = """
import json, os, signal, sys, time
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
from support import two_processes
from flax_adapt import __main__, weights
from flax_adapt.base import config, logs
from flax_adapt.stage import loop

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
    logs._replace = logs._Events = refused
config.load = lambda name: two_processes.experiment(**changes)
sys.exit(__main__.main(["run", "--config=tiny", "--noreport", *flags]))
"""
MODEL = {**tiny.MODEL, "depth": 1}
ALL_DATA = dict(data=-1, fsdp=1, tensor=1)


def experiment(mesh=ALL_DATA, num_stages=2, texts="", replays=False, task=""):
    """Process 1 finds nothing in the compile cache, so there is little to compile.

    texts: a folder for the files of the experiment on text, which then is the one.
    replays: pre-training replays digits, half as many as it has. task: weights of a task
    before, to which a last stage is held.
    """
    if texts:
        whole = tiny_runs.texts(Path(texts), mesh=mesh)
        pretrain, _, finetune = whole.stages
        return ConfigDict({**whole, "stages": (pretrain, finetune)}).lock()
    replay = defaults.replay(tiny.digits(), 0.5) if replays else None
    stages = tiny.pretrain(num_steps=8, replay=replay), tiny.finetune()
    last = [held(task)] if task else []
    return tiny.experiment(*stages[:num_stages], *last, mesh=mesh, model=MODEL)


def held(task):
    """Low-rank adaptors, logits of the task for rows that are replayed; then a Fisher."""
    return tiny.finetune(
        "held",
        init_from=task,
        num_steps=2,
        eval=None,
        replay=defaults.replay(tiny.digits(subset=tiny.FEW), 1.0, buffer_size=10),
        penalties=(defaults.der((task,), weight=1.0),),
        model=defaults.stage_model(lora=defaults.lora(rank=2, alpha=4.0)),
        fisher=defaults.fisher(num_examples=13, batch_size=3),
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, process_id, port, stop, changes):
    flags = [f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}"]
    flags += ["--num_processes=2", f"--process_id={process_id}"]
    code = WORKER.format(tests=str(TESTS))
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
