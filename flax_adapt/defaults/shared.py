"""What both modalities share: optimizers, stages, objectives, the top level."""

from collections.abc import Mapping
from typing import Any

from flax_adapt import weights
from flax_adapt.errors import UserError

# What is known of `init` beyond what it tells itself: 0 or "" a field, nothing.
UNKNOWN: dict[str, Any] = {name: kind() for name, kind in weights.KNOWN.items()}
# What errors of `weights` name -> the arguments of the shipped configs.
ARGUMENTS = weights.formats.words("", "init_format")
ALL = dict(per_class=0, fraction=1.0, seed=0, part="chosen")


def told(init: str, format: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `weights.told` of what a config says of `init`; without one, nothing."""
    found = weights.told(format, known)
    if not init and (found["format"] or found["known"]):
        raise UserError(
            f"init_format={format!r}, {found['known']} are of init=PATH, which is missing"
        )
    return found


def pretrain_optim(**changes: Any) -> dict[str, Any]:
    """S1's optimizer of teacher and student."""
    section = dict(
        lr=1.5e-4,
        schedule="linear",
        warmup_steps=0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.01,
        decay="pretrain",
        clip_norm=0.0,
        layer_decay=1.0,
        freeze=(r".*/position",),
        accum_steps=1,
        recadam=None,
        mars_radius=0.0,
    )
    return change(section, changes)


def finetune_optim(**changes: Any) -> dict[str, Any]:
    """S1's optimizer of fine-tuning."""
    section = dict(
        lr=1e-4,
        schedule="linear",
        warmup_steps=500,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.01,
        decay="finetune",
        clip_norm=1.0,
        layer_decay=1.0,
        freeze=(),
        accum_steps=1,
        recadam=None,
        mars_radius=0.0,
    )
    return change(section, changes)


# What METHODS S2 calls data mixing, turned off; a mixture for MAE is a new instance.
NO_MIXING = dict(
    operator="none", alpha=1.0, pairing="target_source", reading="instance"
)


def reconstruct() -> dict[str, Any]:
    return dict(
        name="reconstruct",
        hidden_ratio=0.75,
        normalize_patches=True,
        mixing=NO_MIXING,
    )


def distill(masked: dict[str, Any] | None = None) -> dict[str, Any]:
    """S1: squared distance of the final CLS states, summed over features, weight 1.

    masked: the masked part; None: `reconstruct()`.
    """
    return dict(
        name="distill",
        masked=masked or reconstruct(),
        masked_weight=1.0,
        match="states",
        state="cls",
        layers=(-1,),
        reduce="sum",
        weight=1.0,
    )


def contrast(**changes: Any) -> dict[str, Any]:
    """MoCo-v3 as published."""
    section = dict(
        name="contrast",
        form="moco_v3",
        temperature=0.2,
        momentum=0.99,
        momentum_schedule="cosine",
        queue_size=0,
        mixing={**NO_MIXING, "reading": "imix"},
    )
    return change(section, changes)


def projector(**changes: Any) -> dict[str, Any]:
    """MoCo-v3's heads of a ViT: 3 layers 4096-4096-256 and a predictor of 2."""
    section = dict(
        layers=3, hidden=4096, width=256, predictor_layers=2, batch_norm=True
    )
    return change(section, changes)


def replay(source: Any, ratio: float, **changes: Any) -> dict[str, Any]:
    """`ratio` source examples for one of the target, the same share in every batch.

    source: a data section, or a tuple of them. buffer_size: draw so many in all (0: as
    many as the ratio says); the ratio is then that of the batches alone.
    """
    section = dict(
        data=source,
        ratio=ratio,
        final_ratio=ratio,
        schedule="constant",
        sampling="stratified",
        buffer_size=0,
        seed=0,
    )
    return change(section, changes)


def classify() -> dict[str, Any]:
    return dict(name="classify", label_smoothing=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)


def regress() -> dict[str, Any]:
    return dict(name="regress")


def stage_model(**changes: Any) -> dict[str, Any]:
    """What a stage makes of the model: no dropout, nothing new, nothing resized."""
    section = dict(
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
        fresh=(),
        reshape=(),
        resize=None,
        projector=None,
        lora=None,
    )
    return change(section, changes)


def pretrain_stage(name: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """S1's further pre-training: 20 000 steps of 64 images from the pretrained model."""
    section = dict(
        name=name,
        seeds=(0,),
        objective=reconstruct(),
        num_steps=20_000,
        batch_size=64,
        data=data,
        replay=None,
        penalties=(),
        fisher=None,
        ema=None,
        optim=pretrain_optim(),
        model=stage_model(),
        eval=None,
        init_from="pretrained",
        teacher="none",
    )
    return change(section, changes)


def distill_stages(
    data: dict[str, Any], first_teacher: str, rounds: int, **changes: Any
) -> list[dict[str, Any]]:
    """S1's rounds: each restarts from the ORIGINAL weights, taught by the one before."""
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1")
    stages, teacher = [], first_teacher
    for number in range(1, rounds + 1):
        fields = {"objective": distill(), **changes, "teacher": f"stage:{teacher}"}
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
        name=name,
        seeds=(0, 1, 2, 3, 4),
        objective=classify(),
        num_steps=10_000,
        batch_size=32,
        data=data,
        replay=None,
        penalties=(),
        fisher=None,
        ema=None,
        optim=finetune_optim(),
        model=stage_model(dropout=0.1, fresh=("head",)),
        eval=dict(
            every_steps=1_000,
            batch_size=64,
            data=test_data,
            metric="accuracy",
            mode="max",
        ),
        init_from="pretrained",
        teacher="none",
    )
    return change(section, changes)


def evaluate(
    train: dict[str, Any], test: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """What `flax-adapt eval` measures; the kNN values are DINO's, the rest is ours.

    source: the data the model came from; given, the drift of the features of `test` and
    of `source` is measured, too (alignment: if `test` has two views; of texts two
    dropout masks at `view_dropout`).
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
    )
    return change(section, changes)


def experiment(**sections: Any) -> dict[str, Any]:
    """The top level of a config; `init`, `model`, `evaluate` and `stages` must be given.

    init_format "": what `init` looks like. init_known: see `weights`.
    """
    section = dict(
        init_format="",
        init_known=UNKNOWN,
        seed=0,
        precision="float32",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        checkpoint=dict(every_steps=1_000, keep_last=2, keep_best=1),
        log_every_steps=50,
    )
    return {**section, **sections}


def change(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(changes) - set(section))
    if unknown:
        raise TypeError(f"no such fields: {unknown}")
    return {**section, **changes}
