"""The optimizer, one optax transformation: decay, freeze, layer decay, schedule, clipping.

It is AdamW, or the one of `OPTIMIZERS` whose section of `optim` is not None. With
`optim.mars_radius` the weights stay near the initial ones (`anchors`).
"""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import optax

from flax_adapt.base import checks, rules
from flax_adapt.base.checks import Check, Context, Row, one_of
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import LossFn, Params
from flax_adapt.train import adafactor, anchors, lars, schedules, sgd
from flax_adapt.train.schedules import schedule

# Adaptors of LoRA are matrices, and are decayed like their kernels.
_LOW_RANK = (r"lora/.*", True)
# Which leaves weight decay shrinks: True / False. Not GLAD's adaptors (ours): at zero they
# change nothing.
DECAY = {
    # MAE pre-training: matrices and tokens, nothing 1-D (S1). BERT the same: not biases and
    # LayerNorms (Devlin et al. 2019, official code). So does LARS of MoCo-v3 on a ResNet.
    "pretrain": (
        (r".*/(bias|scale)|(.*/)?adaptor/[^/]+", False),
        (r".*/(kernel|\w+_token|position|token|token_type)", True),
        _LOW_RANK,
    ),
    # Fine-tuning: not biases, positions, CLS, LayerScale; LayerNorm scales ARE decayed (S1).
    "finetune": (
        (r".*/(bias|layer_scale[12]/scale|(?!mask)\w+_token|position)", False),
        (r"(.*/)?adaptor/[^/]+", False),
        (r".*/(kernel|(?<!layer_scale\d/)scale|mask_token|token|token_type)", True),
        _LOW_RANK,
    ),
    # MAE's fine-tuning: nothing 1-D, not positions and CLS (He et al. 2022, lr_decay.py).
    "mae_finetune": (
        (r".*/(bias|scale|(?!mask)\w+_token|position)|(.*/)?adaptor/[^/]+", False),
        (r".*/(kernel|mask_token|token|token_type)", True),
        _LOW_RANK,
    ),
    # Every parameter: torch's AdamW and SGD where one group holds all of them, as in
    # MoCo-v3 on a ViT (Chen et al. 2021, official code).
    "all": ((r".*", True),),
}

# The dtype in which gradients are summed over devices: float32, or the one in which the
# model is computed, see `step.reduce_in_compute`.
GRAD_REDUCE = ("float32", "compute")

# Sections of `optim` that choose another optimizer than AdamW, and functions that build it:
# (config, schedule, decays, names of the new leaves, num_steps) -> transformation.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "recadam": anchors.recadam,
    "adafactor": lambda config, rate, decays, *rest: adafactor.adafactor(
        config, rate, decays
    ),
    "lars": lambda config, rate, decays, *rest: lars.lars(config, rate, decays),
    "sgd": lambda config, rate, decays, *rest: sgd.sgd(config, rate, decays),
}


def _choose_optimizers(config: Any) -> list[str]:
    return [name for name in OPTIMIZERS if config[name] is not None]


def _too_many(config: Any) -> str:
    names = [f"optim.{name}" for name in _choose_optimizers(config)]
    return (
        f"{' and '.join(names)} are {len(names)} optimizers: leave one, set others None"
    )


# Rules of a section `optim`; `anchors` and the optimizers have rules of their own.
ROWS = (
    *schedules.ROWS,
    one_of("optim.decay", lambda optim: optim.decay, DECAY),
    one_of("optim.grad_reduce", lambda optim: optim.grad_reduce, GRAD_REDUCE),
    Row(lambda optim: len(_choose_optimizers(optim)) <= 1, _too_many),
)
_PARTS = (
    Row(
        lambda optim: optim.accum_steps >= 1,
        "optim.accum_steps={0.accum_steps} must be at least 1",
    ),
)


# Rule of `optim.layer_decay`, which is defined for the blocks of a transformer only.
_OF_RESNET = (
    Row(
        lambda decay: decay == 1.0,
        "optim.layer_decay={0} must be 1.0: the stages of a resnet are no layers that a "
        "published decay is of",
    ),
)


def _of_resnet(at: Context) -> list[float]:
    is_resnet = at.config.model.kind == "resnet"
    return [at.section.optim.layer_decay] if is_resnet else []


# Rules of a stage whose `sweep` tries several rates.
_SWEEP = (
    Row(
        lambda at: (
            at.section.sweep.lrs
            and all(0 < lr < math.inf for lr in at.section.sweep.lrs)
        ),
        "sweep.lrs={0.section.sweep.lrs} must be one or more numbers above 0",
    ),
    Row(
        lambda at: (
            len({f"{lr:g}" for lr in at.section.sweep.lrs}) == len(at.section.sweep.lrs)
        ),
        "sweep.lrs={0.section.sweep.lrs} must differ",
    ),
    Row(
        lambda at: at.section.eval is not None,
        "sweep chooses by an evaluation, but eval is None",
    ),
    Row(
        lambda at: at.section.data.subset.part == "chosen",
        "sweep holds out a part of data.subset.part='chosen', not of "
        "{0.section.data.subset.part!r}",
    ),
)
CHECKS = (
    Check(lambda at: [at.section.optim], _PARTS),
    Check(lambda at: [at.section.optim], ROWS),
    Check(_of_resnet, _OF_RESNET),
    Check(lambda at: [] if at.section.sweep is None else [at], _SWEEP),
)


def trainable(freeze: tuple[str, ...], params: Params) -> Any:
    """Returns a tree of bools: False where a pattern of `optim.freeze` matches the name.

    Raises UserError for a pattern that matches no parameter.
    """
    for pattern in freeze:
        if not any(re.fullmatch(pattern, name) for name in rules.names(params)):
            raise UserError(
                f"optim.freeze: {pattern!r} matches no parameter; there are: "
                f"{', '.join(rules.names(params))}"
            )
    return rules.map_named(lambda name, _: not _is_frozen(name, freeze), params)


