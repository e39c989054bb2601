"""MAE's recipe of fine-tuning (He et al. 2022, table 9 and official code)."""

from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError
from flax_adapt.defaults import augment, sections, shared, vision

# The arguments of mae_finetune, which explains them. 0: of the recipe.
MAE_FINETUNE_ARGUMENTS = dict(
    {**vision.S1_ARGUMENTS, "dataset": "", "augment": "mae"},
    epochs=0,
    batch_size=1_024,
    blr=5e-4,
    warmup_epochs=5,
    seeds=1,
)


class Recipe(NamedTuple):
    """The training settings that depend on the size of the model."""

    epochs: int
    layer_decay: float
    drop_path: float


# By the width of the model. Smaller ones than B are not in the paper: B's (ours).
RECIPES = {1_024: Recipe(50, 0.75, 0.2), 1_280: Recipe(50, 0.75, 0.3)}
BASE = Recipe(100, 0.65, 0.1)


def mae_finetune(args: Any) -> dict[str, Any]:
    """Returns the experiment of the arguments MAE_FINETUNE_ARGUMENTS."""
    if not (args.dataset and args.init):
        raise UserError("the config needs dataset=SOURCE with labels and init=PATH")
    data = vision.S1Data(args)
    return data.experiment([_stage(data, args)])


def _stage(data: vision.S1Data, args: Any) -> dict[str, Any]:
    """Fine-tuning of `init` as MAE's; the rate is blr * batch / 256, to 0 (there 1e-6)."""
    recipe = RECIPES.get(data.model["width"], BASE)
    if (
        min(args.epochs, args.warmup_epochs) < 0
        or args.batch_size < 1
        or args.seeds < 1
    ):
        raise UserError(
            f"epochs={args.epochs} and warmup_epochs={args.warmup_epochs} must be at least "
            f"0, batch_size={args.batch_size} and seeds={args.seeds} at least 1"
        )
    images = shared.count_examples(data.labelled)
    epochs, batch_size = args.epochs or recipe.epochs, min(args.batch_size, images)
    steps_per_epoch = max(images // batch_size, 1)
    optim = shared.finetune_optim(
        lr=args.blr * batch_size / 256,
        schedule="cosine",
        warmup_steps=args.warmup_epochs * steps_per_epoch,
        weight_decay=0.05,
        decay="mae_finetune",
        clip_norm=0.0,
        layer_decay=recipe.layer_decay,
    )
    # The mean of the patches, normalised after pooling; a head that says nothing at first.
    model = sections.stage_model(
        drop_path=recipe.drop_path,
        pooling="mean_norm",
        fresh=("head",),
        head_init=2e-5,
    )
    objective = {
        **sections.classify(),
        "label_smoothing": 0.1,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
    }
    section = data.finetune_stage(
        "finetune",
        data.original,
        seeds=tuple(range(args.seeds)),
        objective=objective,
        num_steps=epochs * steps_per_epoch,
        batch_size=batch_size,
        optim=optim,
    )
    return {
        **section,
        "data": {**data.labelled, "augment": augment.section_of(args.augment)},
        "model": {**model, "reshape": section["model"]["reshape"]},
    }
