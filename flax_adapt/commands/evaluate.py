"""What the models of a workdir are worth, as `flax-adapt eval` prints it."""

from pathlib import Path
from typing import Any

from flax_adapt.base import logs
from flax_adapt.commands import jax_settings
from flax_adapt.experiment import measure, transfer


def evaluate(config: Any, workdir: str) -> None:
    """kNN, linear probe and drift of every finished stage of a workdir."""
    jax_settings.set_jax_up(Path(workdir), config.precision)
    rows = measure.evaluate(config, Path(workdir))
    print(logs.format_table(rows, tuple(rows[0])))
    if config.transfer is not None:
        matrices = transfer.report(config, Path(workdir), rows)
        print(f"\n{transfer.text(matrices)}\n")
        print(f"matrices: {Path(workdir) / 'transfer.json'}")
    print(f"results: {Path(workdir) / 'eval.json'}")
