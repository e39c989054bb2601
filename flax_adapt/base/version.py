"""The version of the package, and how versions are compared.

setup.py reads the line of __version__, and nothing else repeats it.
"""

import re

__version__ = "0.1.0"


def first_two(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version such as "2.36" or "0.10.2rc1"."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
