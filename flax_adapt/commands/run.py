"""Runs an experiment, or continues it."""

from typing import Any

import jax

from flax_adapt.commands.workdir import name_path, open_workdir
from flax_adapt.experiment import recipe, verdicts
from flax_adapt.report import page
from flax_adapt.train import precision


def run(
    config: Any,
    workdir: str,
    force: bool,
    report: bool,
) -> None:
    """Runs every stage of a config in a workdir, or continues it; prints the results."""
    with open_workdir(workdir, continues=True) as folder:
        config = recipe.settle_precision(config, folder)
        precision.set_products(config.precision)
        done = recipe.is_done(config, folder)
        rows = recipe.run(config, folder, force=force)
        if jax.process_index() == 0:
            if done:
                print(f"{name_path(folder)}: all stages were done before")
            print(recipe.table(rows))
            for line in verdicts.text(rows):
                print(line)
            print(f"results: {name_path(folder / 'results.json')}")
            print(f"model:   {rows[-1]['export']}")
        if report and (written := page.write_or_warn(folder)):
            print(f"report:  {name_path(written)}")
