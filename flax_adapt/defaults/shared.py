"""What both modalities share: optimizers, stages, evaluation, the top level."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import data, weights
from flax_adapt.base.errors import UserError
from flax_adapt.defaults import sections
from flax_adapt.weights.formats import table as formats

# What is known of `init` beyond what it tells itself: 0 or "" a field, nothing.
UNKNOWN: dict[str, Any] = {name: kind() for name, kind in weights.KNOWN.items()}
# What errors of `weights` name -> the arguments of the shipped configs.
ARGUMENTS = formats.words("", "init_format")
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


def told(init: str, format: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `weights.told` of what a config says of `init`; without one, nothing."""
    found = weights.told(format, known)
    if not init and (found["format"] or found["known"]):
        raise UserError(
            f"init_format={format!r}, {found['known']} are of init=PATH, which is missing"
        )
    return found


def size(section: dict[str, Any]) -> int:
    """How many examples a data section has, `per_class` of each class if it says so."""
    source, per_class = _opened(section), section["subset"]["per_class"]
    return per_class * len(source.class_names) if per_class else len(source)


def class_names(*sections: dict[str, Any]) -> tuple[str, ...]:
    """Of several data sections, in order: what is new comes last."""
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
    """S1's rounds: each restarts from the ORIGINAL weights, taught by the one before."""
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
    """What `flax-adapt eval` measures; the kNN values are DINO's, the rest is ours.

    source: the data the model came from; given, the drift of the features of `test` and
    of `source` is measured, too (alignment: if `test` has two views; of texts two
    dropout masks at `view_dropout`). wide: see `wide`, or None. models_at_once: how many
    models share a pass over the data; all of them are in memory. compare: CKA and distance of
    the weights to the first model. stages: whose exports are measured (in all
    evaluations); (): all.
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
    """What is measured of wide features beside the rest (METHODS S3); values are ours.

    The share of zeros, the probe where only h != 0 is known, and a probe with a hidden
    layer, which is penalised as the linear one.
    """
    section = dict(mlp_hidden=256, mlp_max_iterations=100)
    return sections.change(section, changes)


def experiment(**sections: Any) -> dict[str, Any]:
    """The top level of a config; `init`, `model`, `evaluate` and `stages` must be given.

    init_format "": what `init` looks like. init_known: see `weights`. more_evaluations:
    further sections like `evaluate`, on other data. transfer: see `transfer`, or None.
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
