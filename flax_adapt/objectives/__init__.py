"""Objectives: the losses that training minimises. All have one signature.

    loss_fn(params, frozen, batch, key_B) -> (scalar loss, {"name": metric, ...})

`params` are the trained parameters. `frozen` holds arrays that get no gradient, such as
the teacher's parameters. `key_B` holds one PRNG key for every example. The batch has
"image" (float32, normalised) or "text" (`types.Text`), the model's `modality`; for
`contrast` of images it also has "views", two images. Metrics are sums with counts
(`metrics`), divided once. The metric "loss", a `metrics.Loss`, is always present: where a
batch is run in parts, its terms are summed over the parts. Any objective can be combined
with `penalties`.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from flax_adapt.base import keys
from flax_adapt.base.checks import Check, Context, Row, one_of, present
from flax_adapt.base.errors import choose, unknown
from flax_adapt.base.types import (
    NOTHING_CARRIED,
    Array,
    Batch,
    Carry,
    Key,
    LossFn,
    Params,
    join_carries,
)
from flax_adapt.data.images import image
from flax_adapt.objectives import (
    classify,
    contrast,
    distill,
    glad,
    mixing,
    mlm,
    reconstruct,
    statistics,
)
from flax_adapt.objectives import ema as ema
from flax_adapt.objectives import penalties as penalties

OBJECTIVES: dict[str, Callable[..., LossFn]] = {
    "reconstruct": reconstruct.make_loss,
    "mlm": mlm.make_loss,
    "distill": distill.make_loss,
    "classify": classify.make_loss,
    "regress": classify.make_regression,
    "contrast": contrast.make_loss,
    "glad": glad.make_loss,
}
# The task (see `models.TASKS`) that an objective trains.
TASKS = {
    "reconstruct": "mae",
    "mlm": "mlm",
    "classify": "classify",
    "regress": "classify",
    "contrast": "contrast",
    "glad": "classify",
}
# The objectives that compare hidden states, which may be those of the first token alone.
COMPARE_STATES = ("distill", "glad")
# The metrics of an objective; `eval.metric` names one of them.
METRICS = {
    "reconstruct": ("loss", "reconstruct"),
    "mlm": ("loss", "mlm", "mlm_accuracy", "perplexity"),
    "classify": ("loss", "accuracy", "macro_f1", "micro_f1", "matthews"),
    "regress": ("loss", "spearman"),
    "contrast": ("loss", "contrast", "contrast_accuracy"),
    "glad": ("loss", "accuracy", "macro_f1", "micro_f1", "matthews"),
}
# Arrays that an objective updates at every step without a gradient (`types.Carry`).
CARRIES = {"contrast": contrast.make_carry}
# The values of `mixing.reading` that an objective supports; the others do not mix examples.
MIXES = {
    "reconstruct": ("instance",),
    "contrast": tuple(mixing.READINGS),
}

# Constants that are folded into PRNG keys; the number of the view is added to _AUGMENT.
_MIX, _AUGMENT = 0x416, 0x417


def task_of(config: Any) -> str:
    """Returns the task that an objective trains; "distill" trains its masked objective's.

    Raises UserError for an unknown name.
    """
    distills = choose("objective.name", config.name, OBJECTIVES) is distill.make_loss
    name = config.masked.name if distills else config.name
    return choose("objective.masked.name", name, TASKS)


def metrics_of(config: Any) -> tuple[str, ...]:
    """Returns the names of an objective's metrics, of which `eval.metric` is one."""
    if config.name == "distill":
        measured = METRICS[config.masked.name] if config.masked_weight else ("loss",)
        return (*measured, "distill")
    return METRICS[config.name]


def second_task_of(config: Any) -> str | None:
    """Returns the second task that is trained on the same encoder as `task_of`, or None."""
    return glad.second_task(config) if config.name == "glad" else None


def teacher_task(config: Any) -> str:
    """Returns the task of the teacher; "encoder" where hidden states are compared."""
    return task_of(config) if config.match == "predictions" else "encoder"


def keeps_start(config: Any) -> bool:
    """Returns whether the loss needs the initial weights of the encoder, `frozen["start"]`."""
    return config.name == "glad" and config.regularizer == "preserve"


def build(
    config: Any,
    model: nn.Module,
    *,
    train: bool = True,
    second_model: nn.Module | None = None,
    one_document: bool = False,
) -> LossFn:
    """Returns the loss of `config.name`. `train=False`: no dropout, mixing, smoothing.

    model: of the task `task_of(config)`. second_model: the model of the task
    `second_task_of(config)`, which is applied to the same parameters. one_document: whether
    each row of text holds one document, so that its CLS is the first token; the loss is
    the same for less work. Raises UserError for an unknown name, and for fields that are
    out of range or do not fit the model.
    """
    make = choose("objective.name", config.name, OBJECTIVES)
    extra: dict[str, Any] = {}
    if second_model is not None:
        extra["second_model"] = second_model
    if config.name in COMPARE_STATES:
        extra["one_document"] = one_document
    return make(config, model, train, **extra)


