"""Converts weights from one format to another."""

from flax_adapt.base.hub import weights_path
from flax_adapt.base.paths import local_path
from flax_adapt.commands.values import parse_values
from flax_adapt.weights import convert as converting


def convert(
    from_: str,
    to: str,
    from_format: str,
    format: str,
    task: str,
    known: str,
    change: str,
    fresh: list[str],
    num_classes: int,
    seed: int,
) -> None:
    """Writes weights in another format, tensor by tensor; prints a report on each."""
    done = converting.convert(
        weights_path(from_),
        local_path(to),
        source_format=from_format or None,
        target_format=format,
        task=task or None,
        known=parse_values("--known", known),
        changes=parse_values("--change", change),
        fresh=tuple(name for names in fresh for name in names.split(",") if name),
        num_classes=num_classes,
        seed=seed,
    )
    print(done.report.overview())
    print(f"{to}: {format}, task {done.task}: {done.report.summary()}")
    if done.left_out:
        print(f"left out, since {format} has no place for it: {done.left_out}")
