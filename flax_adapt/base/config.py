"""Finding, loading, storing and comparing configs (ml_collections)."""

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from flax_adapt.base.errors import UserError, choose, suggest
from flax_adapt.base.paths import user_path

_PACKAGE = Path(__file__).parent.parent
# NAME="..." or NAME='...', in which commas belong to the value, or all up to a comma.
_ARGUMENT = re.compile(r"""[^,=]+=(?:"[^"]*"|'[^']*')(?=,|$)|[^,]+""")
# Fields that newer versions added to the config of an experiment, and the value with
# which they act as the version without the field: {pattern of the dotted name: value}.
# The pattern must match the whole name, as in r"stages\.\d+\.optim\.beta". A section that
# a version lacked is None; a value may be a whole section. `difference` reads it, so that
# a workdir of an older version can be continued.
ADDED: dict[str, Any] = {
    r"stages\.\d+\.(watch|optim\.(sgd|solve|adafactor))": None,
    r"stages\.\d+\.optim\.mars_head_radius": 0.0,
    r"stages\.\d+\.optim\.mars_norms": False,
    r"stages\.\d+\.optim\.mu_dtype": "float32",
    r"stages\.\d+\.memory": dict(remat="none", scan=False, logit_chunks=1),
    r"stages\.\d+\.optim\.grad_reduce": "float32",  # the same where models compute in float32
    r"stages\.\d+\.model\.head_init": 0.0,
    r"stages\.\d+\.objective\.beta": 2.0,  # of a match that there was not
    # The same numbers but for rounding.
    r"stages\.\d+\.objective\.teacher_cache_bytes": 2**30,
    r"stages\.\d+\.ema\.warmup": True,  # before step 890 the old one is mostly the start
    r"(.*\.)?(augment|views\.\d+)\.(randaugment_operations|erase_probability)": 0,
    r"(.*\.)?(augment|views\.\d+)\.randaugment_magnitude": 9.0,
    r"(.*\.)?subset\.draw": "fixed",
    r"log": "",
    r"model\.traits": None,  # the plain ViT
    r"model\.traits\.(distilled|pre_norm|rotary_\w+)": 0,
    r"model\.traits\.(patch_bias|key_bias)": True,
    r"init_known\.weights": "",  # the usual set of weights of a file
    **{
        rf"(.*\.)?(data(\.\d+)?|train|test|source)\.{name}": value
        for name, value in (
            *(("fit", "squash"), ("bits", 0), ("window", ""), ("jpeg_draft", False)),
            *(("image_field", ""), ("label_field", "label"), ("split_field", "split")),
            ("cache_bytes", 4 * 2**30),  # the same pixels
        )
    },
}

ASK = "?"


class Asked(Exception):
    """Carries the default values of a config's arguments out of it, as its one argument."""


def config_folder() -> Path:
    """Returns the folder of the shipped configs.

    It is inside an installed package, and beside the package in a checkout.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def list_shipped() -> dict[str, Path]:
    """Returns {name: file} of the shipped configs."""
    files = sorted(config_folder().glob("[!_]*.py"))
    return {file.stem: file for file in files}


def resolve(name: str) -> str:
    """Returns `FILE.py[:arguments]` for `NAME[:arguments]` or `FILE.py[:arguments]`.

    Raises UserError if there is no such config.
    """
    head, colon, arguments = name.partition(":")
    if head.endswith(".py"):
        file = user_path(head)
        if not file.is_file():
            raise UserError(f"--config={head}: there is no such file")
        return f"{file}{colon}{arguments}"
    return f"{choose('--config', head, list_shipped())}{colon}{arguments}"


def load(name: str) -> ConfigDict:
    """Returns the locked config of a file or of a shipped name, arguments included.

    Raises UserError if there is no such config, or if its file fails.
    """
    path, _, arguments = resolve(name).partition(":")
    module = _module(name, path)
    try:
        return module.get_config(arguments) if arguments else module.get_config()
    except (AttributeError, TypeError) as error:
        raise _broken_file_error(name, path, error) from error


def argument_defaults(name: str) -> dict[str, Any]:
    """Returns {argument: default} of a config; {} for one that takes no arguments.

    name: as of `load`. The config looks for no weights and no data.
    """
    path = resolve(name).partition(":")[0]
    module = _module(name, path)
    get_config = getattr(module, "get_config", None)
    try:
        if get_config is not None and inspect.signature(get_config).parameters:
            get_config(ASK)
    except Asked as asked:
        return dict(asked.args[0])
    return {}


def typed_arguments(name: str) -> dict[str, str]:
    """Returns {argument: value} as typed in `NAME:argument=value,...`."""
    pairs = (item.partition("=") for item in _ARGUMENT.findall(name.partition(":")[2]))
    return {key: value.strip("\"'") for key, _, value in pairs}


def _module(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None  # it is a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (AttributeError, ImportError, SyntaxError, TypeError) as error:
        raise _broken_file_error(name, path, error) from error
    return module


def _broken_file_error(name: str, path: str, error: Exception) -> UserError:
    kind = type(error).__name__
    return UserError(f"--config={name}: {path} does not work: {kind}: {error}")


def summary(path: Path) -> str:
    """Returns the first line of a config file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def parse_arguments(text: str, **defaults: Any) -> ConfigDict:
    """Returns the fields of `defaults` as `a=1,b=x` sets them, each of its default's type.

    A value with a comma is quoted: `dataset="folder:/data/a,b",init=x`. Raises UserError
    for an unknown name or a value of another type. For the text ASK nothing is parsed, and
    `Asked` carries the defaults to `flax_adapt.base.arguments`.
    """
    if text == ASK:
        raise Asked(defaults)
    arguments, before = ConfigDict(defaults), ""
    for item in _ARGUMENT.findall(text):
        name, equals, value = item.partition("=")
        if before and not equals:
            _refuse_comma(before, item)
        if name not in defaults or not equals:
            known = ", ".join(f"{key}={value!r}" for key, value in defaults.items())
            near = suggest(name, defaults)
            raise UserError(
                f"config argument {item!r} is unknown; there are: {known}{near}"
            )
        quoted = len(value) > 1 and value[0] in "\"'" and value[0] == value[-1]
        value = value[1:-1] if quoted else value
        arguments[name] = _convert(name, value, type(defaults[name]))
        before = item
    return arguments.lock()


