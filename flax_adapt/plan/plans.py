"""Compiles the training step of stages for a topology, and measures the program."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_adapt.base import config as configs
from flax_adapt.base import errors, memory
from flax_adapt.plan import cost, flops, gpu, hlo, notes, roofline, topology
from flax_adapt.plan.topology import GIB, Topology
from flax_adapt.stage import programs, shapes
from flax_adapt.stage.shapes import Described
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding
from flax_adapt.train.precision import settle, settle_config

log = logging.getLogger(__name__)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Hardware(NamedTuple):
    """A topology, its devices, the memory of a chip that may be used, and a price.

    price: dollars for a chip and hour, 0: none. num_classes: see `shapes.describe`.
    """

    topology: Topology
    devices: list[Any]
    gib: float
    price: float
    num_classes: int


class Kind(NamedTuple):
    """Stages whose steps are one program: the first of them, all names, all steps."""

    stage: Stage
    names: tuple[str, ...]
    num_steps: int


Compiler = Callable[[Any, str], tuple[Any, int]]
# Fields of a stage that change what it reads or for how long it runs, not its program.
_SAME_PROGRAM = {
    *("name", "seeds", "num_steps", "eval", "fisher", "sweep"),
    *("init_from", "data.source", "data.data_dir", "data.split", "data.tokenizer"),
    *("data.num_threads", "data.prefetch_batches", "data.max_bad_fraction"),
    *("data.cache_bytes", "data.jpeg_draft"),
    *("data.label_field", "optim.lr", "optim.warmup_steps", "optim.weight_decay"),
}
_FRESH = "model.fresh."
_SAME_BELOW = re.compile(r"(eval|fisher|sweep|seeds|data\.(subset|mean|std))(\.|$)")


def settle_for(topology: Topology, config: Any) -> Any:
    """Returns the config with the precision and memory that "auto" means on a topology."""
    platform = topology.chip.platform
    return memory.settle_config(settle_config(config, platform), platform)


def group_stages(config: Any) -> list[Kind]:
    """Returns the kinds of stages of an experiment in the order of their first stages."""
    found: dict[str, Kind] = {}
    for section in config.stages:
        flat = configs.flatten(configs.plain(section))
        flat["teacher"] = flat["teacher"] == "none"
        flat["scratch"] = flat["init_from"] == "scratch"
        program = {
            name: value
            for name, value in flat.items()
            if name not in _SAME_PROGRAM and not _SAME_BELOW.match(name)
        }
        if not programs.treats_fresh(section):
            program = {n: v for n, v in program.items() if not n.startswith(_FRESH)}
        stage = Stage(config, section, section.seeds[0], Path())
        total = section.num_steps * len(section.seeds)
        new = Kind(stage, (section.name,), total)
        old = found.get(repr(program))
        if old is not None:
            new = Kind(old.stage, (*old.names, section.name), old.num_steps + total)
        found[repr(program)] = new
    return list(found.values())


def compile_step(lowered: Any, platform: str) -> tuple[Any, int]:
    """Returns (the program, 0), or (None, bytes that it would need) where it does not fit."""
    options: list[Any] = [None, gpu.WITHOUT_TRITON] if platform == "cuda" else [None]
    for option in options:
        try:
            return lowered.compile(compiler_options=option), 0
        except jax.errors.JaxRuntimeError as error:
            if errors.OUT_OF_MEMORY in str(error):
                return None, _needed(str(error))
            if option is options[-1]:
                raise
    raise AssertionError("the last way to compile returns or raises")


def plan_kind(
    kind: Kind, hardware: Hardware, compiler: Compiler = compile_step
) -> dict[str, Any]:
    """Returns the plan of a kind of stages as JSON values; docs/plan.md explains them.

    compiler: does what `compile_step` does.
    Raises UserError where config and topology do not fit.
    """
    stage = kind.stage
    mesh = sharding.make_mesh(stage.experiment.mesh, hardware.devices)
    described = shapes.describe(stage, mesh, hardware.num_classes)
    begun = time.perf_counter()
    step = described.program.make_step(mesh)
    lowered = step.lower(described.state, described.batch)
    compiled, used = compiler(lowered, hardware.topology.chip.platform)
    seconds = time.perf_counter() - begun
    module = None if compiled is None else hlo.parse(compiled.as_text())
    return {
        **_head(kind, described, hardware),
        "memory": _memory(compiled, used, hardware),
        "compile_seconds": seconds,
        **(_measured(described, module, kind, hardware) if module else {}),
        "warnings": notes.list_warnings(described, module, hardware.topology),
        "assumed": list(described.assumed),
    }


def _needed(text: str) -> int:
    """Returns the bytes of `Used 72.10G of 15.75G hbm`, 0 where the text has none."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _head(kind: Kind, described: Described, hardware: Hardware) -> dict[str, Any]:
    stage, state = kind.stage, described.state
    mesh = described.batch["position"].sharding.mesh
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    leaves = jax.tree.leaves(state.params)
    return {
        "stage": kind.names[0],
        "stages": list(kind.names),
        "objective": stage.config.objective.name,
        "topology": hardware.topology.name,
        "chips": hardware.topology.chips,
        "mesh": {axis: mesh.shape[axis] for axis in sharding.AXES},
        "precision": settle(stage.experiment.precision),
        "parameters": sum(leaf.size for leaf in leaves),
        "batch": stage.config.batch_size,
        "batch_per_chip": stage.config.batch_size / shards,
        "accum_steps": described.program.accum_steps,
        "policy": configs.plain(stage.config.memory),
    }


