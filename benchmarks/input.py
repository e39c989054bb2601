"""Images a second of the input pipeline, beside bare Pillow and OpenCV, and beside a step.

Run     pip install opencv-python-headless simplejpeg  # if they are to be measured, too
        python benchmarks/input.py [--images=500x375:128,4000x3000:16] [--size=224] \
            [--rounds=5] [--cores=2] [--batch=8] [--nostep] > input.jsonl
        python benchmarks/input.py --table=input.jsonl  # the lines as a Markdown table
Prints  a JSON line for each kind of JPEG files (best and median images a second of each side,
        and the median of its ratio to bare Pillow in the same turn), one for augmentation,
        and one for a ViT-S/16 fine-tuning step that reads them: how long it waits for a batch.
Files are crops of the two photographs of scikit-learn, at quality 90, in the page cache. All
sides are measured in turns in one process, on the cores it is pinned to, with a thread a core
but for ours, which has its defaults. CPU milliseconds of an image (the least of all turns)
depend less on what else the machine does. It reports nothing unless our pixels are those
of Pillow, with and without stored squares.
"""

import importlib
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import input_sides
import machines
import numpy as np
import PIL
from absl import app, flags
from input_sides import PILLOW
from PIL import features

_IMAGES = flags.DEFINE_list(
    "images", ["500x375:128", "1024x768:64", "4000x3000:16"], "WIDTHxHEIGHT:COUNT"
)
_SIZE = flags.DEFINE_integer("size", 224, "side of the squares")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "timed turns")
_CORES = flags.DEFINE_integer("cores", 0, "cores to run on; 0: all that there are")
_BATCH = flags.DEFINE_integer("batch", 8, "images of a batch")
_STEP = flags.DEFINE_bool(
    "step", True, "also measure a training step that reads images"
)
_TABLE = flags.DEFINE_string("table", "", "print a Markdown table of this file's lines")


def seconds_of(call):
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check(sides):
    """How far the pixels of each side are from Pillow's: (mean, max); ours must be the same."""
    wanted = sides[PILLOW]().astype(np.int16)
    found = {}
    for name, side in sides.items():
        pixels = side()
        pixels = pixels[..., ::-1] if name.startswith("OpenCV") else pixels
        apart = np.abs(pixels - wanted)
        found[name] = (round(float(apart.mean()), 2), int(apart.max()))
        if name.startswith("ours") and "draft" not in name and apart.any():
            raise SystemExit(f"{name}: pixels differ from Pillow's by {apart.max()}")
    return found


def measure(paths, threads, processes):
    """{side: best, median, share of Pillow, pixels apart} of some files."""
    sides = input_sides.list_sides(paths, threads, processes, _SIZE.value, _BATCH.value)
    apart = check(sides)
    seconds = {name: [] for name in sides}
    cpu = {name: [] for name in sides}
    for _round in range(_ROUNDS.value):
        for name, side in sides.items():
            before = time.process_time()
            seconds[name].append(seconds_of(side))
            cpu[name].append(time.process_time() - before)
    return {
        name: {
            "best": round(len(paths) / min(each), 1),
            "median": round(len(paths) / statistics.median(each), 1),
            "of_pillow": round(
                statistics.median(map(np.divide, seconds[PILLOW], each)), 2
            ),
            "cpu_ms": None
            if "processes" in name
            else round(1000 * min(cpu[name]) / len(paths), 2),
            "apart": apart[name],
        }
        for name, each in seconds.items()
    }


def measure_augmentation():
    """Images a second of what is drawn on the device: {kind: rate}."""
    import jax
    from ml_collections import ConfigDict

    from flax_adapt import defaults
    from flax_adapt.data.images import image

    size, count = _SIZE.value, 2 * _BATCH.value
    pixels = np.zeros((count, size, size, 3), np.uint8)
    key_B = jax.random.split(jax.random.key(0), count)
    section = ConfigDict(dict(mean=(0.5,) * 3, std=(0.5,) * 3, channels=3))
    crop = {**defaults.NO_AUGMENT, "min_crop_area": 0.2, "flip": True}
    kinds = {"none": None, "crop and flip": crop}
    found = {}
    for name, fields in kinds.items():
        how = None if fields is None else ConfigDict(fields)
        run = jax.jit(
            lambda x, k, how=how: image.preprocess(
                x, None if how is None else k, section, how
            )
        )
        jax.block_until_ready(run(pixels, key_B))
        each = [
            seconds_of(lambda run=run: jax.block_until_ready(run(pixels, key_B)))
            for _ in range(_ROUNDS.value)
        ]
        found[name] = dict(
            best=round(count / min(each), 1),
            median=round(count / statistics.median(each), 1),
        )
    return found


