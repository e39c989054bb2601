"""Measures the models of a workdir by kNN, linear probe and drift."""

from typing import Any

import jax

from flax_adapt.base import logs
from flax_adapt.commands.workdir import name_path, open_workdir
from flax_adapt.experiment import measure, provenance, recipe, transfer
from flax_adapt.experiment.measuring import leaks, verdicts
from flax_adapt.report import page
from flax_adapt.train import precision


def evaluate(config: Any, workdir: str, near_copies: bool, report: bool) -> None:
    """kNN, linear probe, drift and verdicts of every finished stage of a workdir."""
    with open_workdir(workdir, continues=False) as folder:
        config = recipe.settle_precision(config, folder)
        precision.set_products(config.precision)
        rows = measure.evaluate(config, folder)
        provenance.note_start(folder)
        is_transfer = config.transfer is not None
        matrices = transfer.report(config, folder, rows) if is_transfer else None
        if jax.process_index() > 0:
            return
        columns = dict.fromkeys(name for row in rows for name in row)
        print(logs.format_table(rows, tuple(columns)))
        if matrices is not None:
            print(f"\n{transfer.format_text(matrices)}\n")
            print(f"matrices: {name_path(folder / 'transfer.json')}")
        for line in verdicts.list_lines(verdicts.read(folder)):
            print(line)
        for line in leaks.list_copies(config, folder) if near_copies else ():
            print(line)
        print(f"results: {name_path(folder / 'eval.json')}")
        if report and (written := page.rewrite_or_warn(folder)):
            print(f"report:  {name_path(written)}")
