"""What `flax-adapt adapt` will do, on one screen."""

from typing import Any

import jax
from ml_collections import ConfigDict

from flax_adapt.base import logs
from flax_adapt.data import source
from flax_adapt.data.subset import select
from flax_adapt.experiment import budget, device_memory
from flax_adapt.plan.topology import GIB


def describe(config: Any, work: list[Any] | None, line: str) -> str:
    """Returns a row for each stage, the whole time, and the equivalent command.

    work: rows of `budget.Work`, from which memory and minutes come; None: unknown.
    """
    found = [budget.Work(w[0], budget.Cost(*w[1]), *w[2:]) for w in work or []]
    by_name = {one.name: one for one in found}
    counts: dict[Any, int] = {}
    rows = [_row(s, by_name.get(s.name), counts) for s in config.stages]
    parts = [logs.format_table(rows, tuple(rows[0]))]
    if found:
        minutes = budget.seconds_of(found) / 60
        parts.append(f"about {minutes:.1f} minutes on {device_memory.name_devices()}")
    parts.append(f"precision {config.precision}; JAX {jax.__version__}; the same as")
    return "\n".join([*parts, f"    {line}", ""])


def _row(
    section: Any, work: budget.Work | None, counts: dict[Any, int]
) -> dict[str, Any]:
    where = repr((section.data.source, section.data.split, section.data.subset))
    if where not in counts:
        opened = source.open_source(ConfigDict(section.data))
        counts[where] = len(select(opened, section.data.subset))
    solved = section.optim.solve is not None
    lrs = (section.optim.lr,) if section.sweep is None else section.sweep.lrs
    row = {
        "stage": section.name,
        "from": section.init_from.removeprefix("stage:"),
        "examples": counts[where],
        "steps": section.num_steps,
        "epochs": round(section.num_steps * section.batch_size / counts[where], 1),
        "lr": "solved" if solved else "|".join(f"{lr:g}" for lr in lrs),
        "runs": len(section.seeds) if work is None else work.runs,
    }
    if solved:
        row["epochs"] = 1.0
    if work is None:
        return row
    seconds = budget.seconds_of([work])
    memory = f"{work.cost.bytes / GIB:.2f}" if work.cost.bytes else ""
    return {**row, "GiB": memory, "minutes": round(seconds / 60, 2)}
