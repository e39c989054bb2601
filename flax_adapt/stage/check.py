"""The check of a whole config before anything runs, so that no later stage fails by it.

It is one pass over the stages with the CHECKS of all modules (see `base.checks`). Mistakes
that only opened data or loaded weights can show are found where these are opened:
`stage.data`, `stage.weights`, `stage.frozen`.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from flax_adapt import objectives, surgery
from flax_adapt.base import checks, memory, trackers
from flax_adapt.base.checks import Check, Context, Mistake, Row
from flax_adapt.base.errors import UserError
from flax_adapt.data import replay
from flax_adapt.objectives import (
    classify,
    contrast_rules,
    distill,
    ema,
    glad,
    penalties,
    statistics,
)
from flax_adapt.stage import data, draws, fisher, references, stage, training
from flax_adapt.stage.watching import section as watched
from flax_adapt.surgery import heads, lora
from flax_adapt.train import adafactor, anchors, lars, linear, optim, sgd
from flax_adapt.train import fisher as train_fisher
from flax_adapt.weights import reshape

# The modules whose CHECKS are run, in this order: a row may rely on earlier ones.
OWNERS: list[ModuleType] = [
    stage,
    draws,
    objectives,
    data,
    optim,
    anchors,
    lars,
    sgd,
    adafactor,
    linear,
    reshape,
    classify,
    contrast_rules,
    glad,
    distill,
    surgery,
    heads,
    lora,
    penalties,
    statistics,
    ema,
    train_fisher,
    fisher,
    replay,
    references,
    memory,
    trackers,
    watched,
    training,
]


def experiment(config: Any) -> None:
    """Raises UserError for the first mistake in the config of an experiment."""
    mistake = first_mistake(config)
    if mistake is not None:
        raise UserError(mistake.text)


def gather() -> Iterator[Check]:
    """Yields the checks of all modules of OWNERS."""
    for owner in OWNERS:
        yield from owner.CHECKS


def first_mistake(config: Any) -> Mistake | None:
    """Returns the first mistake in a config, None if there is none."""
    for row in _NAMES:
        text = row.mistake(config)
        if text is not None:
            return Mistake(row, text)
    earlier: dict[str, Any] = {}
    for section in config.stages:
        for one in _different(config, section):
            found = checks.first_mistake(gather(), Context(config, one, dict(earlier)))
            if found is not None:
                return found._replace(text=f"stage {section.name}: {found.text}")
        earlier |= dict.fromkeys(references.labels(section), section)
    return None


def _different(config: Any, section: Any) -> list[Any]:
    """Returns the section of a stage for the first of its seeds.

    It is followed by those of seeds that refer to other runs.
    """
    if not section.seeds:
        return [section]
    found: dict[frozenset[str], Any] = {}
    for seed in section.seeds:
        one = draws.of_seed(config, section, seed)
        found.setdefault(frozenset(draws.references_of(one)), one)
    return list(found.values())


def _find_repeated(config: Any) -> list[str]:
    names = [section.name for section in config.stages]
    return sorted({name for name in names if names.count(name) > 1})


_NAMES = (
    Row(
        lambda config: config.stages and not _find_repeated(config),
        lambda config: (
            f"stages: every stage needs a name of its own; twice: {_find_repeated(config)}"
        ),
    ),
)
