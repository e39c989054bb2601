"""Seconds of a training step: ours beside transformers in torch, in turns, in one process.

Run     pip install '.[parity]' && python benchmarks/steps.py --program=mae [--size=S] \
            [--batch=16] [--length=128] [--dtype=float32] [--rounds=5] [--compile]
Prints  one JSON line: best and median seconds of each, their ratio (theirs / ours),
        examples a second, compile seconds, FLOP/s as a share of the best matrix product of
        this machine, memory. The weights and the batch are the same. It reports nothing
        where the losses of the first examples differ by more than 1e-4 in float32. Both
        compile at the same time, so compile seconds are those of a busy machine.
Programs: mae, distill, mlm, finetune, contrast, features, and glad, which has no reference
        and is measured alone; distill_stage with --repeat=3 is a stage of three epochs: a
        turn of ours computes the table of the teacher's states and reads it in its steps.
        Sizes Ti, S, B, L of a ViT/16 at 224 pixels, B and L of BERT with --program=mlm, 50
        of a ResNet with finetune. No dropout and no input pipeline. On a CPU torch runs as
        transformers loads it (sdpa) unless --compile is given; on a GPU --compile and
        --dtype=bfloat16 (autocast) are its best. --together=FOLDER,COUNT: COUNT such
        processes compile first, then measure one after the other; see on_gpu.sh.
"""

import fcntl
import functools
import json
import os
import platform
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import steps_ours
import steps_theirs
import torch
import transformers
from absl import app, flags

from flax_adapt.commands.machine import allocator
from flax_adapt.experiment.bench import measure_matmul
from flax_adapt.train.precision import set_products

TOLERANCE = 1e-4
PATIENCE_S = 200
START = time.time()
_PROGRAM = flags.DEFINE_enum("program", "mae", sorted(steps_ours.KINDS), "program")
_SIZE = flags.DEFINE_enum("size", "S", ["Ti", "S", "B", "L", "50"], "size of the model")
_BATCH = flags.DEFINE_integer("batch", 16, "examples of a step")
_LENGTH = flags.DEFINE_integer("length", 128, "tokens of a row, for mlm")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of products")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "timed turns")
_REPEAT = flags.DEFINE_integer("repeat", 1, "steps of a turn")
_COMPILE = flags.DEFINE_bool("compile", False, "torch.compile the reference")
_LAST = flags.DEFINE_bool("channels_last", False, "layout of torch's convolutions")
_SCAN = flags.DEFINE_bool("scan", False, "our blocks are one loop")
_REFERENCE = flags.DEFINE_bool("reference", True, "measure torch, too")
_MALLOC = flags.DEFINE_string(
    "malloc", "huge_pages", "of the process, as flax-adapt has it"
)
_TOGETHER = flags.DEFINE_list("together", [], "folder and number of the processes")


class Turn:
    """What processes share: a lock of the device, and a place where all wait for all."""

    def __init__(self, folder, count):
        self.folder, self.count = Path(folder), int(count)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("w")

    def __enter__(self):
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def __exit__(self, *error):
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    def wait_for_all(self, name):
        """Returns once COUNT files `*.ready` are there, or PATIENCE_S after the start."""
        (self.folder / f"{name}.ready").touch()
        while len(list(self.folder.glob("*.ready"))) < self.count:
            if time.time() > START + PATIENCE_S:
                return
            time.sleep(0.2)


class Alone:
    """The same where one process measures."""

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass

    def wait_for_all(self, name):
        """Returns at once."""


def seconds_of(call):
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(side, repeat):
    """Runs steps and waits for the last."""
    side.begin()
    for _ in range(repeat):
        side.step()
    side.wait()


def warm_up(side):
    """Compile seconds: those of the first step beyond a later one."""
    first = seconds_of(lambda: run(side, 1))
    return first - min(seconds_of(lambda: run(side, 1)), first)


