"""Sections of a stage: its objective, its replay, and its changes of the model.

Functions that take fields to change by keyword raise TypeError for an unknown field.
"""

from typing import Any

from flax_adapt.base.errors import UserError, choose


def change(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the section with the fields of `changes`; raises TypeError for unknown ones."""
    unknown = sorted(set(changes) - set(section))
    if unknown:
        raise TypeError(f"no such fields: {unknown}")
    return {**section, **changes}


# Data mixing (S2, `objectives.mixing`), turned off. With MAE a mixed image would be a new
# example, hence the reading.
NO_MIXING = dict(
    operator="none", alpha=1.0, pairing="target_source", reading="instance"
)


def reconstruct() -> dict[str, Any]:
    """Returns the objective of MAE (He et al. 2022): 75 % of the patches are hidden."""
    return dict(
        name="reconstruct",
        hidden_ratio=0.75,
        normalize_patches=True,
        mixing=NO_MIXING,
    )


# States of CLS of 350 000 examples of ViT-B.
TEACHER_CACHE_BYTES = 2**30


def distill(masked: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the objective of self-distillation (S1, Lee et al. 2023).

    The squared distance of the final CLS states, summed over features, with weight 1, and
    the masked loss. masked: the section of the masked loss; None: `reconstruct()`. beta:
    of match "features" alone (Wei et al. 2022). teacher_cache_bytes: where inputs are not
    augmented and the compared states of all examples fit into it, the teacher runs once
    per example (see `objectives.teacher`); 0: in every step.
    """
    return dict(
        name="distill",
        masked=masked or reconstruct(),
        masked_weight=1.0,
        match="states",
        state="cls",
        layers=(-1,),
        reduce="sum",
        beta=2.0,
        weight=1.0,
        teacher_cache_bytes=TEACHER_CACHE_BYTES,
    )


def contrast(**changes: Any) -> dict[str, Any]:
    """Returns the contrastive objective of MoCo-v3 (Chen et al. 2021), as published."""
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
    """Returns MoCo-v3's heads for a ViT: 3 layers 4096-4096-256 and a predictor of 2."""
    section = dict(
        layers=3, hidden=4096, width=256, predictor_layers=2, batch_norm=True
    )
    return change(section, changes)


def replay(source: Any, ratio: float, **changes: Any) -> dict[str, Any]:
    """Returns replay of `ratio` source examples for one of the target, in every batch.

    source: a data section, or a tuple of them. buffer_size: number of source examples that
    are drawn in all; 0: the number follows from the ratio; else the ratio is that of the
    batches alone. Ratio 0 with sampling="joint": an epoch has every example of the target
    and the sources once.
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
    """Returns the objective of classification: cross-entropy, no smoothing, no mixing."""
    return dict(name="classify", label_smoothing=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)


def glad(masked: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Returns the objective of GLAD (S4, Yoon et al. 2023); all values are ours.

    The weight is 1, of 0.1, 1 and 10. masked: the section of the masked loss of regularizer
    "masked"; None: `reconstruct()`.
    """
    section = dict(
        classify(),
        name="glad",
        regularizer="preserve",
        weight=1.0,
        preserve="features",
        state="tokens",
        layers=(-1,),
        masked=masked or reconstruct(),
        stop_backbone=False,
    )
    return change(section, changes)


def regress() -> dict[str, Any]:
    """Returns the objective of regression: squared error of labels that are numbers."""
    return dict(name="regress")


def sweep(lrs: tuple[float, ...], **changes: Any) -> dict[str, Any]:
    """Returns a choice among learning rates by held-out examples, see `experiment.sweep`."""
    return change(dict(lrs=lrs, metric="accuracy", mode="max"), changes)


# Metrics that a stage can watch -> whether the largest ("max") or smallest is the best.
METRICS = {
    "target/knn": "max",
    "target/probe": "max",
    "pool/rankme": "max",
    "held_out/loss": "min",
    "held_out/accuracy": "max",
    "source/knn": "max",
}
# What a stage does that has become worse: it says so, or has its initial weights as result.
ON_HURT = ("warn", "rollback")


def split_metrics(text: str) -> tuple[str, ...]:
    """Returns the names of METRICS that a text joins by +; the first one decides."""
    return tuple(text.split("+"))


def check_metrics(what: str, text: str) -> None:
    """Raises UserError where the field `what` names an unknown metric, or one twice."""
    names = split_metrics(text)
    for name in names:
        choose(what, name, METRICS)
        if names.count(name) > 1:
            raise UserError(f"{what}={text!r} has {name} twice: name each metric once")


def watch(metric: str, **changes: Any) -> dict[str, Any]:
    """Returns how a stage watches a metric, see `stage.watching`; the values are ours.

    metric: of METRICS, or several of them joined by +, of which the first decides.
    """
    section = dict(
        metric=metric,
        every_steps=100,
        patience=3,
        min_delta=0.0,
        on_hurt="warn",
        examples=1024,
    )
    return change(section, changes)


def stage_model(**changes: Any) -> dict[str, Any]:
    """Returns a stage's changes of the model: no dropout, no new parts, no resizing.

    head_init: standard deviation of a new head's kernel; 0: the model's own, 0.02.
    """
    section = dict(
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
        fresh=(),
        reshape=(),
        resize=None,
        projector=None,
        head_norm=False,
        head_init=0.0,
        adaptor=None,
        lora=None,
        grow_head=False,
    )
    return change(section, changes)


def memory(**changes: Any) -> dict[str, Any]:
    """Returns how a stage saves memory: where large models need it, see `base.memory`."""
    return change(dict(remat="auto", scan=False, logit_chunks=1), changes)


def adafactor(**changes: Any) -> dict[str, Any]:
    """Returns the section `optim.adafactor` (Shazeer and Stern 2018; optax's values)."""
    section = dict(
        min_factored=128, decay_rate=0.8, clip=1.0, by_scale=True, momentum=0.0
    )
    return change(section, changes)


def adaptor(**changes: Any) -> dict[str, Any]:
    """Returns adaptors of GLAD attention (S4): a vector for logits, one for values; ours."""
    return change(dict(kind="vector", keywise=False, hidden=0), changes)


# The width of bottleneck adaptors where no argument says it (ours).
BOTTLENECK = 64


def adaptor_of(kind: str, bottleneck: int = BOTTLENECK, **changes: Any) -> dict:
    """Returns adaptors of a kind; `bottleneck` is the width of those that have one."""
    hidden = bottleneck if kind == "bottleneck" else 0
    return adaptor(kind=kind, hidden=hidden, **changes)


def resize(width: int, **changes: Any) -> dict[str, Any]:
    """Returns a last block of `width` features, whose first ones stay as they were (S3).

    `surgery.last_block` explains the fields.
    """
    section = dict(
        kind="resized",
        width=width,
        relu=False,
        mlp_dim=0,
        init="preserve",
        noise=1.0,
        tokens="all",
    )
    return change(section, changes)