def measure_step(folder):
    """Seconds of a fine-tuning step alone and with its input, and of its wait for a batch."""
    import steps_ours
    from ml_collections import ConfigDict

    from flax_adapt import data
    from flax_adapt.defaults.image_section import image_data

    setting = steps_ours.Setting("S", _BATCH.value, "float32", 128)
    side = steps_ours.make("finetune", setting)
    fields = dict(image_size=_SIZE.value, label_field="", cache_bytes=0)
    opened = data.open_examples(
        ConfigDict(image_data(f"folder:{folder}", "train", **fields)), ""
    )

    def step():
        side.step()
        side.wait()

    step()
    rounds = 2 * _ROUNDS.value
    alone = [seconds_of(step) for _ in range(rounds)]
    batches = data.make_batches(opened, _BATCH.value, 0, 0, 1)
    for _ in range(2 * opened.config.prefetch_batches):  # those that lay ready
        next(batches)
    waits, fed = [], []
    for _ in range(rounds):
        waits.append(seconds_of(lambda: next(batches)))
        fed.append(waits[-1] + seconds_of(step))
    return {
        "batch": _BATCH.value,
        "step_alone": round(statistics.median(alone), 3),
        "step_with_input": round(statistics.median(fed), 3),
        "wait": round(statistics.median(waits), 5),
        "longest_wait": round(max(waits), 5),
    }


def describe_machine(cores):
    """What the numbers depend on."""
    versions = {"pillow": PIL.__version__, "libjpeg-turbo": None}
    versions["libjpeg-turbo"] = features.version("libjpeg_turbo")
    for name in ("cv2", "simplejpeg"):
        if importlib.util.find_spec(name):
            versions[name] = importlib.import_module(name).__version__
    return {
        "cpu": machines.name_processor(),
        "cores": cores,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def print_table(path):
    """The lines of an earlier run as Markdown."""
    for line in map(json.loads, Path(path).read_text().splitlines()):
        if "sides" not in line:
            continue
        print(f"\n{line['images']}, {line['kilobytes']} kB\n")
        print("| | images/s (best) | of Pillow | CPU ms | pixels apart (max) |")
        print("|---|---|---|---|---|")
        for name, side in line["sides"].items():
            mean, most = side["apart"]
            rate = f"{side['median']} ({side['best']})"
            cpu = side["cpu_ms"] or ""
            cells = [name, rate, side["of_pillow"], cpu, f"{mean} ({most})"]
            print("|", " | ".join(map(str, cells)), "|")


def main(_):
    if _TABLE.value:
        return print_table(_TABLE.value)
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[: _CORES.value or None])
    cores = len(os.sched_getaffinity(0))
    from flax_adapt.data import examples

    examples.CACHE_BYTES = 0  # nothing stays in memory from turn to turn
    with (
        tempfile.TemporaryDirectory() as root,
        ThreadPoolExecutor(cores) as threads,
        ProcessPoolExecutor(cores, get_context("spawn")) as processes,
    ):
        os.environ["XDG_CACHE_HOME"] = root
        print(json.dumps({"machine": describe_machine(cores)}), flush=True)
        for case in _IMAGES.value:
            size, _, count = case.partition(":")
            folder = Path(root) / "files" / size / "train"
            paths = input_sides.write_files(
                folder, *map(int, size.split("x")), int(count)
            )
            kilobytes = sum(path.stat().st_size for path in paths) // len(paths) // 1000
            found = measure(paths, threads, processes)
            line = {"images": size, "kilobytes": kilobytes, "sides": found}
            print(json.dumps(line), flush=True)
        print(json.dumps({"augmentation": measure_augmentation()}), flush=True)
        if _STEP.value:
            print(json.dumps({"step": measure_step(folder.parent)}), flush=True)
    return 0


if __name__ == "__main__":
    app.run(main)
