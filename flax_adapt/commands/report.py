"""Writes the report of a workdir."""

from flax_adapt.base.paths import user_path
from flax_adapt.report import page


def report(workdir: str) -> None:
    """Writes report.html into a workdir: what a run did, and whether it helped."""
    print(f"report:  {page.write(user_path(workdir))}")
