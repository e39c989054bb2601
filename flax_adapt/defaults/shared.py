"""Sections that images and texts share: optimizers, stages, evaluation, the top level.

Functions that take fields to change by keyword raise TypeError for an unknown field, but for
`experiment`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import data, weights
from flax_adapt.base.errors import UserError, choose
from flax_adapt.data.subset import DRAWS
from flax_adapt.defaults import sections
from flax_adapt.defaults.source import SOURCE_ARGUMENTS
from flax_adapt.weights.formats import table as formats

# Arguments for facts about `init` that its files may lack; 0 or "": not set.
UNKNOWN: dict[str, Any] = {name: kind() for name, kind in weights.KNOWN.items()}
# Names of arguments in errors of `weights` -> their names in the shipped configs.
ARGUMENTS = formats.rewordings("", "init_format")
# Arguments of every config that starts from weights and takes images or texts; the
# docstrings of the configs explain them.
ARGUMENTS_OF_WEIGHTS: dict[str, Any] = dict(init="", init_format="", **UNKNOWN)
# How image files and tables of them are read: fields of a section and arguments of configs.
IMAGE_FILES: dict[str, Any] = dict(
    fit="squash",
    bits=0,
    window="",
    image_field="",
    label_field="label",
    split_field="split",
)
ARGUMENTS_OF_DATA: dict[str, Any] = dict(
    data_dir="",
    split="train",
    test_split="test",
    per_class=0,
    labels="each_seed",
    **SOURCE_ARGUMENTS,
    min_crop_area=0.0,
    seq_len=128,
    text_field="text",
    **IMAGE_FILES,
)
ALL = dict(per_class=0, fraction=1.0, seed=0, part="chosen", draw="fixed")


def few(per_class: int, labels: str) -> dict[str, Any]:
    """Returns the section `subset` of `per_class` examples of every class; 0: all examples.

    labels: "each_seed", where every seed of a stage draws examples of its own, the same
    for all methods, or "fixed", where all seeds have the same. Raises UserError for
    another word.
    """
    draw = choose("labels", labels, {name: name for name in DRAWS})
    return {**ALL, "per_class": per_class, "draw": draw}


def describe_init(init: str, format: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `format` and `known` of a config's `init`, as arguments of `weights.load`.

    Raises UserError where there is something to describe but no `init`.
    """
    found = weights.source_options(format, known)
    if not init and (found["format"] or found["known"]):
        raise UserError(
            f"init_format={format!r}, {found['known']} describe init=PATH, which is missing"
        )
    return found


def count_examples(section: dict[str, Any]) -> int:
    """Returns the number of examples that `subset.per_class` of a data section selects."""
    source, per_class = _open_data(section), section["subset"]["per_class"]
    return per_class * len(source.class_names) if per_class else len(source)


def class_names(*sections: dict[str, Any]) -> tuple[str, ...]:
    """Returns the class names of several data sections, each once, in order of appearance."""
    named = (_open_data(section).class_names for section in sections)
    return tuple(dict.fromkeys(name for names in named for name in names))


def _open_data(section: dict[str, Any]) -> Any:
    return data.source.open_source(ConfigDict(section))


# Fields that all optimizers of the shipped configs share: AdamW.
_OPTIM = dict(
    schedule="linear",
    eps=1e-8,
    weight_decay=0.01,
    layer_decay=1.0,
    accum_steps=1,
    recadam=None,
    lars=None,
    sgd=None,
    solve=None,
    adafactor=None,
    mu_dtype="float32",
    grad_reduce="float32",
    mars_radius=0.0,
    mars_head_radius=0.0,
    mars_norms=False,
)


def pretrain_optim(**changes: Any) -> dict[str, Any]:
    """Returns the optimizer of further pre-training and self-distillation (Lee et al. 2023)."""
    section = dict(
        _OPTIM,
        lr=1.5e-4,
        warmup_steps=0,
        b1=0.9,
        b2=0.95,
        decay="pretrain",
        clip_norm=0.0,
        freeze=(r".*/position",),
    )
    return sections.change(section, changes)


def finetune_optim(**changes: Any) -> dict[str, Any]:
    """Returns the optimizer of fine-tuning (Lee et al. 2023)."""
    section = dict(
        _OPTIM,
        lr=1e-4,
        warmup_steps=500,
        b1=0.9,
        b2=0.999,
        decay="finetune",
        clip_norm=1.0,
        freeze=(),
    )
    return sections.change(section, changes)


