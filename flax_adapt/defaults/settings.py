"""The training settings that every shipped config takes as arguments, by one mechanism.

`make_config` adds SETTINGS to a config's own arguments. Where a config has an argument of
the same name, its own meaning and default stay; every other one is applied here, to the
stages that the config built.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import augment, sections, shared
from flax_adapt.defaults.sections import ON_HURT

# The docstring of vit_self_distill explains them. 0, -1 or "": as the config has it.
SETTINGS: dict[str, Any] = dict(
    steps=0,
    epochs=0.0,
    batch_size=0,
    lr=0.0,
    warmup=-1,
    seeds=0,
    augment="",
    pool="",
    watch="",
    patience=3,
    on_hurt="",
)
# Stages that train new parts alone; their steps are arguments of their own.
_NEW_PARTS = ("decoder_warmup", "mlm_warmup", "new_tokens_warmup")
_LABELLED = ("classify", "glad", "regress")
# Values of `pool`: data without labels as the recipe has it, or without the test examples.
WITHOUT_TEST = "without_test"
# How often a stage that watches a metric measures it (ours).
_MEASUREMENTS = 20


def make_config(
    arguments: str,
    make: Callable[[Any], dict[str, Any]],
    main: str = "",
    **own: Any,
) -> ConfigDict:
    """Returns the locked config that `make` builds from the parsed arguments.

    own: the config's own arguments with their defaults. main: "fine-tuning" where steps,
    epochs, batch_size, lr and warmup are of fine-tuning although other stages train without
    labels. Raises UserError for unknown arguments and for values out of range.
    """
    args = configs.parse_arguments(arguments, **{**SETTINGS, **own})
    check_settings(args)
    added = {name: args[name] for name in SETTINGS if name not in own}
    return configs.build(apply_settings(make(args), {**SETTINGS, **added}, main))


def check_settings(args: Any) -> None:
    """Raises UserError for a setting below its range."""
    for name, default in SETTINGS.items():
        if not isinstance(default, str) and args[name] < min(default, 0):
            raise UserError(
                f"{name}={args[name]} must be above 0, or {default} for that of the recipe"
            )

    choose("pool", args.pool, {"": "", WITHOUT_TEST: ""})
    if args.watch:
        sections.check_metrics("watch", args.watch)
    choose("on_hurt", args.on_hurt, dict.fromkeys(("", *ON_HURT)))
    if args.on_hurt and not args.watch:
        raise UserError(
            f"on_hurt={args.on_hurt} needs a metric that says what hurt: add "
            "watch=target/knn, or without labels watch=pool/rankme"
        )


def apply_settings(
    experiment: dict[str, Any], settings: dict[str, Any], main: str = ""
) -> dict[str, Any]:
    """Returns an experiment with `settings` (names of SETTINGS) in its stages.

    steps, epochs, batch_size, lr and warmup change training without labels, or fine-tuning
    where there is nothing else; seeds and augment change fine-tuning, or training without
    labels where there is no fine-tuning. The first stage takes `steps`; others keep their
    number of steps in proportion to it. The warm-up keeps its share of the steps. watch,
    patience and on_hurt are of the same stages as lr.
    """
    _check_source(experiment, settings["watch"])
    stages = [one for one in experiment["stages"] if one["name"] not in _NEW_PARTS]
    tuned = [one for one in stages if one["objective"]["name"] in _LABELLED]
    others = [one for one in stages if one not in tuned]
    trained = tuned if main == "fine-tuning" or not others else others
    sized = [one["name"] for one in trained if one["optim"]["solve"] is None]
    drawn = [one["name"] for one in tuned or others]
    first = next((one for one in stages if one["name"] in sized), None)

    def change(stage: dict[str, Any]) -> dict[str, Any]:
        if stage["name"] in sized and first is not None:
            stage = _change_sizes(stage, first, settings)
            stage = _add_watch(stage, settings)
        return _change_draws(stage, settings) if stage["name"] in drawn else stage

    changed = tuple(change(one) for one in experiment["stages"])
    if settings["pool"] == WITHOUT_TEST:
        tests = _list_tests(experiment, changed)
        names = [one["name"] for one in tuned]
        changed = tuple(
            one if one["name"] in names else _leave_out(one, tests) for one in changed
        )
    return {**experiment, "stages": changed}


def _check_source(experiment: dict[str, Any], watch: str) -> None:
    """Raises UserError where the source is watched, and the config has none."""
    reads = any(name.startswith("source/") for name in sections.split_metrics(watch))
    if reads and experiment["evaluate"]["source"] is None:
        raise UserError(
            f"watch={watch}: source/knn is measured on labelled examples of what the initial "
            "weights were trained on, and there are none: give source=SOURCE, or leave "
            "source/knn out"
        )


def _list_tests(
    experiment: dict[str, Any], stages: tuple[dict[str, Any], ...]
) -> list[dict[str, Any]]:
    """Returns the data sections of all test sets, each once."""
    found = [one["eval"]["data"] for one in stages if one["eval"] is not None]
    sections = (experiment["evaluate"], *experiment.get("more_evaluations", ()))
    found += [section["test"] for section in sections]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def _leave_out(stage: dict[str, Any], tests: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a stage whose data lack the test examples, where it has any of them.

    Raises UserError where every seed has test examples of its own.
    """
    section = stage["data"]
    known: dict[str, frozenset[str]] = {}
    own = [one for one in tests if _list_shared(section, one, known)]
    if any(one["subset"]["draw"] == "each_seed" for one in own):
        raise UserError(
            f"pool={WITHOUT_TEST}: the test examples of {section['source']} differ by seed, "
            "so that a pool without all of them is nearly empty: add labels=fixed, or give a "
            "test set of its own"
        )
    if not own:
        return stage
    subset = {**shared.ALL, "part": "without_data", "of": tuple(own)}
    subset["base"] = section["subset"]
    return {**stage, "data": {**section, "subset": subset}}