def build_carry(
    config: Any, num_steps: int, running: Params = MappingProxyType({})
) -> Carry:
    """Returns the `Carry` of `config.name`: arrays that each of `num_steps` steps updates.

    running: initial running statistics of batch norm, see `models.batch_stats`.
    """
    carries = (
        [CARRIES[config.name](config, num_steps)] if config.name in CARRIES else []
    )
    if running:
        carries.append(statistics.make_carry(running))
    return join_carries(carries) if carries else NOTHING_CARRIED


def mixing_of(config: Any) -> Any | None:
    """Returns the mixing section of an objective, None where no examples are mixed.

    For "distill" it is the section of its masked objective.
    """
    section = config.masked if config.name == "distill" else config
    if section.name not in MIXES or section.mixing.operator == "none":
        return None
    return section.mixing


class _Choice(NamedTuple):
    """A section `eval` or `sweep`, its field, and the metrics that it may choose by."""

    field: str
    section: Any
    measured: tuple[str, ...]


def _choices(at: Context) -> list[_Choice]:
    measured, section = metrics_of(at.section.objective), at.section
    both = {"eval": section.eval, "sweep": section.sweep}
    return [_Choice(name, it, measured) for name, it in both.items() if it is not None]


class _Mixes(NamedTuple):
    """A mixing section, the objective that trains on the mixtures, and its stage."""

    mixing: Any
    reader: str
    section: Any


def _mixes(at: Context) -> list[_Mixes]:
    config = at.section.objective
    reader = (config.masked if config.name == "distill" else config).name
    return [_Mixes(it, reader, at.section) for it in present(mixing_of(config))]


_NAMED = (
    one_of("objective.name", lambda it: it.name, OBJECTIVES),
    one_of(
        "objective.masked.name",
        lambda it: it.masked.name if it.name == "distill" else it.name,
        TASKS,
    ),
)
_CHOSEN = (
    Row(
        lambda it: it.section.metric in it.measured,
        lambda it: unknown(f"{it.field}.metric", it.section.metric, it.measured),
    ),
    Row(
        lambda it: it.section.mode in ("max", "min"),
        lambda it: unknown(f"{it.field}.mode", it.section.mode, ("max", "min")),
    ),
)
# The objective must support the reading; partners from the source need a `replay`.
_MIXED = (
    Row(
        lambda it: it.mixing.reading in MIXES[it.reader],
        lambda it: (
            f"objective.mixing.reading={it.mixing.reading!r}: {it.reader!r} reads a mixture "
            f"as {' or '.join(MIXES[it.reader])}"
        ),
    ),
    Row(
        lambda it: (
            it.mixing.pairing != "target_source" or it.section.replay is not None
        ),
        "objective.mixing.pairing='target_source' needs source examples in the batch: give "
        "the stage a `replay`, or pair 'target_target' or 'any'",
    ),
)
CHECKS = (
    Check(lambda at: [at.section.objective], _NAMED),
    Check(_choices, _CHOSEN),
    Check(lambda at: [it.mixing for it in _mixes(at)], mixing.ROWS),
    Check(_mixes, _MIXED),
)


def on_pixels(
    loss_fn: LossFn, config_objective: Any, config_data: Any, *, train: bool
) -> LossFn:
    """Returns a loss of uint8 images [B, Y, X, C], which are augmented and normalised first.

    This happens on the device. `loss_fn` finds one augmentation for each of `data.views`
    under "views", in evaluation, too. With the mixing reading "instance" every image is
    mixed with its partner before it is augmented. For text `loss_fn` itself is returned:
    its batches have the form that the model needs.
    """
    if config_data.modality != "image":
        return loss_fn
    mixed = mixing_of(config_objective) if train else None
    plain = config_data.augment if train else None
    augments = tuple(config_data.views) or (plain,)

    def loss_on_pixels(params, frozen, batch, key_B):
        pixels_BYXC = batch["image"]
        if mixed is not None and mixed.reading == "instance":
            pixels_BYXC = _mix_pixels(batch, key_B, mixed)
        views = tuple(
            image.preprocess(
                pixels_BYXC, keys.fold(key_B, _AUGMENT + number), config_data, augment
            )
            for number, augment in enumerate(augments)
        )
        return loss_fn(
            params, frozen, {**batch, "image": views[0], "views": views}, key_B
        )

    return loss_on_pixels


def _mix_pixels(batch: Batch, key_B: Key, config_mixing: Any) -> Array:
    """Returns float32 pixels 0..255 [B, Y, X, C], every image mixed with its partner."""
    key_B = keys.fold(key_B, _MIX)
    partner_B = mixing.partners(batch, key_B, config_mixing)
    pixels_BYXC = batch["image"].astype(jnp.float32)
    return mixing.mix_images(pixels_BYXC, partner_B, key_B, config_mixing)[0]
