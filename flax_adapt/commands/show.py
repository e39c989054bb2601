"""The arguments of a config and the fields that they resolve to."""

import textwrap
from json import dumps
from pathlib import Path
from typing import Any

from flax_adapt.base import arguments, logs
from flax_adapt.base import config as configs

_WIDTH = 96  # of the line on an argument


def show(config: str, fields: bool, json: bool) -> None:
    """Lists the arguments of a config, or with --fields every field that it resolves to."""
    found = configs.flatten(configs.plain(configs.load(config))) if fields else None
    if json:
        print(_as_json(config, found))
    elif found is None:
        print(_argument_table(config))
    else:
        rows = [{"field": name, "value": repr(value)} for name, value in found.items()]
        print(logs.format_table(rows, ("field", "value")))


def _argument_table(config: str) -> str:
    values = _values(config)
    rows = [
        {
            "argument": one.name,
            "type": one.type,
            "default": repr(one.default),
            **({"value": repr(values[one.name])} if ":" in config else {}),
            "what": textwrap.shorten(one.help, _WIDTH, placeholder=" ..."),
        }
        for one in arguments.arguments_of(config)
    ]
    if not rows:
        return f"--config={config} takes no arguments; --fields lists its fields"
    return logs.format_table(rows, tuple(rows[0]))


def _values(config: str) -> dict[str, Any]:
    """Returns {argument: value}; raises UserError for an unknown argument."""
    _, _, text = config.partition(":")
    values = configs.parse_arguments(text, **configs.argument_defaults(config))
    return dict(values)


def _as_json(config: str, found: dict[str, Any] | None) -> str:
    """Returns the config as JSON: its arguments with types, defaults and whole lines."""
    path = Path(configs.resolve(config).partition(":")[0])
    values = _values(config)
    whole: dict[str, Any] = {
        "config": config,
        "what": configs.summary(path),
        "arguments": [
            {**one._asdict(), "value": values[one.name]}
            for one in arguments.arguments_of(config)
        ],
    }
    return dumps(whole if found is None else {**whole, "fields": found}, indent=2)