def _list_shared(
    section: dict[str, Any], test: dict[str, Any], known: dict[str, frozenset[str]]
) -> frozenset[str]:
    """Returns `data.subset.list_shared` of a data section and a test set of any seed."""
    fixed = {**test, "subset": {**test["subset"], "draw": "fixed"}}
    one, other = ConfigDict(section), ConfigDict(fixed)
    shared: frozenset[str] = data.subset.list_shared(one, other, known)
    return shared


def _change_sizes(
    stage: dict[str, Any], first: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    optim, before = stage["optim"], stage["num_steps"]
    size = settings["batch_size"] or stage["batch_size"]
    steps = before
    if settings["steps"]:
        steps = max(1, round(settings["steps"] * before / first["num_steps"]))
    if settings["epochs"]:
        examples = _count_rows(stage["data"])
        steps = max(1, round(settings["epochs"] * examples / size))
    warmup = settings["warmup"]
    if warmup < 0:
        warmup = optim["warmup_steps"] * steps // before
    changed = {"lr": settings["lr"] or optim["lr"], "warmup_steps": warmup}
    fields = dict(num_steps=steps, batch_size=size, optim={**optim, **changed})
    return {**stage, **fields}


def _add_watch(stage: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a stage that watches a metric, if the settings name one."""
    if not settings["watch"]:
        return stage
    if stage["sweep"] is not None:
        raise UserError(
            f"watch={settings['watch']}: stage {stage['name']} tries several learning rates "
            "and chooses among them by held-out labels; a stage does one or the other: leave "
            "watch out, or give one rate (lr=... without lrs)"
        )
    every = max(1, stage["num_steps"] // _MEASUREMENTS)
    fields = dict(every_steps=every, patience=settings["patience"])
    fields |= dict(on_hurt=settings["on_hurt"] or "warn")
    return {**stage, "watch": sections.watch(settings["watch"], **fields)}


def _count_rows(section: dict[str, Any]) -> int:
    """Returns the number of rows of an epoch; of packed texts, whole rows."""
    if section["modality"] == "text" and section["layout"] == "packed":
        return len(data.open_examples(configs.build(section), ""))
    return shared.count_examples(section)


def _change_draws(stage: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    if settings["seeds"]:
        stage = {**stage, "seeds": tuple(range(settings["seeds"]))}
    name, section = settings["augment"], stage["data"]
    if not name:
        return stage
    if section["modality"] == "text":
        augment.check_texts(name)
        return stage
    if section["views"] and name != "none":
        raise UserError(
            f"augment={name}: stage {stage['name']} compares two views of an image, which "
            "are its augmentation; leave augment out"
        )
    return {**stage, "data": {**section, "augment": augment.section_of(name)}}
