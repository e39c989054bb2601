"""Tries batch size, rematerialisation, accumulation and mesh, and finds what is best.

Every candidate is compiled. The table AXES names the fields.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flax_adapt.base import config as configs
from flax_adapt.base import logs, memory
from flax_adapt.base.errors import UserError
from flax_adapt.plan import plans
from flax_adapt.plan.plans import Hardware
from flax_adapt.plan.topology import GIB

log = logging.getLogger(__name__)

# Changes of a config: {dotted field, as after `--config.`: value}.
Changes = dict[str, Any]


class _Place(NamedTuple):
    """A stage by its number in the config, its section, and the hardware."""

    number: int
    section: Any
    hardware: Hardware


def _meshes(at: _Place) -> list[Changes]:
    found = [{"data": -1, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": -1, "tensor": 1}]
    if at.hardware.topology.chips == 1:
        found = found[:1]
    return [{f"mesh.{axis}": mesh[axis] for axis in mesh} for mesh in found]


def _remat(at: _Place) -> list[Changes]:
    return [{f"stages.{at.number}.memory.remat": policy} for policy in REMAT]


def _parts(at: _Place) -> list[Changes]:
    return [{f"stages.{at.number}.optim.accum_steps": parts} for parts in PARTS]


def _batches(at: _Place) -> list[Changes]:
    size = at.section.batch_size
    found = sorted({int(size * factor) for factor in BATCHES})
    return [{f"stages.{at.number}.batch_size": batch} for batch in found if batch]


REMAT = tuple(name for name in memory.REMAT if name != memory.AUTO)
PARTS = (1, 2, 4)
BATCHES = (0.5, 1, 2, 4)
# The last axis grows in memory: after a candidate that does not fit, none of it is tried.
AXES: tuple[Callable[[_Place], list[Changes]], ...] = (
    _meshes,
    _remat,
    _parts,
    _batches,
)


class Candidate(NamedTuple):
    """Changes of a config and their plan."""

    changes: Changes
    plan: dict[str, Any]

    @property
    def speed(self) -> float:
        """Examples a second by the roofline, 0 for a program that does not fit."""
        fits = self.plan["memory"]["fits"]
        return self.plan["roofline"]["examples_per_second"] if fits else 0.0

    @property
    def memory(self) -> float:
        """Bytes on a chip."""
        return self.plan["memory"]["total"]


def change_config(config: Any, changes: Changes) -> Any:
    """Returns a copy of a config with other values of the fields in `changes`."""
    plain = configs.plain(config)
    for name, value in changes.items():
        *path, last = (
            int(part) if part.isdigit() else part for part in name.split(".")
        )
        node = plain
        for part in path:
            node = node[part]
        node[last] = value
    return configs.build(plain)


def try_candidates(config: Any, number: int, hardware: Hardware) -> list[Candidate]:
    """Returns all candidates of stage `number` of a config that can be compiled."""
    at = _Place(number, config.stages[number], hardware)
    *outer, last = (axis(at) for axis in AXES)
    found: list[Candidate] = []
    for parts in itertools.product(*outer):
        found += _grow(config, _merge(parts), last, at)
    return found


def _merge(parts: Sequence[Changes]) -> Changes:
    return {name: value for part in parts for name, value in part.items()}


def _grow(
    config: Any, changes: Changes, last: Sequence[Changes], at: _Place
) -> Iterator[Candidate]:
    """Yields candidates until one does not fit."""
    for part in last:
        both = {**changes, **part}
        changed = change_config(config, both)
        kinds = plans.group_stages(changed)
        name = changed.stages[at.number].name
        kind = next(kind for kind in kinds if name in kind.names)
        try:
            plan = plans.plan_kind(kind, at.hardware)
        except UserError as error:  # such as a batch that the mesh does not divide
            log.info("%s: %s", _words(both), error)
            continue
        log.info("%s: %.2f GiB", _words(both), plan["memory"]["total"] / GIB)
        yield Candidate(both, plan)
        if not plan["memory"]["fits"]:
            return


def _words(changes: Changes) -> str:
    return " ".join(f"{name.split('.')[-1]}={value}" for name, value in changes.items())


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns what fits and is not beaten in both speed and memory, fastest first."""
    fitting = [one for one in candidates if one.plan["memory"]["fits"]]

    def is_beaten(one: Candidate) -> bool:
        return any(
            (other.speed, -other.memory) != (one.speed, -one.memory)
            and other.speed >= one.speed
            and other.memory <= one.memory
            for other in fitting
        )

    best = [one for one in fitting if not is_beaten(one)]
    return sorted(best, key=lambda one: (-one.speed, one.memory))


def format_table(candidates: Sequence[Candidate]) -> str:
    """Returns a line for each candidate: its changes, speed, memory."""
    rows = [
        {
            **{name.split(".")[-1]: value for name, value in one.changes.items()},
            "examples_per_second": one.speed,
            "GiB": one.memory / GIB,
            "MFU": one.plan["roofline"]["mfu"],
        }
        for one in candidates
    ]
    return logs.format_table(rows, tuple(dict.fromkeys(k for row in rows for k in row)))


def format_flags(candidate: Candidate) -> str:
    """Returns the changes as flags of a command."""
    return " ".join(
        f"--config.{name}={value}" for name, value in candidate.changes.items()
    )
