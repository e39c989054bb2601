"""Sections that images and texts share: optimizers, stages, evaluation, the top level."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import data, weights
from flax_adapt.base.errors import UserError
from flax_adapt.defaults import sections
from flax_adapt.weights.formats import table as formats

# What a config may say of `init` that its files do not say; 0 or "": nothing.
UNKNOWN: dict[str, Any] = {name: kind() for name, kind in weights.KNOWN.items()}
# Names in errors of `weights` -> the arguments of the shipped configs.
ARGUMENTS = formats.rewordings("", "init_format")
# The arguments of every config that starts from weights and takes images or texts; the
# shipped configs explain them.
ARGUMENTS_OF_WEIGHTS: dict[str, Any] = dict(init="", init_format="", **UNKNOWN)
ARGUMENTS_OF_DATA: dict[str, Any] = dict(
    data_dir="",
    split="train",
    test_split="test",
    per_class=0,
    min_crop_area=0.08,
    seq_len=128,
    text_field="text",
    label_field="label",
)
ALL = dict(per_class=0, fraction=1.0, seed=0, part="chosen")


def describe_init(init: str, format: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config says of `init`, as `weights.source_options` returns it."""
    found = weights.source_options(format, known)
    if not init and (found["format"] or found["known"]):
        raise UserError(
            f"init_format={format!r}, {found['known']} describe init=PATH, which is missing"
        )
    return found


def count_examples(section: dict[str, Any]) -> int:
    """Returns the number of examples of a data section, after `subset.per_class`."""
    source, per_class = _opened(section), section["subset"]["per_class"]
    return per_class * len(source.class_names) if per_class else len(source)


def class_names(*sections: dict[str, Any]) -> tuple[str, ...]:
    """Returns the classes of several data sections, in the order in which they first appear."""
    named = (_opened(section).class_names for section in sections)
    return tuple(dict.fromkeys(name for names in named for name in names))


def _opened(section: dict[str, Any]) -> Any:
    return data.source.open_source(ConfigDict(section))


# Fields that every optimizer of the shipped configs starts from: AdamW, nothing frozen.
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
    grad_reduce="float32",
    mars_radius=0.0,
    mars_head_radius=0.0,
    mars_norms=False,
)


def pretrain_optim(**changes: Any) -> dict[str, Any]:
    """S1's optimizer of teacher and student."""
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
    """S1's optimizer of fine-tuning."""
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


# Fields of a stage that neither replays nor holds on to anything, from `init`.
_STAGE: dict[str, Any] = dict(
    replay=None,
    penalties=(),
    fisher=None,
    ema=None,
    sweep=None,
    init_from="pretrained",
    teacher="none",
)


def pretrain_stage(name: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """S1's further pre-training: 20 000 steps of 64 images from the pretrained model."""
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
    """S1's rounds: each starts from the ORIGINAL weights; its teacher is the round before."""
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
    """S1's fine-tuning: 10 000 steps of 32 images, new linear head on CLS, 5 seeds.

    Test accuracy is taken after the last step (and every 1 000 steps, ours).
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
    """A section of what `flax-adapt eval` measures; kNN as DINO's, the rest is ours.

    source: the data that the model was pre-trained on, or None. With it, drift is measured
    on `test` and `source` (alignment: between the two views of `test`, or of texts between
    two dropout masks at `view_dropout`). wide: see `wide`, or None. models_at_once: how
    many models share a pass over the data; all of them are in memory. compare: also
    measure CKA and distance of weights to the first model. stages: names of the stages
    whose exports are measured (in all evaluations); (): all.
    """
    section = dict(
        train=train,
        test=test,
        source=None,
        view_dropout=0.1,
        batch_size=64,
        pooling="cls",
        knn_k=20,
        knn_temperature=0.07,
        probe_l2=1e-3,
        probe_max_iterations=1_000,
        wide=None,
        compare=False,
        stages=(),
        models_at_once=8,
    )
    return sections.change(section, changes)


def wide(**changes: Any) -> dict[str, Any]:
    """Further measures for wide features (METHODS S3); the values are ours.

    The share of zeros, a probe on features binarised to h != 0, and a probe with a hidden
    layer, with the penalty of the linear one.
    """
    section = dict(mlp_hidden=256, mlp_max_iterations=100)
    return sections.change(section, changes)


def experiment(**sections: Any) -> dict[str, Any]:
    """The top level of a config, to which `init`, `model`, `evaluate`, `stages` are added.

    init_format "": detected from `init`. init_known: see `weights`. more_evaluations:
    further sections like `evaluate`, for other data. transfer: see
    `experiment.transfer`, or None.
    """
    section = dict(
        init_format="",
        init_known=UNKNOWN,
        seed=0,
        precision="float32",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        checkpoint=dict(every_steps=1_000, keep_last=2, keep_best=1),
        log_every_steps=50,
        more_evaluations=(),
        transfer=None,
    )
    return {**section, **sections}
