"""Training settings of supervised stages: all methods of a comparison have the same.

Defaults are those of Lee et al. 2023 for images (`shared.finetune_stage`) and of Gururangan
et al. 2020 for texts (`text.text_finetune_stage`). A method adds its own fields.
"""

from typing import Any

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import augment, sections, shared, text

# Arguments of every config that compares methods of fine-tuning; the docstring of
# baseline_finetune explains them. 0 or "": the value of vit_finetune or text_finetune.
SUPERVISED_ARGUMENTS: dict[str, Any] = dict(
    augment="",
    seeds=3,
    labels="each_seed",
    steps=0,
    batch_size=0,
    lr=0.0,
    lrs="",
    dropout=0.1,
    pooling="",
)
# Modality -> the features that a head can read; the first is the default.
POOLING = {"image": ("cls", "mean"), "text": ("pooler", "cls", "mean")}


def pooling_of(modality: str, name: str) -> str:
    """Returns the pooling for an argument `pooling`; "" means the first of the modality.

    Raises UserError for a pooling that the modality does not have.
    """
    first, *others = POOLING[modality]
    return choose("pooling", name or first, {one: one for one in (first, *others)})


def add_augment(section: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a data section with the augmentation of a config's argument `augment`.

    Raises UserError for texts with augmentation, and for an unknown name.
    """
    if section["modality"] == "text":
        augment.check_texts(name)
        return section
    return {**section, "augment": augment.section_of(name)}


def make_stage(
    name: str, train: dict[str, Any], test: dict[str, Any], args: Any
) -> dict[str, Any]:
    """Returns the stage of full fine-tuning of `init`; args: has SUPERVISED_ARGUMENTS."""
    if train["modality"] == "image":
        return apply_settings(shared.finetune_stage(name, train, test), args)
    pooling = pooling_of("text", args.pooling)
    return apply_settings(text.text_finetune_stage(name, train, test, pooling), args)


def apply_settings(section: dict[str, Any], args: Any) -> dict[str, Any]:
    """Returns a stage of fine-tuning with the settings in `args`, which all methods share."""
    data = add_augment(section["data"], args.augment)
    pooling = pooling_of(data["modality"], args.pooling)
    model = {**section["model"], "dropout": args.dropout, "pooling": pooling}
    fields = dict(data=data, model=model, seeds=tuple(range(args.seeds)))
    sizes = dict(steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    return change_sizes({**section, **fields}, **sizes)


def change_sizes(
    section: dict[str, Any], *, steps: int = 0, batch_size: int = 0, lr: float = 0.0
) -> dict[str, Any]:
    """Returns a stage with other steps, batch size or learning rate; 0: unchanged.

    The warm-up keeps its share of the steps.
    """
    optim, before = section["optim"], section["num_steps"]
    steps = steps or before
    warmup = optim["warmup_steps"] * steps // before
    return {
        **section,
        "num_steps": steps,
        "batch_size": batch_size or section["batch_size"],
        "optim": {**optim, "lr": lr or optim["lr"], "warmup_steps": warmup},
    }


def add_sweep(section: dict[str, Any], lrs: str) -> dict[str, Any]:
    """Returns a stage that chooses among learning rates; lrs: as in "1e-4+3e-4", or ""."""
    if not lrs:
        return section
    rates = parse_numbers("lrs", lrs)
    optim = {**section["optim"], "lr": rates[0]}
    return {**section, "optim": optim, "sweep": make_sweep(rates, section)}


def make_sweep(
    lrs: tuple[float, ...], section: dict[str, Any]
) -> dict[str, Any] | None:
    """Returns a section `sweep` with the metric of the stage's evaluation, or None.

    None: there is one rate only. Raises UserError where per_class=1 leaves no label to hold
    out.
    """
    if len(lrs) == 1:
        return None
    if section["data"]["subset"]["per_class"] == 1:
        raise UserError(
            "per_class=1 leaves no label to choose a learning rate by; give per_class of "
            "2 or more, or one rate each: lrs=1e-4,probe_lrs=10"
        )
    how = {name: section["eval"][name] for name in ("metric", "mode")}
    return sections.sweep(lrs, **how)


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """Returns the numbers of an argument such as `lrs=1e-4+3e-4`, or raises UserError."""
    try:
        return tuple(float(one) for one in text.split("+"))
    except ValueError:
        raise UserError(f"{name}={text!r} must be numbers joined by +") from None