def _memory(compiled: Any, used: int, hardware: Hardware) -> dict[str, Any]:
    """Returns bytes on one chip; without a program only their sum, where XLA tells it."""
    limit = hardware.gib * GIB
    if compiled is None:
        return {"total": used, "limit": limit, "fits": False}
    parts = count_bytes(compiled)
    total = sum(parts.values())
    return {**parts, "total": total, "limit": limit, "fits": total <= limit}


def count_bytes(compiled: Any) -> dict[str, int]:
    """Returns the bytes on one chip that XLA assigned to a program, by their purpose."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }


def _measured(
    described: Described, module: hlo.Module, kind: Kind, hardware: Hardware
) -> dict[str, Any]:
    chip, chips = hardware.topology.chip, hardware.topology.chips
    precision, batch = (
        settle(kind.stage.experiment.precision),
        kind.stage.config.batch_size,
    )
    found = cost.count_costs(module, chips)
    analytic, compiled = flops.count_step(described), chips * cost.sum_flops(found)
    bound = roofline.bound_time(found, chip, precision)
    peak = roofline.peak_flops(chip, precision)
    hours = bound.seconds * kind.num_steps / 3600
    return {
        "flops": {
            "analytic": analytic,
            "compiled": compiled,
            "analytic_per_example": analytic / batch,
            "compiled_per_example": compiled / batch,
        },
        "collectives": cost.sum_by_kind(found),
        "roofline": {
            **bound._asdict(),
            "mfu": bound.mfu(analytic, chips, peak),
            "examples_per_second": batch / bound.seconds if bound.seconds else 0.0,
        },
        "num_steps": kind.num_steps,
        "hours": hours,
        "dollars": hours * chips * hardware.price if hardware.price else None,
    }


def all_fit(plans: Sequence[dict[str, Any]]) -> bool:
    """Returns whether all plans fit into the memory of a chip."""
    return all(plan["memory"]["fits"] for plan in plans)


def find_hardware(
    name: str, gib: float = 0.0, price: float = 0.0, num_classes: int = 0
) -> Hardware:
    """Returns the hardware of a name such as "v5e:4x4"; gib: 0 for all of its memory."""
    found = topology.parse(name)
    limit = gib or found.chip.gib
    return Hardware(found, topology.list_devices(found), limit, price, num_classes)
