"""Measures the training steps of a config on the devices of this machine."""

import json as json_format
import tempfile
from pathlib import Path
from typing import Any

from flax_adapt.commands.plan import choose_kinds
from flax_adapt.experiment import bench as benches
from flax_adapt.stage import check
from flax_adapt.train import precision
from flax_adapt.train.preemption import Preemption


def bench(config: Any, stage: str, json: bool, input: bool) -> None:
    """Runs every kind of stage for some steps; prints examples/s, FLOP/s and memory."""
    config = precision.settle_config(config)
    precision.set_products(config.precision)
    check.experiment(config)
    found = []
    with tempfile.TemporaryDirectory() as folder, Preemption() as preemption:
        for kind in choose_kinds(config, stage):
            workdir = Path(folder)
            found.append(benches.measure_kind(kind, workdir, preemption, reads=input))
            if not json:
                print(benches.describe(found[-1]), flush=True)
    if json:
        print(json_format.dumps(found))
