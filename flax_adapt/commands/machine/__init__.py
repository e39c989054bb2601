"""How a command sets up its machine: malloc, XLA, the compile cache, the precision of JAX."""

import importlib
from typing import Any

from flax_adapt.commands.machine import allocator, xla


def set_up(arguments: dict[str, Any]) -> None:
    """Takes the flags of `table.MACHINE` out of a command's, and does what they say.

    malloc and XLA come first, before JAX starts.
    """
    if "malloc" in arguments:
        xla.set_flags()
        allocator.set_allocator(arguments.pop("malloc"))
    if "compile_cache" in arguments:
        cache = importlib.import_module("flax_adapt.commands.machine.compile_cache")
        cache.keep_programs(arguments.pop("compile_cache"))