def _is_frozen(name: str, freeze: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in freeze)


def stop_frozen(loss_fn: LossFn, freeze: tuple[str, ...]) -> LossFn:
    """Returns the same loss without gradients to frozen leaves, so that none are computed."""

    def stop(name, leaf):
        return jax.lax.stop_gradient(leaf) if _is_frozen(name, freeze) else leaf

    return lambda params, *rest: loss_fn(rules.map_named(stop, params), *rest)


def layer_rules(decay: float, depth: int) -> rules.Rules[float]:
    """Returns lr multipliers decay^(L + 1 - l): l = 0 embeddings, 1..L blocks, L + 1 the rest.

    depth: L. Source: layer-wise lr decay of BEiT and of MAE's fine-tuning.
    """
    blocks = [
        (rf"(lora/)?encoder/block_{index:02d}/.*", decay ** (depth - index))
        for index in range(depth)
    ]
    return (
        (r"encoder/((\w*embed|pre_norm)/.*|\w+_token|position)", decay ** (depth + 1)),
        *blocks,
        (r"encoder/(norm|linear)/.*|(?!(lora/)?encoder/).*", 1.0),
    )


def _depth(params: Params) -> int:
    return sum(name.startswith("block_") for name in params["encoder"])


def scale_by_layer(decay: float, params: Params) -> optax.GradientTransformation:
    """Returns a transformation that multiplies every update by the rate of its layer.

    The update includes weight decay. Raises UserError for a resnet unless decay is 1.
    """
    if "stem" in params["encoder"]:
        checks.run(_OF_RESNET, decay)
    table = layer_rules(decay, _depth(params))
    scales = rules.assign("optim.layer_decay", table, params)
    by_name = rules.name_leaves(scales)
    return optax.stateless(
        lambda updates, _: rules.map_named(lambda name, u: u * by_name[name], updates)
    )


def _optimizer(
    config: Any, num_steps: int, fresh: Collection[str], rate: optax.Schedule
) -> optax.GradientTransformation:
    """Returns AdamW, or the one of OPTIMIZERS whose section of `optim` is not None."""
    table = DECAY[config.decay]

    def decays(tree: Params) -> Any:
        return rules.assign("optim.decay", table, tree)

    for name in _choose_optimizers(config):
        return OPTIMIZERS[name](config, rate, decays, fresh, num_steps)
    return optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decays,
        mu_dtype=adafactor.MOMENT_DTYPES[config.mu_dtype],
    )


def _steps(
    config: Any,
    num_steps: int,
    params: Params,
    fresh: Collection[str],
    rate: optax.Schedule,
) -> optax.GradientTransformation:
    """Returns the transformation of trained leaves: clipping, optimizer, layer decay, MARS."""
    steps = []
    if config.clip_norm > 0:
        steps.append(optax.clip_by_global_norm(config.clip_norm))
    steps.append(_optimizer(config, num_steps, fresh, rate))
    if config.layer_decay != 1.0:
        steps.append(scale_by_layer(config.layer_decay, params))
    if config.mars_radius > 0:
        steps.append(anchors.mars(config, fresh))
    return optax.chain(*steps)


def build(
    config: Any,
    num_steps: int,
    params: Params,
    fresh: Collection[str] = (),
    rate: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer of `config`; frozen leaves get no update and no optimizer state.

    `config`: optim section. `params` may be arrays or their shapes. fresh: names of the
    leaves that are new in a stage (`Report.fresh` of `weights`): RecAdam and MARS do not
    hold them near their initial values. rate: the learning rate by step, by default that of
    `config`. Raises UserError for fields that are out of range,
    for a leaf that is covered by no decay rule or by two, for a freeze pattern that matches
    no leaf, and where all leaves are frozen.
    """
    for rows in (ROWS, anchors.FIELD_ROWS, lars.ROWS, sgd.ROWS, adafactor.ROWS):
        checks.run(rows, config)
    rules.check(f"optim.decay={config.decay!r}", DECAY[config.decay], params)
    tree = trainable(config.freeze, params)
    if not any(jax.tree.leaves(tree)):
        raise UserError(f"optim.freeze={config.freeze} leaves nothing to train")
    labels = jax.tree.map(lambda trains: "train" if trains else "frozen", tree)
    rate = schedule(config, num_steps) if rate is None else rate
    tx = _steps(config, num_steps, params, fresh, rate)
    return optax.multi_transform({"train": tx, "frozen": optax.set_to_zero()}, labels)


def build_rated(
    config: Any, num_steps: int, params: Params, fresh: Collection[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `build`, whose `update` takes the learning rate of a step.

    rate: float32 [], an argument by keyword. One compiled program then serves all learning
    rates, warm-ups and schedules. The state is that of `build`.
    """

    def update(
        grads: Params, state: Any, values: Params | None = None, *, rate: Any
    ) -> tuple[Params, Any]:
        tx = build(config, num_steps, params, fresh, lambda step: rate)
        return tx.update(grads, state, values)

    init = build(config, num_steps, params, fresh).init
    return optax.GradientTransformationExtraArgs(init, update)


def takes_rate(config: Any, num_steps: int) -> bool:
    """Returns whether steps of `build_rated` have the bits of those of `build`.

    Without a warm-up XLA merges a constant rate with the constants of RecAdam and of layer
    decay, which rounds once where two products round twice (measured on CPUs).
    """
    merges = config.recadam is not None or config.layer_decay != 1.0
    return schedules.warmup_steps(config, num_steps) > 0 or not merges
