"""Which earlier stages must be run again so that a sweep's held-out labels stay unseen.

A sweep holds out a part of the labels of its stage. An earlier stage of the same chain
(the head of LP-FT, a task before, a teacher) may have trained on those labels. Such a
stage, and every stage of the chain after it, is run again for the tried rates, without
the examples that are held out. Stages without labels may see every example.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flax_adapt import data, objectives
from flax_adapt.base.errors import UserError
from flax_adapt.data import subset
from flax_adapt.data.source import locate_source, parse_splits
from flax_adapt.stage import draws
from flax_adapt.stage.draws import change_fields, label, references_of

FOLDER = "held_out"  # stages/NAME/held_out/...
_STAGE = "stage:"


class Rerun(NamedTuple):
    """A stage that is to be run again.

    section: as in the config, for all seeds. reference: the name by which later stages
    refer to it, `stage:NAME` or `stage:NAME/seed_S`. seed: that of the run.
    """

    reference: str
    section: Any
    seed: int


def sees_labels(section: Any) -> bool:
    """Returns whether a stage trains on the labels of its data."""
    return objectives.task_of(section.objective) == "classify"


def list_reruns(config: Any, section: Any) -> list[Rerun]:
    """Returns the earlier stages that a sweep of `section` must run again, in order.

    Only stages that `section` follows from are among them: those that train on labels of
    the source whose labels are held out, and those that follow from such a stage.
    """
    found: dict[str, Rerun] = {}
    for one in list_ancestors(config, section):
        section_of_seed = draws.of_seed(config, one.section, one.seed)
        follows = any(name in found for name in references_of(section_of_seed))
        if follows or _reads_data(one.section, section.data):
            found[one.reference] = one
    return list(found.values())


def list_learnt(config: Any, stage: str, seed: int) -> list[tuple[str, Any]]:
    """Returns (stage, data section) of the labels that a run, or one before it, learnt.

    stage, seed: those of the run, which is the first; [] for another name.
    """
    section = next((one for one in config.stages if one.name == stage), None)
    if section is None:
        return []
    own = draws.of_seed(config, section, seed)
    earlier = [
        draws.of_seed(config, one.section, one.seed)
        for one in list_ancestors(config, own)
    ]
    return [
        (one.name, data)
        for one in (own, *reversed(earlier))
        for data in labelled_data(one)
    ]


def is_left_out(learnt: Any, tested: Any) -> bool:
    """Returns whether a test section is read without the examples of a learnt section.

    It is what a draw of labels leaves; labels of another draw, which a run has learnt, are
    then no test of it.
    """
    few = learnt.subset.per_class > 0 or learnt.subset.fraction < 1
    return few and tested.subset.part == "rest" and is_same(learnt, tested)


def exclude_examples(
    section: Any, names: Collection[str], swept_data: Any
) -> ConfigDict:
    """Returns the section of a stage that does not train on the labels of some examples.

    names: of these examples of `swept_data`, a data section.
    """
    if not sees_labels(section):
        return change_fields(section)

    def less(one: Any) -> Any:
        if not is_same(one, swept_data):
            return one
        part = dict(part="without", base=one.subset, names=tuple(names))
        return change_fields(one, subset=change_fields(one.subset, **part))

    return change_fields(
        section, data=less(section.data), replay=_change_replay(section.replay, less)
    )


def replays_held_out(section: Any) -> bool:
    """Returns whether a stage with a sweep replays labels of its own source.

    Some of these are held out.
    """
    return any(is_same(one, section.data) for one in labelled_data(section)[1:])


def names_held_out(config_data: Any) -> tuple[str, ...]:
    """Returns the names of the examples of a data section that a sweep holds out."""
    part = change_fields(config_data.subset, part="held_out")
    return tuple(subset.select(data.source.open_source(config_data), part).names)


def check_sweeps(config: Any) -> None:
    """Raises UserError where a sweep cannot keep its held-out labels from earlier stages."""
    for section in config.stages:
        if section.sweep is None:
            continue
        first = draws.of_seed(config, section, section.seeds[0])
        for one in (section, *(one.section for one in list_ancestors(config, first))):
            for other in labelled_data(one):
                _check_split(section, one.name, other)


def list_ancestors(config: Any, section: Any) -> list[Rerun]:
    """Returns the earlier stages that `section` follows from, in the order of the config."""
    wanted, found = references_of(section), []
    for stage in reversed(config.stages):
        for seed in stage.seeds:
            name = _STAGE + label(stage, seed)
            if name in wanted:
                wanted |= references_of(draws.of_seed(config, stage, seed))
                found.append(Rerun(name, stage, seed))
    return found[::-1]


def labelled_data(section: Any) -> list[Any]:
    """Returns the data sections whose labels a stage trains on."""
    if not sees_labels(section):
        return []
    replayed = [] if section.replay is None else data.replay_sections(section.replay)
    return [section.data, *replayed]


def _reads_data(section: Any, swept_data: Any) -> bool:
    return any(is_same(one, swept_data) for one in labelled_data(section))


def is_same(one: Any, other: Any) -> bool:
    """Returns whether two data sections read the same examples, before their subsets."""
    return locate_source(one) == locate_source(other) and one.split == other.split


def _change_replay(config_replay: Any, change: Any) -> Any:
    if config_replay is None:
        return None
    many = config_replay.data
    new = tuple(map(change, many)) if isinstance(many, tuple) else change(many)
    return change_fields(config_replay, data=new)


def _check_split(section: Any, name: str, other: Any) -> None:
    """Raises UserError if two data sections read overlapping splits under different names.

    Held-out examples are identified by their names, and each slice of a split numbers its
    examples anew.
    """
    ours = section.data
    if locate_source(ours) != locate_source(other) or ours.split == other.split:
        return
    if parse_splits(ours.split) & parse_splits(other.split):
        raise UserError(
            f"stage {section.name}: sweep holds out labels of {ours.source} "
            f"{ours.split!r}, which stage {name} may have seen as {other.split!r}: name "
            "the same split in both, or splits that share nothing"
        )
