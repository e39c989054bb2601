"""Plans of the stages of a config on hardware that is not there."""

import json as json_format
import logging
from typing import Any

import jax

from flax_adapt.base.errors import UserError
from flax_adapt.plan import plans, report, search
from flax_adapt.plan.plans import Hardware, Kind
from flax_adapt.stage import check
from flax_adapt.train import precision

log = logging.getLogger(__name__)
# The function `plan` has an argument of this name.
_search = search


def plan(
    config: Any,
    topology: str,
    stage: str,
    json: bool,
    search: bool,
    price_per_chip_hour: float,
    hbm_gib: float,
    num_classes: int,
) -> int:
    """Compiles every kind of stage for hardware that is not there; prints what it needs."""
    # Nothing is run on the accelerators of this machine, if it has any.
    jax.config.update("jax_platforms", "cpu")
    # First of all, as the number of CPU devices is fixed when JAX starts.
    hardware = plans.find_hardware(topology, hbm_gib, price_per_chip_hour, num_classes)
    config = plans.settle_for(hardware.topology, config)
    precision.set_products(config.precision)
    check.experiment(config)
    kinds = choose_kinds(config, stage)
    if search:
        return _print_search(config, kinds, hardware, json)
    found = []
    for kind in kinds:
        found.append(plans.plan_kind(kind, hardware))
        if not json:
            print(report.describe(found[-1]), flush=True)
    if json:
        print(json_format.dumps(found))
    return 0 if plans.all_fit(found) else 1


def choose_kinds(config: Any, stage: str) -> list[Kind]:
    """Returns all kinds of stages that have a step to compile, or that of one stage."""
    kinds = plans.group_stages(config)
    names = [section.name for section in config.stages]
    if stage and stage not in names:
        raise UserError(f"--stage={stage} is no stage; there are: {', '.join(names)}")
    chosen = [kind for kind in kinds if not stage or stage in kind.names]
    found = [kind for kind in chosen if kind.stage.config.optim.solve is None]
    solved = [name for kind in chosen if kind not in found for name in kind.names]
    if not found:
        raise UserError(
            f"{', '.join(solved)}: optim.solve has no training step to compile"
        )
    if solved:
        log.info("%s: optim.solve has no training step", ", ".join(solved))
    return found


def _print_search(
    config: Any, kinds: list[Kind], hardware: Hardware, as_json: bool
) -> int:
    """Prints the best of all candidates for each kind; 1 if nothing fits for one."""
    names, code, rows = [section.name for section in config.stages], 0, []
    for kind in kinds:
        index = names.index(kind.names[0])
        best = _search.pareto(_search.try_candidates(config, index, hardware))
        code = code if best else 1
        rows += [{"changes": one.changes, **one.plan} for one in best]
        if not as_json:
            print(
                f"{kind.names[0]} on {hardware.topology.name}: {len(best)} candidates"
            )
            print(_search.format_table(best) if best else "nothing fits")
            print(
                f"best: {_search.format_flags(best[0])}\n" if best else "", flush=True
            )
    if as_json:
        print(json_format.dumps(rows))
    return code