def spent():
    """CPU seconds and page faults of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_minflt


def in_turns(sides, rounds, repeat):
    """{name: [(seconds, CPU seconds, page faults) of a step]}, of each in turn."""
    found = {name: [] for name in sides}
    for _round in range(rounds):
        for name, side in sides.items():
            before = spent()
            turn = seconds_of(functools.partial(run, side, repeat)), *spent()
            cpu, faults = (b - a for a, b in zip(before, turn[1:], strict=True))
            found[name].append([each / repeat for each in (turn[0], cpu, faults)])
    return found


def peak_bytes():
    """{name: peak of device memory}, where the device tells."""
    stats = jax.devices()[0].memory_stats() or {}
    theirs = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"ours": stats.get("peak_bytes_in_use"), "theirs": theirs}


def machine():
    """The device, and the versions of what runs."""
    device = jax.devices()[0].device_kind
    names = dict(jax=jax.__version__, torch=torch.__version__)
    processor = platform.processor() or platform.machine()
    return dict(
        names, transformers=transformers.__version__, device=device, cpu=processor
    )


def check_losses(sides):
    """The losses of all sides; ends the program where they differ."""
    with jax.default_matmul_precision("highest"):
        losses = {name: side.loss() for name, side in sides.items()}
    largest, least = max(losses.values()), min(losses.values())
    if not largest - least <= TOLERANCE * max(1.0, abs(largest)):
        sys.exit(f"the losses differ, so nothing is reported: {losses}")
    return losses


def compile_all(sides):
    """{name: compile seconds}; all compile at the same time."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(sides, pool.map(warm_up, sides.values()), strict=True))


def report(turns, flops, peak):
    """What is printed of the turns."""
    times, cpu, faults = (
        {name: [one[kind] for one in each] for name, each in turns.items()}
        for kind in range(3)
    )
    median = {name: statistics.median(each) for name, each in times.items()}
    best = {name: min(each) for name, each in times.items()}
    rate = {name: flops / each for name, each in median.items()}
    found = dict(
        median_seconds=median,
        best_seconds=best,
        cpu_seconds={name: statistics.median(each) for name, each in cpu.items()},
        page_faults={name: statistics.median(each) for name, each in faults.items()},
        examples_per_second={n: _BATCH.value / each for n, each in median.items()},
        flops=flops,
        flops_per_second=rate,
        share_of_matmul={name: each / peak for name, each in rate.items()},
        matmul_flops_per_second=peak,
    )
    if "theirs" in median:
        found["ratio_of_medians"] = median["theirs"] / median["ours"]
        found["ratio_of_bests"] = best["theirs"] / best["ours"]
    return found


def main(_):
    allocator.set_allocator(_MALLOC.value)
    name = _PROGRAM.value
    turn = Turn(*_TOGETHER.value) if _TOGETHER.value else Alone()
    sizes = (_SIZE.value, _BATCH.value, _DTYPE.value, _LENGTH.value, _SCAN.value)
    setting = steps_ours.Setting(*sizes)
    # In full: the losses are compared at 1e-4.
    set_products("highest" if setting.dtype == "float32" else setting.dtype)
    sides = {"ours": steps_ours.make(name, setting)}
    options = dict(compiles=_COMPILE.value, channels_last=_LAST.value)
    settings = dict(options, malloc=_MALLOC.value, repeat=_REPEAT.value)
    if _REFERENCE.value and name in steps_theirs.MODULES:
        reference = (name, sides["ours"], setting.dtype)
        sides["theirs"] = steps_theirs.Theirs(*reference, **options)
    losses = check_losses(sides)
    compiled = compile_all(sides)
    turn.wait_for_all(str(os.getpid()))
    with turn:
        peak = measure_matmul(setting.dtype)
        in_turns(sides, 1, 1)
        turns = in_turns(sides, _ROUNDS.value, _REPEAT.value)
    what = dict(program=name, **setting._asdict(), **settings, **machine())
    found = report(turns, sides["ours"].flops, peak)
    seconds = dict(compile_seconds=compiled, peak_bytes=peak_bytes())
    print(json.dumps({**what, "losses": losses, **found, **seconds}), flush=True)


if __name__ == "__main__":
    allocator.start_anew(sys.argv[1:])
    app.run(main)
