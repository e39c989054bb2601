"""What both modalities share: optimizers, stages, objectives, the top level."""

from typing import Any

from flax_adapt.errors import UserError

ALL = dict(per_class=0, fraction=1.0, seed=0, part="chosen")


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
    )
    return change(section, changes)


def reconstruct() -> dict[str, Any]:
    return dict(name="reconstruct", hidden_ratio=0.75, normalize_patches=True)


def distill(masked: dict[str, Any] | None = None) -> dict[str, Any]:
    """S1: squared distance of the final CLS states, summed over features, weight 1.

    masked: the masked part; None: `reconstruct()`.
    """
    return dict(
        name="distill",
        masked=masked or reconstruct(),
        state="cls",
        layers=(-1,),
        reduce="sum",
        weight=1.0,
    )


def classify() -> dict[str, Any]:
    return dict(name="classify", label_smoothing=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)


def regress() -> dict[str, Any]:
    return dict(name="regress")


def pretrain_stage(name: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """S1's further pre-training: 20 000 steps of 64 images from the pretrained model."""
    section = dict(
        name=name,
        seeds=(0,),
        objective=reconstruct(),
        num_steps=20_000,
        batch_size=64,
        data=data,
        optim=pretrain_optim(),
        model=dict(
            dropout=0.0,
            drop_path=0.0,
            pooling="cls",
            num_classes=0,
            fresh=(),
            reshape=(),
        ),
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
        optim=finetune_optim(),
        model=dict(
            dropout=0.1,
            drop_path=0.0,
            pooling="cls",
            num_classes=0,
            fresh=("head",),
            reshape=(),
        ),
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


def evaluate(train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """What `flax-adapt eval` measures; the kNN values are DINO's, the rest is ours."""
    return dict(
        train=train,
        test=test,
        batch_size=64,
        pooling="cls",
        knn_k=20,
        knn_temperature=0.07,
        probe_l2=1e-3,
        probe_max_iterations=1_000,
    )


def experiment(**sections: Any) -> dict[str, Any]:
    """The top level of a config; `init`, `model`, `evaluate` and `stages` must be given."""
    section = dict(
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
