"""Flags of XLA for this process, set before JAX starts."""

import os

from flax_adapt.base.version import first_two

# Independent collectives of a program may start in another order on every device. Where all
# devices are threads of one process, each waits for the others, and none is left to start
# what they wait for: eight devices on two cores stood still in two runs of three (jaxlib
# 0.10.2). With the order that uses the least memory they have not. One device is as fast,
# or a little faster.
_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
# jaxlib ends a process that names a flag which it does not know. Those before this one do.
_UNTIL = (0, 12)


def set_flags() -> None:
    """Adds our flag to XLA_FLAGS, unless the user has set it or jaxlib is too new for it."""
    import importlib.metadata  # 5 ms, which other commands need not wait for

    version = first_two(importlib.metadata.version("jaxlib"))
    given = os.environ.get("XLA_FLAGS", "")
    if version < _UNTIL and _IN_ORDER.partition("=")[0] not in given:
        os.environ["XLA_FLAGS"] = f"{given} {_IN_ORDER}".strip()
