"""How deep the tests dig: little by default, all the way under `--all`."""

import pytest
from hypothesis import settings

SHORT, DEEP = 20, 200  # for a test that names no number; tests/conftest.py chooses


def examples_of(deep):
    """`deep` examples under `--all`, a tenth by default."""
    return deep if settings().max_examples == DEEP else max(SHORT, deep // 10)


def long_except(kept, rows):
    """Rows for `parametrize`: those that are not `kept` are marked long."""
    marked = []
    for row in rows:
        values = row if isinstance(row, tuple) else (row,)
        marks = [] if row in kept else [pytest.mark.long]
        marked.append(pytest.param(*values, marks=marks))
    return marked
