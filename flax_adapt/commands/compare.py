"""Compares workdirs: one table and one page."""

import contextlib

from flax_adapt.commands import tables
from flax_adapt.commands.workdir import open_workdir
from flax_adapt.report import compare as comparison


def compare(workdirs: list[str], out: str) -> None:
    """Compares workdirs: prints one table of their stages, and writes one page."""
    target = tables.check_target(out, (".html",))
    with contextlib.ExitStack() as opened:
        contexts = {name: open_workdir(name, continues=False) for name in workdirs}
        folders = {name: opened.enter_context(one) for name, one in contexts.items()}
        runs = comparison.read_all(folders)
        rows = comparison.list_rows(runs)
        print(comparison.format_text(rows))
        comparison.write(runs, rows, target)
    print(f"page:    {target}")
