"""Lists the shipped configs without importing JAX."""

from flax_adapt.base import config as configs
from flax_adapt.base import logs


def list_configs() -> None:
    """Lists the shipped configs with the first line of their docstrings."""
    rows = [
        {"config": name, "what": configs.summary(path)}
        for name, path in configs.list_shipped().items()
    ]
    print(logs.format_table(rows, ("config", "what")))
