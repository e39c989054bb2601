"""Training settings of supervised stages: one source for every arm of a comparison.

What a config does not give is S1's for images (`shared.finetune_stage`) and Gururangan et
al.'s for texts (`text.text_finetune_stage`). A method adds its own fields to that.
"""

from typing import Any

from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import augment, sections, shared, text

# The arguments of every config that compares ways to fine-tune; baseline_finetune
# explains them. 0 or "": the value of vit_finetune or text_finetune.
SUPERVISED_ARGUMENTS: dict[str, Any] = dict(
    augment="",
    seeds=3,
    steps=0,
    batch_size=0,
    lr=0.0,
    lrs="",
    dropout=0.1,
    pooling="",
)
# What the head can stand on, and what it stands on where a config does not say.
POOLING = {"image": ("cls", "mean"), "text": ("pooler", "cls", "mean")}


def pooling_of(modality: str, name: str) -> str:
    """Returns the pooling that an argument names, of a modality; "": its first."""
    first, *others = POOLING[modality]
    return choose("pooling", name or first, {one: one for one in (first, *others)})


def augmented(section: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a data section for supervised training, as the argument `augment` says."""
    if section["modality"] == "text":
        augment.check_texts(name)
        return section
    return {**section, "augment": augment.of_images(name)}


def stage(
    name: str, train: dict[str, Any], test: dict[str, Any], args: Any
) -> dict[str, Any]:
    """Full fine-tuning of `init` as the arguments of SUPERVISED_ARGUMENTS say."""
    if train["modality"] == "image":
        return settled(shared.finetune_stage(name, train, test), args)
    pooling = pooling_of("text", args.pooling)
    return settled(text.text_finetune_stage(name, train, test, pooling), args)


def settled(section: dict[str, Any], args: Any) -> dict[str, Any]:
    """Returns a stage of fine-tuning with the settings that all arms have alike."""
    data = augmented(section["data"], args.augment)
    pooling = pooling_of(data["modality"], args.pooling)
    model = {**section["model"], "dropout": args.dropout, "pooling": pooling}
    fields = dict(data=data, model=model, seeds=tuple(range(args.seeds)))
    sizes = dict(steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    return sized({**section, **fields}, **sizes)


def sized(
    section: dict[str, Any], *, steps: int = 0, batch_size: int = 0, lr: float = 0.0
) -> dict[str, Any]:
    """Returns a stage with these sizes where they are not 0.

    The warm-up takes the same share of the steps as before.
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


def swept(section: dict[str, Any], lrs: str) -> dict[str, Any]:
    """Returns a stage that chooses among the learning rates of an argument `lrs`."""
    if not lrs:
        return section
    rates = numbers("lrs", lrs)
    optim = {**section["optim"], "lr": rates[0]}
    return {**section, "optim": optim, "sweep": sweep(rates, section)}


def sweep(lrs: tuple[float, ...], section: dict[str, Any]) -> dict[str, Any] | None:
    """A section `sweep` that chooses by what the stage is evaluated by; one rate: None."""
    if len(lrs) == 1:
        return None
    if section["data"]["subset"]["per_class"] == 1:
        raise UserError(
            "per_class=1 leaves no label to choose a learning rate by; give per_class of "
            "2 or more, or one rate each: lrs=1e-4,probe_lrs=10"
        )
    how = {name: section["eval"][name] for name in ("metric", "mode")}
    return sections.sweep(lrs, **how)


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Returns the numbers of an argument such as `lrs=1e-4+3e-4`."""
    try:
        return tuple(float(one) for one in text.split("+"))
    except ValueError:
        raise UserError(f"{name}={text!r} must be numbers joined by +") from None
