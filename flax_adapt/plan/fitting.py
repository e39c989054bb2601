"""Finds settings with which the training step of a stage fits into the devices at hand.

Ways that change no result but for rounding come first: more parts of a batch
(`optim.accum_steps`), recomputed blocks (`memory.remat`), chunks of wide logits. A smaller
batch comes last. Every way is compiled, as by `plan.search`, which knows more of them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from flax_adapt.base import config as configs
from flax_adapt.base import memory
from flax_adapt.base.errors import UserError
from flax_adapt.plan import plans
from flax_adapt.plan.search import PARTS, Changes, change_config
from flax_adapt.stage import check, shapes
from flax_adapt.stage.stage import Stage
from flax_adapt.train import sharding

# A step that should have fitted shares the memory with something: a way must save a fifth.
ENOUGH = 0.8
CHUNKS = 8
PARTS_FIELD = "optim.accum_steps"


class Need(NamedTuple):
    """Bytes of a step on a device, 0 where XLA does not tell, and whether it compiles."""

    bytes: int
    compiles: bool


class Fit(NamedTuple):
    """A way that fits.

    changes: fields of the experiment. bytes, before: of a device, with them and without.
    limit: bytes that a device has, 0 where it does not tell. same: results stay the same.
    """

    changes: Changes
    bytes: int
    before: int
    limit: int
    same: bool


def find_fit(stage: Stage, number: int, limit: int, num_classes: int = 0) -> Fit | None:
    """Returns a way that fits, of those that change least; None where none does.

    stage: a run that did not fit, of stage `number` of its experiment. limit: bytes of a
    device, 0 where they are not known. num_classes: see `shapes.describe`. Raises UserError
    for a stage without a training step to compile.
    """
    if stage.config.optim.solve is not None:
        raise UserError("optim.solve has no training step to compile")
    mesh = sharding.make_mesh(stage.experiment.mesh)
    now = measure(stage, mesh, num_classes)
    is_too_large = not now.compiles or now.bytes > limit > 0
    most = (limit or math.inf) if is_too_large else ENOUGH * now.bytes

    def try_way(changes: Changes) -> int | None:
        changed = stage._replace(config=change_config(stage.config, changes))
        need = measure(changed, mesh, num_classes)
        return need.bytes if need.compiles and need.bytes <= most else None

    for list_ways, same in ((list_same_ways, True), (list_batches, False)):
        ways = [one for one in list_ways(stage, mesh) if _is_sound(stage, number, one)]
        if found := _first_fit(ways, try_way):
            changes = _name_fields(number, found[0])
            return Fit(changes, found[1], now.bytes, limit, same)
    return None


def measure(stage: Stage, mesh: Mesh, num_classes: int = 0) -> Need:
    """Returns what the training step of a stage needs on the devices of a mesh."""
    described = shapes.describe(stage, mesh, num_classes)
    step = described.program.make_step(mesh)
    lowered = step.lower(described.state, described.batch)
    compiled, used = plans.compile_step(lowered, jax.devices()[0].platform)
    if compiled is None:
        return Need(used, False)
    return Need(sum(plans.count_bytes(compiled).values()), True)


def list_same_ways(stage: Stage, mesh: Mesh) -> Iterator[Changes]:
    """Yields changes of a stage that change no result, the fastest first.

    The last one needs least memory for activations. Where the examples of a batch are mixed
    it has no more parts: each would mix its own examples alone.
    """
    section = stage.config
    levels, parts = _list_levels(stage), _list_parts(section, mesh)
    few = [count for count in parts if count < parts[0] * 2 * PARTS[-1]]
    for count in few:
        for level in levels:
            if level or count > parts[0]:
                yield {**level, **_divide(count, parts[0])}
    for count in parts[len(few) :]:
        yield {**levels[-1], **_divide(count, parts[0])}


def list_batches(stage: Stage, mesh: Mesh) -> Iterator[Changes]:
    """Yields smaller batches, the largest first, with all that saves memory."""
    size, level = stage.config.batch_size // 2, _list_levels(stage)[-1]
    least = stage.config.optim.accum_steps * _count_shards(mesh)
    while size and size % least == 0:
        yield {**level, "batch_size": size}
        size //= 2


def _first_fit(
    ways: list[Changes], try_way: Callable[[Changes], int | None]
) -> tuple[Changes, int] | None:
    """Returns the first way that fits and its bytes.

    The last one is asked first: where it does not fit, only ways without parts are left, as
    the sum of the gradients of all parts takes memory, too.
    """
    sizes = {len(ways) - 1: try_way(ways[-1])} if ways else {}
    for number, changes in enumerate(ways):
        if sizes[len(ways) - 1] is None and PARTS_FIELD in changes:
            continue
        if number not in sizes:
            sizes[number] = try_way(changes)
        size = sizes[number]
        if size is not None:
            return changes, size
    return None


def _list_levels(stage: Stage) -> list[Changes]:
    """Returns ways to save memory within a pass, {} first, each saving more than the former."""
    section, kind = stage.config, stage.experiment.model.kind
    platform = jax.devices()[0].platform
    now = memory.settle(section.memory, stage.experiment.model, platform)
    policies = [name for name in memory.REMAT if name != memory.AUTO]
    stronger = policies[policies.index(now["remat"]) + 1 :]
    objective = section.objective.get("masked", section.objective)
    chunked: Changes = {}
    if objective.name in ("mlm", "contrast") and now["logit_chunks"] < CHUNKS:
        chunked = {"memory.logit_chunks": CHUNKS}
    loop = {} if kind == "resnet" else {"memory.scan": True}
    levels: list[Changes] = [{}, *([chunked] if chunked else [])]
    for name in ("blocks", "full"):
        if name in stronger:
            levels.append({"memory.remat": name, **loop, **chunked})
    return levels


def _list_parts(section: Any, mesh: Mesh) -> list[int]:
    """Returns numbers of parts of a batch, from the present one on."""
    parts = [section.optim.accum_steps]
    while not mixes(configs.plain(section)):
        if section.batch_size % (2 * parts[-1] * _count_shards(mesh)):
            break
        parts.append(2 * parts[-1])
    return parts


def mixes(section: dict[str, Any]) -> bool:
    """Returns whether a stage, as plain values, mixes the examples of a batch."""
    flat = configs.flatten(section.get("objective") or {})
    return any(
        name.endswith("mixing.operator") and operator != "none"
        for name, operator in flat.items()
    )


def _divide(count: int, before: int) -> Changes:
    return {} if count == before else {PARTS_FIELD: count}


def _count_shards(mesh: Mesh) -> int:
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def _name_fields(number: int, changes: Changes) -> Changes:
    """Returns changes of the fields of a stage as changes of those of its experiment."""
    return {f"stages.{number}.{name}": value for name, value in changes.items()}


def _is_sound(stage: Stage, number: int, changes: Changes) -> bool:
    """Returns whether the experiment allows the changes, such as parts of its batches."""
    try:
        check.experiment(change_config(stage.experiment, _name_fields(number, changes)))
    except UserError:
        return False
    return True