# Fields of a stage from the initial weights, without replay and penalties.
_STAGE: dict[str, Any] = dict(
    replay=None,
    penalties=(),
    fisher=None,
    ema=None,
    sweep=None,
    watch=None,
    memory=sections.memory(),
    init_from="pretrained",
    teacher="none",
)


def pretrain_stage(name: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns further pre-training (Lee et al. 2023): 20 000 steps of 64 images, from `init`."""
    section = dict(
        _STAGE,
        name=name,
        seeds=(0,),
        objective=sections.reconstruct(),
        num_steps=20_000,
        batch_size=64,
        data=data,
        optim=pretrain_optim(),
        model=sections.stage_model(),
        eval=None,
    )
    return sections.change(section, changes)


def distill_stages(
    data: dict[str, Any], first_teacher: str, rounds: int, **changes: Any
) -> list[dict[str, Any]]:
    """Returns the rounds of self-distillation (Lee et al. 2023), one stage each.

    Each starts from the ORIGINAL weights; its teacher is the round before, of the first round
    the stage `first_teacher`. Raises UserError for less than one round.
    """
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1")
    stages, teacher = [], first_teacher
    for number in range(1, rounds + 1):
        fields = {
            "objective": sections.distill(),
            **changes,
            "teacher": f"stage:{teacher}",
        }
        stages.append(pretrain_stage(f"distill_{number}", data, **fields))
        teacher = f"distill_{number}"
    return stages


def finetune_stage(
    name: str, data: dict[str, Any], test_data: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """Returns fine-tuning (Lee et al. 2023): 10 000 steps of 32 images, 5 seeds.

    The head is a new linear layer on CLS. Test accuracy is measured after the last step (and
    every 1 000 steps, ours).
    """
    section = dict(
        _STAGE,
        name=name,
        seeds=(0, 1, 2, 3, 4),
        objective=sections.classify(),
        num_steps=10_000,
        batch_size=32,
        data=data,
        optim=finetune_optim(),
        model=sections.stage_model(dropout=0.1, fresh=("head",)),
        eval=dict(
            every_steps=1_000,
            batch_size=64,
            data=test_data,
            metric="accuracy",
            mode="max",
        ),
    )
    return sections.change(section, changes)


def evaluate(
    train: dict[str, Any], test: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """Returns the section of the measures of `flax-adapt eval`; kNN as DINO's, the rest ours.

    train, test: data sections with labels. source: data that the initial weights were
    pre-trained on, or None. With a source, drift is measured on `test` and `source`
    (alignment: between the two views of `test`, of texts between two dropout masks at
    `view_dropout`). probe_l2: penalty of the linear probe, which is solved exactly; 0: chosen
    by cross-validation on `train`, in `probe_folds` parts (`train.linear`). draws: number of
    draws of the labels where `train.subset.draw` is "each_seed". shots: labels a class of
    the few-shot accuracies, each of `shot_draws` draws from `train`. wide: see `wide`,
    or None. models_at_once: number of models that share a pass over the data; all of them
    are in memory. compare: also measure CKA and the distance of the weights to the first
    model. pooling: of features; "auto": as by the first model's own library, see
    `weights.resolve_pooling`. stages: names of the stages whose exports are measured (in
    all evaluations); (): all.
    """
    section = dict(
        train=train,
        test=test,
        source=None,
        view_dropout=0.1,
        batch_size=64,
        pooling="auto",
        draws=5,
        shots=(1, 5, 10),
        shot_draws=5,
        knn_k=20,
        knn_temperature=0.07,
        probe_l2=0.0,
        probe_folds=5,
        wide=None,
        compare=False,
        stages=(),
        models_at_once=8,
    )
    return sections.change(section, changes)


def wide(**changes: Any) -> dict[str, Any]:
    """Returns the section of further measures for wide features (S3); the values are ours.

    The share of zeros, a probe on features binarised to h != 0, and a probe with a hidden
    layer, with the penalty of the linear one.
    """
    section = dict(mlp_hidden=256, mlp_max_iterations=100)
    return sections.change(section, changes)


def experiment(**sections: Any) -> dict[str, Any]:
    """Returns a whole config; `sections` must have init, model, evaluate and stages.

    init_format "": detected from `init`. init_known: facts that `init` lacks, see `known` in
    `weights`. more_evaluations: further sections like `evaluate`, for other data. transfer:
    see `experiment.transfer`, or None. log: see `base.trackers`.
    """
    section = dict(
        init_format="",
        init_known=UNKNOWN,
        seed=0,
        precision="auto",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        checkpoint=dict(every_steps=1_000, keep_last=2, keep_best=1),
        log_every_steps=50,
        log="",
        more_evaluations=(),
        transfer=None,
    )
    return {**section, **sections}
