"""Test examples that were trained on with their labels: the result is not of new ones.

They are found by `Source.identities`, of data sections that may share examples alone: most
test sets have a split or a folder of their own, of which nothing is read.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.data import source, subset
from flax_adapt.experiment import held_out
from flax_adapt.experiment.measuring import drawn
from flax_adapt.stage import draws

# What is fitted to the labels of an evaluation.
PROBES = "kNN and probes"
log = logging.getLogger(__name__)


def find_by_stage(config: Any) -> dict[str, dict[str, Any]]:
    """Returns {stage: result of `find_in_stage`} of stages that train on labels; warns.

    Stages that have seen no test example are left out. Of several seeds, each with labels
    of its own, it is the run that has seen the most.
    """
    found: dict[str, dict[str, Any]] = {}
    known: subset.Identities = {}
    with source.keep_open():
        for section in config.stages:
            if section.eval is None or not held_out.sees_labels(section):
                continue
            try:
                most = _choose_most(
                    find_in_stage(config, section.name, seed, test, known)
                    for seed in section.seeds
                    for test in [draws.draw_labels(section.eval.data, seed)]
                )
            except UserError as error:  # a finished stage needs its data no more
                log.info("test examples of %s: not compared: %s", section.name, error)
                continue
            if most:
                found[section.name] = most
    _warn(found)
    return found


def _warn(found: dict[str, dict[str, Any]]) -> None:
    alike: dict[str, list[str]] = {}
    for name, one in found.items():
        alike.setdefault(_say(one, ""), []).append(name)
    for said, names in alike.items():
        log.warning("test set of %s: %s", ", ".join(names), said)


def _choose_most(found: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    some = (one for one in found if one is not None)
    return max(some, key=lambda one: one["examples"], default=None)


def find_in_stage(
    config: Any, stage: str, seed: int, test: Any, known: subset.Identities
) -> dict[str, Any] | None:
    """Returns how many examples of a test section a stage has seen with their labels.

    None: it has seen none. It and the stages that it follows from count, as far as they
    train on labels. seed: of the stage's run. known: see `subset.list_identities`. The
    result has `by` (names of stages), `examples` (how many test examples were trained on)
    and `of` (how many there are).
    """
    return _count(held_out.list_learnt(config, stage, seed), test, known)


def find_in_model(
    config: Any, stage: str, section: Any, known: subset.Identities
) -> dict[str, Any] | None:
    """Returns the same of a measured stage and the test examples of all draws.

    Of several runs it is that of the one that has seen the most. section: the evaluation
    section. What a draw of the same examples leaves is tested without those that a run has
    learnt, see `embeddings.Model.list_learnt`.
    """
    test = draws.join_draws(section.test, range(drawn.count_draws(section)))
    seeds = next((one.seeds for one in config.stages if one.name == stage), ())
    runs = (held_out.list_learnt(config, stage, seed) for seed in seeds)
    tested = (
        [one for one in learnt if not held_out.is_left_out(one[1], section.test)]
        for learnt in runs
    )
    return _choose_most(_count(one, test, known) for one in tested)


def find_in_probes(section: Any, known: subset.Identities) -> dict[str, Any] | None:
    """Returns the same of kNN and probes of an evaluation section.

    Of several draws of labels it is the one with the most.
    """
    pairs = (
        [draws.draw_labels(one, seed) for one in (section.train, section.test)]
        for seed in range(drawn.count_draws(section))
    )
    return _choose_most(_count([(PROBES, train)], test, known) for train, test in pairs)


def _count(
    trained: Iterable[tuple[str, Any]], test: Any, known: subset.Identities
) -> dict[str, Any] | None:
    shared: dict[str, frozenset[str]] = {}
    for name, section in trained:
        if found := subset.list_shared(section, test, known):
            shared[name] = shared.get(name, frozenset()) | found
    if not shared:
        return None
    count = len(frozenset().union(*shared.values()))
    whole = len(subset.list_identities(test, known))
    return {"by": [*shared], "examples": count, "of": whole}


def describe(seen: dict[str, Any]) -> str:
    """Returns the words of such a result."""
    return _say(seen, f" of {', '.join(seen['by'])}")


def _say(seen: dict[str, Any], by: str) -> str:
    return (
        f"{seen['examples']} of the {seen['of']} test examples are training examples{by}, "
        "with their labels: on these the result is of examples that were seen, not of new ones"
    )


def shorten(seen: Sequence[dict[str, Any]]) -> str:
    """Returns a cell of a table: how many of the test examples were seen."""
    return ", ".join(f"{one['examples']} of {one['of']}" for one in seen)
