"""Measures the weights between the start of a stage and its end."""

from typing import Any

from flax_adapt.base import logs
from flax_adapt.commands.workdir import name_path, open_workdir
from flax_adapt.experiment import interpolate as interpolation
from flax_adapt.experiment import provenance, recipe
from flax_adapt.report import page
from flax_adapt.train import precision


def interpolate(
    config: Any,
    workdir: str,
    stage: str,
    points: int,
    keep: float,
    export: bool,
    report: bool,
) -> None:
    """Measures start + a (adapted - start) for a from 0 to 1, and can export the best."""
    with open_workdir(workdir, continues=False) as folder:
        config = recipe.settle_precision(config, folder)
        precision.set_products(config.precision)
        rows, best = interpolation.run(config, folder, stage, points, keep, export)
        provenance.note_start(folder)
        print(logs.format_table(rows, tuple(rows[0])))
        print(f"best: a={best['a']:g}, {best['rule']}")
        for line in interpolation.describe_other_half(best):
            print(line)
        print(f"results: {name_path(interpolation.record_of(folder, stage))}")
        if export:
            print(f"model:   {best['export']}")
        if report and (written := page.rewrite_or_warn(folder)):
            print(f"report:  {name_path(written)}")