def _refuse_comma(before: str, item: str) -> None:
    name, _, value = before.partition("=")
    raise UserError(
        f"config argument {item!r} has no name; if the comma before it belongs to the "
        f'value of {name}, write the value in quotes: {name}="{value},{item}" (and the '
        "whole --config='...' in the other quotes for the shell)"
    )


def _convert(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        return choose(f"config argument {name}", value, {"True": True, "False": False})
    try:
        return kind(value)
    except ValueError:
        raise UserError(
            f"config argument {name}={value!r} must be of type {kind.__name__}"
        ) from None


def build(fields: dict[str, Any]) -> ConfigDict:
    """Returns a locked config; dicts in tuples (stages, views) are locked configs too."""
    return ConfigDict({name: _section(value) for name, value in fields.items()}).lock()


def _section(value: Any) -> Any:
    if isinstance(value, dict):
        return build(value)
    if isinstance(value, list | tuple):
        return tuple(_section(item) for item in value)
    return value


def plain(config: Any) -> Any:
    """Returns a config as JSON values: dicts, lists, numbers, strings, None."""
    if isinstance(config, ConfigDict | dict):
        return {name: plain(config[name]) for name in config}
    if isinstance(config, list | tuple):
        return [plain(item) for item in config]
    return config


def to_text(fields: Any) -> str:
    """Returns a config as JSON, which can be compared and hashed; `from_text` reads it."""
    return json.dumps(plain(fields), sort_keys=True)


def from_text(text: str) -> ConfigDict:
    """Returns the locked config of a text from `to_text`."""
    return build(json.loads(text))


def flatten(fields: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a dict of dotted names: {"a": {"b": [1]}} -> {"a.b.0": 1}."""
    if isinstance(fields, dict):
        items = [(str(name), value) for name, value in fields.items()]
    elif isinstance(fields, list):
        items = [(str(index), value) for index, value in enumerate(fields)]
    else:
        return {prefix.rstrip("."): fields}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat |= flatten(value, f"{prefix}{name}.")
    return flat


def difference(old: Any, new: Any) -> list[str]:
    """Returns a line `name: old -> new` for every field in which two plain configs differ.

    A field that only `new` has counts in `old` as the value that `ADDED` gives for it.
    """
    old, new = flatten(fill_added(old, new, "")), flatten(new)
    names = [
        name for name in {**old, **new} if old.get(name, "-") != new.get(name, "-")
    ]
    return [f"{name}: {old.get(name, '-')} -> {new.get(name, '-')}" for name in names]


def fill_added(old: Any, new: Any, prefix: str) -> Any:
    """Returns the plain config `old` with those fields of `new` that `ADDED` has a value for."""
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip(old, new, strict=False))
        both = [fill_added(*pair, f"{prefix}{index}.") for index, pair in pairs]
        return both + old[len(both) :]
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old
    filled = {
        name: fill_added(value, new.get(name), f"{prefix}{name}.")
        for name, value in old.items()
    }
    for name in new:
        patterns = [p for p in ADDED if re.fullmatch(p, f"{prefix}{name}")]
        if name not in old and patterns:
            filled[name] = plain(ADDED[patterns[0]])
    return filled


def check_override(config: ConfigDict, argument: str) -> None:
    """Raises UserError unless `--config.a.0.b=VALUE` names a value of the config."""
    flag = argument.partition("=")[0]
    if not re.match(r"--?config\.", flag):
        return
    node: Any = config
    for name in re.sub(r"\[(-?\d+)\]", r".\1", flag).split(".")[1:]:
        if isinstance(node, ConfigDict):
            node = choose(f"{flag}: the field", name, node)
        elif isinstance(node, tuple):
            numbers = {str(index): item for index, item in enumerate(node)}
            node = choose(f"{flag}: the index", name, numbers)
        else:
            raise UserError(f"{flag}: a value has no field {name!r}")
    inner = node[0] if isinstance(node, tuple) and node else node
    if isinstance(inner, ConfigDict):
        raise UserError(f"{flag} is a section: give one of its fields, {flag}.FIELD")


def bracket_indices(argument: str) -> str:
    """Returns a flag with indices as ml_collections reads them.

    `--config.stages.0.lr=1` -> `--config.stages[0].lr=1`; other arguments stay unchanged.
    """
    flag, equals, value = argument.partition("=")
    if not re.match(r"--?config\.", flag):
        return argument
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", flag) + equals + value
