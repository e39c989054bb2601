"""Steps, batch sizes and learning rates of the config `adapt`, from the size of the data.

"auto" is ours. Training without labels takes EPOCHS passes over its data, at least
LEAST steps and at most the published number; fine-tuning takes FINETUNE_EPOCHS passes with
bounds of the same kind. Learning rates are those of the recipes, at their batch sizes; a
smaller batch, of a smaller set, lowers them in proportion. "paper" has the published steps.
"""

from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import modality, shared

EPOCHS, LEAST = 50, 200
FINETUNE_EPOCHS, FINETUNE_LEAST = 30, 100


class Sizes(NamedTuple):
    """Numbers of the stages without labels, of fine-tuning, and of training a new part."""

    steps: int
    batch_size: int
    lr: float
    finetune_steps: int
    finetune_batch_size: int
    finetune_lr: float
    new_part_steps: int


# Modality -> steps, batch and rate of training without labels, and of fine-tuning: Lee et
# al. 2023 for images, Gururangan et al. 2020 for texts (64 rows and steps of fine-tuning: ours).
PUBLISHED = {
    True: Sizes(20_000, 64, modality.ADAMW_LR, 10_000, 32, 1e-4, 1_000),
    False: Sizes(12_500, 64, 1e-4, 1_000, 16, 2e-5, 500),
}


def sizes_of(adapting: Any) -> Sizes:
    """Returns the sizes of an `Adapting`: arguments, else the rule that `sizes` names.

    Raises UserError for an argument below 0 and for an unknown rule.
    """
    args, published = adapting.args, PUBLISHED[adapting.start.is_image]
    rule = choose("sizes", args.sizes, RULES)
    ruled = rule(
        published, _count(adapting.unlabelled), _count(adapting.labelled)
    )._asdict()
    # Fine-tuning need not take more steps than the training before it.
    if args.steps > 0:
        ruled["finetune_steps"] = min(ruled["finetune_steps"], args.steps)
    wrong = [name for name in ruled if args[name] < 0]
    if wrong:
        raise UserError(
            f"{wrong[0]}={args[wrong[0]]} must be above 0, or 0 for the rule"
        )
    return Sizes(**{name: args[name] or value for name, value in ruled.items()})


def _count(section: dict[str, Any] | None) -> int:
    return shared.count_examples(section) if section else 0


def fit_batch(published: int, examples: int) -> int:
    """Returns the batch size of a set: the published one, less for fewer examples.

    It is a power of two that holds the whole set, of 16 or more, so that usual numbers of
    devices divide it. 0 examples: the published one.
    """
    if not examples:
        return published
    return min(published, max(16, 1 << (examples - 1).bit_length()))


def _auto(published: Sizes, unlabelled: int, labelled: int) -> Sizes:
    batch = fit_batch(published.batch_size, unlabelled)
    steps = max(LEAST, EPOCHS * unlabelled // batch)
    finetune_batch = fit_batch(published.finetune_batch_size, labelled)
    finetune_steps = max(FINETUNE_LEAST, FINETUNE_EPOCHS * labelled // finetune_batch)
    return Sizes(
        steps=min(published.steps, steps),
        batch_size=batch,
        lr=published.lr * batch / published.batch_size,
        finetune_steps=min(published.finetune_steps, finetune_steps),
        finetune_batch_size=finetune_batch,
        finetune_lr=published.finetune_lr
        * finetune_batch
        / published.finetune_batch_size,
        new_part_steps=min(published.new_part_steps, steps),
    )


def _paper(published: Sizes, unlabelled: int, labelled: int) -> Sizes:
    del unlabelled, labelled
    return published


RULES = {"auto": _auto, "paper": _paper}
