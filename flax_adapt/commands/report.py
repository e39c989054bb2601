"""Writes the report of a workdir."""

from flax_adapt.commands.workdir import name_path, open_workdir
from flax_adapt.report import page


def report(workdir: str) -> None:
    """Writes report.html into a workdir: what a run did, and whether it helped."""
    with open_workdir(workdir, continues=False) as folder:
        print(f"report:  {name_path(page.write(folder))}")
