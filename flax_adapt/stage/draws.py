"""The labelled examples of one run of a stage: `data.subset.draw`.

With draw "each_seed" every seed of a stage has a labelled subset of its own, so that the
spread over seeds has the noise of the labels, too. Stages with the same seeds have the same
subsets: their runs are pairs. With "fixed" all seeds have the subset of `subset.seed`.

A reference `stage:NAME` to a stage with several seeds means the run of the same seed.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from flax_adapt.base import config as configs
from flax_adapt.base.checks import Check, Context, one_of
from flax_adapt.data.subset import DRAWS

_STAGE = "stage:"


def change_fields(section: Any, **fields: Any) -> ConfigDict:
    """Returns a copy of a section with these fields changed."""
    return ConfigDict({**section, **fields})


def label(section: Any, seed: int) -> str:
    """Returns the name of a stage's run: NAME, or NAME/seed_S with several seeds."""
    return section.name if len(section.seeds) == 1 else f"{section.name}/seed_{seed}"


def of_seed(config: Any, section: Any, seed: int) -> Any:
    """Returns the section of a stage for one of its seeds.

    Its subsets with draw "each_seed" are those of this seed, and its references name the
    runs that they mean. What a stage replays stays: an earlier stage has learnt it.
    """
    several = [one for one in config.stages if len(one.seeds) > 1]
    moved = {
        f"{_STAGE}{one.name}": f"{_STAGE}{label(one, seed)}"
        for one in several
        if seed in one.seeds and one.name != section.name
    }
    section = (
        redirect_references(section, moved)
        if references_of(section) & {*moved}
        else section
    )
    if all(one.draw != "each_seed" for one in _subsets(section)):
        return section
    fields = {"data": draw_labels(section.data, seed)}
    if section.eval is not None:
        test = draw_labels(section.eval.data, seed)
        fields["eval"] = change_fields(section.eval, data=test)
    return change_fields(section, **fields)


def has_few_labels(section: Any) -> bool:
    """Returns whether a stage is trained on a part of its examples."""
    subset = section.data.subset
    return bool(subset.per_class > 0 or subset.fraction < 1)


def has_own_labels(section: Any) -> bool:
    """Returns whether the seeds of a stage have different labelled examples."""
    own = section.data.subset.draw == "each_seed" and len(section.seeds) > 1
    return has_few_labels(section) and own


def fix(config: Any) -> Any:
    """Returns the config of an experiment with draw "fixed" in every subset."""
    plain = configs.plain(config)
    return configs.build(_fixed(plain))


def references_of(section: Any) -> set[str]:
    """Returns the references to earlier stages in a section, as `stage:NAME`.

    They are those that the stage starts from, learns from or is compared with.
    """
    named = [section.init_from, section.teacher]
    for penalty in section.penalties:
        of = penalty.of if "of" in penalty else ()
        named += (of,) if isinstance(of, str) else of
    return {text for text in named if text.startswith(_STAGE)}


def redirect_references(section: Any, moved: dict[str, str]) -> ConfigDict:
    """Returns the section with its references replaced by {reference: new reference}."""

    def of(penalty: Any) -> Any:
        if "of" not in penalty:
            return penalty
        one, many = isinstance(penalty.of, str), penalty.of
        new = moved.get(many, many) if one else tuple(moved.get(x, x) for x in many)
        return change_fields(penalty, of=new)

    return change_fields(
        section,
        init_from=moved.get(section.init_from, section.init_from),
        teacher=moved.get(section.teacher, section.teacher),
        penalties=tuple(of(penalty) for penalty in section.penalties),
    )


def _subsets(section: Any) -> list[Any]:
    tested = [] if section.eval is None else [section.eval.data]
    return [one.subset for one in (section.data, *tested)]


def draw_labels(config_data: Any, seed: int) -> Any:
    """Returns a data section with its subset of this seed, where that has draw "each_seed"."""
    subset = config_data.subset
    if subset.draw != "each_seed":
        return config_data
    own = change_fields(subset, seed=subset.seed + seed, draw="fixed")
    return change_fields(config_data, subset=own)


def join_draws(config_data: Any, seeds: Iterable[int]) -> Any:
    """Returns a data section with the examples of the subsets of all these seeds."""
    subsets = [draw_labels(config_data, seed).subset for seed in seeds]
    if all(one == subsets[0] for one in subsets):
        return change_fields(config_data, subset=subsets[0])
    union = change_fields(subsets[0], part="any", of=tuple(subsets))
    return change_fields(config_data, subset=union)


def _fixed(value: Any) -> Any:
    if isinstance(value, dict):
        fields = {name: _fixed(one) for name, one in value.items()}
        return {**fields, "draw": "fixed"} if "draw" in fields else fields
    return [_fixed(one) for one in value] if isinstance(value, list) else value


def _list_subsets(at: Context) -> list[Any]:
    return _subsets(at.section)


_ROWS = (one_of("data.subset.draw", lambda one: one.draw, DRAWS),)
CHECKS = (Check(_list_subsets, _ROWS),)
