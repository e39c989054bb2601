"""Compares workdirs: one table and one page."""

from flax_adapt.base.paths import user_path
from flax_adapt.commands import tables
from flax_adapt.report import compare as comparison


def compare(workdirs: list[str], out: str) -> None:
    """Compares workdirs: prints one table of their stages, and writes one page."""
    target = tables.check_target(out, (".html",))
    runs = comparison.read_all({name: user_path(name) for name in workdirs})
    rows = comparison.list_rows(runs)
    print(comparison.format_text(rows))
    comparison.write(runs, rows, target)
    print(f"page:    {target}")
