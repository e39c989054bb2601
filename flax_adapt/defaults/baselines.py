"""Sections of the baselines: penalties, LoRA, Fisher information, averages of weights.

The values are those of the papers (docs/methods/baselines.md); the others are marked as ours.
Every function takes fields to change by keyword, and raises TypeError for an unknown field.
"""

from typing import Any

from flax_adapt.defaults import shared
from flax_adapt.defaults.sections import change


def weight_distance(**changes: Any) -> dict[str, Any]:
    """Returns the penalty sum (w - w0)^2, an ablation of S1; the weight is ours."""
    return change(dict(name="weight_distance", weight=1.0), changes)


def l2_sp(**changes: Any) -> dict[str, Any]:
    """Returns L2-SP (Li et al. 2018): alpha 0.1 on pretrained weights, beta 0.01 on new ones."""
    return change(dict(name="l2_sp", weight=1.0, alpha=0.1, beta=0.01), changes)


def ewc(of: str | tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """Returns EWC (Kirkpatrick et al. 2017): lambda 10 to 25.

    of: reference to a stage with a section `fisher`, such as "stage:NAME", or a tuple of
    several; the penalty is around the weights of each of them.
    """
    return change(dict(name="ewc", weight=10.0, of=of), changes)


def r3f(**changes: Any) -> dict[str, Any]:
    """Returns R3F (Aghajanyan et al. 2020): eps 1e-5, lambda 1; normal or uniform noise."""
    return change(dict(name="r3f", weight=1.0, noise="normal", eps=1e-5), changes)


def lwf(of: str, **changes: Any) -> dict[str, Any]:
    """Returns LwF (Li and Hoiem 2017): temperature 2, weight 0.5.

    of: reference to the stage of the old classifier.
    """
    return change(dict(name="lwf", weight=0.5, of=of, temperature=2.0), changes)


def er(**changes: Any) -> dict[str, Any]:
    """Returns experience replay: both cross-entropies count alike (ours; DER++: 0.5 to 1)."""
    return change(dict(name="er", weight=1.0), changes)


def der(of: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """Returns DER (Buzzega et al. 2020): weight 0.1 to 0.2.

    of: for each source of `replay.data`, a reference to the stage that learnt it.
    """
    return change(dict(name="der", weight=0.1, of=of), changes)


def fisher(**changes: Any) -> dict[str, Any]:
    """Returns the section of the Fisher information; all values are ours.

    1 000 examples with labels drawn from the model, and decay 1.0: all tasks count alike.
    batch_size: gradients computed at once, rounded up to a multiple of the devices.
    """
    section = dict(num_examples=1_000, labels="model", decay=1.0, batch_size=8)
    return change(section, changes)


def lora(**changes: Any) -> dict[str, Any]:
    """Returns LoRA (Hu et al. 2021): rank 8, alpha 16, of query and value."""
    return change(dict(rank=8, alpha=16.0, targets=("query", "value")), changes)


def ema(**changes: Any) -> dict[str, Any]:
    """Returns a moving average of the weights: momentum 0.99 -> 1 by a cosine.

    With `warmup` the momentum is less in the first steps (`objectives.ema.rate_at`).
    """
    return change(dict(momentum=0.99, schedule="cosine", warmup=True), changes)


def recadam(**changes: Any) -> dict[str, Any]:
    """Returns RecAdam (Chen et al. 2020): gamma 5000, k 0.5, t0 250.

    A k or t0 of 0 stands for this value, scaled with the length of a stage of fewer than
    1 000 steps.
    """
    return change(dict(gamma=5000.0, k=0.0, t0=0.0), changes)


def mars(**changes: Any) -> dict[str, Any]:
    """Returns fields of `optim` for MARS (Gouk et al. 2021); the radii are ours, not searched.

    The official code searches both between 1.6 and 33 for each data set.
    """
    section = dict(mars_radius=MARS_RADIUS, mars_head_radius=10.0, mars_norms=True)
    return change(section, changes)


def sgd(**changes: Any) -> dict[str, Any]:
    """Returns SGD with momentum 0.9, without Nesterov, as torch's reference recipes have it."""
    return change(dict(momentum=0.9, nesterov=False), changes)


def exact_probe_optim(**changes: Any) -> dict[str, Any]:
    """Returns `optim` for a linear probe that is solved exactly in one step; ours.

    The encoder is frozen; the penalty is chosen by 5-fold validation (`train.linear`). For the
    probe that He et al. 2022 train by LARS for 90 epochs see `probe_optim`.
    """
    section = shared.finetune_optim(
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        clip_norm=0.0,
        freeze=("encoder/.*",),
        solve=dict(l2=0.0, folds=5),
    )
    return change(section, changes)


def probe_optim(num_steps: int, lr: float, **changes: Any) -> dict[str, Any]:
    """Returns `optim` for a linear probe trained by LARS (He et al. 2022, official code).

    No weight decay, a ninth of the steps is warm-up (10 of 90 epochs), then a cosine. The
    head's kernel starts at a standard deviation of HEAD_INIT (`model.head_init`).
    """
    section = shared.finetune_optim(
        lr=lr,
        schedule="cosine",
        warmup_steps=num_steps // 9,
        weight_decay=0.0,
        clip_norm=0.0,
        freeze=("encoder/.*",),
        lars=dict(momentum=0.9, trust=1e-3),
    )
    return change(section, changes)


HEAD_INIT = 0.01  # He et al. 2022, official code, main_linprobe.py


# Learning rates of LP-FT after the probe, as factors of that of full fine-tuning. Kumar et
# al. 2022 sweep the rate; these factors are ours.
LP_FT_LRS = (0.1, 0.3, 1.0)
# Gouk et al. 2021 search the radius for each data set; ours is not searched. A kernel of
# ViT-B has row sums of about 15.
MARS_RADIUS = 1.0
