"""Where the seconds of a training step go on one CPU core: ours beside torch, by kind of work.

Run     pip install '.[parity]' && taskset -c 0 python benchmarks/steps_profile.py \
            --program=mae [--size=S] [--batch=8]
Prints  one JSON line: seconds of each kind of work of one step of both, FLOP/s of our
        products of weights, the seconds of the whole step without a profiler. On one core
        nothing overlaps, so that the parts add up. Programs and sizes are those of steps.py.
Leaves  the compiled program and the trace in runs/profile.
"""

import collections
import json
import os
import re
import sys
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    f"--xla_dump_to=runs/profile/{os.getpid()} --xla_dump_hlo_module_re=jit_update "
    "--xla_cpu_multi_thread_eigen=false"
)

import jax
import steps_ours
import steps_theirs
import torch
from absl import app, flags
from jax.profiler import ProfileData, ProfileOptions

from flax_adapt.commands.machine import allocator
from flax_adapt.plan import hlo, products

_PROGRAM = flags.DEFINE_enum("program", "mae", sorted(steps_ours.KINDS), "program")
_SIZE = flags.DEFINE_string("size", "S", "size of the model")
_BATCH = flags.DEFINE_integer("batch", 8, "examples of a step")
_LENGTH = flags.DEFINE_integer("length", 128, "tokens of a row, for mlm")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "timed steps of each")
DUMP = Path("runs/profile", str(os.getpid()))

# Kind of work -> what the name of one of our instructions holds, the first that fits. The
# name is "OPCODE PATH", the path that of the modules and of the derivative.
OURS = {
    "attention": r"/attention/cond/|/attention/\w*dot_product",
    "norm": r"/norm\d*/|/layer_norm/|_norm/",
    "weights": r"^(dot|convolution) |/dot_general$|/conv_general_dilated$",
    "activation": r"/mlp/",
    "optimizer": r"^(?!.*jvp)",
    "copies": r"^(copy|transpose|concatenate) |/(concatenate|transpose)$",
    "rest": r"",
}
# The same for the operators of torch.
THEIRS = {
    "attention": r"scaled_dot_product|bmm|softmax",
    "norm": r"layer_norm|batch_norm",
    "weights": r"::(addmm|mm|linear|convolution|mkldnn)|convolution",
    "activation": r"gelu|tanh|relu",
    "optimizer": r"adamw|foreach|lerp",
    "copies": r"copy_|clone|cat|contiguous|to_copy|gather|index",
    "rest": r"",
}


def kind_of(name, rules):
    """The kind of work of a name."""
    return next(kind for kind, rule in rules.items() if re.search(rule, name))


def seconds_of(side):
    """Seconds of one step."""
    start = time.perf_counter()
    side.step()
    side.wait()
    return time.perf_counter() - start


def program():
    """{name of an instruction: ("OPCODE PATH", its FLOPs)} of our compiled step."""
    (path,) = DUMP.glob("*jit_update*.cpu_after_optimizations.txt")
    module, found = hlo.parse(path.read_text("utf-8")), {}
    for one, computation, _ in hlo.walk(module):
        scope = re.search(r'op_name="([^"]*)"', one.attributes)
        flops = products.flops_of(module, one, computation)
        found[one.name] = (f"{one.op} {scope[1] if scope else ''}", flops)
    return found


def profile_ours(side):
    """({kind: seconds}, FLOP/s of products of weights) of one step of ours."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(DUMP), profiler_options=options):
        seconds_of(side)
    (path,) = DUMP.rglob("*.xplane.pb")
    known, spent = program(), collections.Counter()
    flops = 0.0
    for name, seconds in _events(ProfileData.from_file(str(path))):
        where, of_one = known.get(name, ("? jvp", 0.0))
        kind = kind_of(where, OURS)
        spent[kind] += seconds
        flops += of_one if kind == "weights" else 0.0
    return dict(spent), flops / spent["weights"]


def _events(data):
    """(instruction, seconds) of all that the step ran."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == "jit_update":
                    yield stats["hlo_op"], event.duration_ns / 1e9


def profile_theirs(side):
    """{kind: seconds} of one step of torch."""
    with torch.profiler.profile() as trace:
        seconds_of(side)
    spent = collections.Counter()
    for event in trace.key_averages():
        spent[kind_of(event.key, THEIRS)] += event.self_cpu_time_total / 1e6
    return dict(spent)


def main(_):
    allocator.set_allocator("huge_pages")
    torch.set_num_threads(1)
    sizes = (_SIZE.value, _BATCH.value, "float32", _LENGTH.value)
    ours = steps_ours.make(_PROGRAM.value, steps_ours.Setting(*sizes))
    options = dict(compiles=False, channels_last=False)
    theirs = steps_theirs.Theirs(_PROGRAM.value, ours, "float32", **options)
    sides = {"ours": ours, "theirs": theirs}
    for side in (*sides.values(), *sides.values()):
        seconds_of(side)
    times = {
        name: min(seconds_of(side) for _ in range(_ROUNDS.value))
        for name, side in sides.items()
    }
    mine, rate = profile_ours(ours)
    kinds = {"ours": mine, "theirs": profile_theirs(theirs)}
    what = dict(program=_PROGRAM.value, size=sizes[0], batch=sizes[1])
    what |= dict(jax=jax.__version__, torch=torch.__version__)
    found = dict(seconds=times, kinds=kinds, weights_flops_per_second=rate)
    print(json.dumps({**what, **found, "flops": ours.flops}), flush=True)


if __name__ == "__main__":
    allocator.start_anew(sys.argv[1:])
    app.run(main)
