"""How many examples a property is tried on: few by default, many under `--all`."""

from hypothesis import settings

SHORT, DEEP = 20, 200  # for a test that names no number; tests/conftest.py chooses


def examples_of(deep):
    """`deep` under `--all`, a tenth by default."""
    return deep if settings().max_examples == DEEP else max(SHORT, deep // 10)
