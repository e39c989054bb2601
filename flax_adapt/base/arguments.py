"""The arguments of a config, with the line that its docstring has for each.

In the part `Run` of a docstring an entry begins eight columns in, with one name or several,
and goes on further in:

        steps, lr  of training
        init, seeds ...: as in vit_self_distill

An argument without an entry of its own, or whose entry only says what it is "of" and refers
to another config by "as in", has the entry of that config.
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

from flax_adapt.base import config as configs

# A line of a docstring as `inspect.cleandoc` leaves it: names, then what is said of them.
_ENTRY = re.compile(
    r" {8}(\w+(?:, *\w+)*)(?: *,? *\.\.\.)?(?: +(?=\S)|: (?=as in))(.*)"
)
_MORE = re.compile(r" {9,}(\S.*)")
_AS_IN = re.compile(r"\bas in ([\w, ]+)")


class Argument(NamedTuple):
    """An argument of a config: its name, its type as Python calls it, default and help."""

    name: str
    type: str
    default: Any
    help: str


def arguments_of(name: str) -> list[Argument]:
    """Returns the arguments of a config, in its own order.

    name: a shipped name or a file, as of `config.load`. Raises UserError if there is no such
    config, or if its file fails.
    """
    defaults = configs.argument_defaults(name)
    path = Path(configs.resolve(name).partition(":")[0])
    lines = _lines_of(path, set())
    return [
        Argument(key, type(value).__name__, value, lines.get(key, ""))
        for key, value in defaults.items()
    ]


def docstring(path: Path) -> str:
    """Returns the docstring of a config file without its indentation."""
    return inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")


def _lines_of(path: Path, seen: set[str]) -> dict[str, str]:
    """Returns {argument: its line} of a docstring, and of those that it refers to."""
    text, shipped = docstring(path), configs.list_shipped()
    own = _entries(text.partition("\nExpect")[0])
    named = re.findall(r"\w+", " ".join(_AS_IN.findall(" ".join(text.split()))))
    for other in dict.fromkeys(name for name in named if name in shipped):
        if other not in seen:
            theirs = _lines_of(shipped[other], {*seen, other})
            own = {**theirs, **_without_references(own, theirs)}
    return own


def _without_references(own: dict[str, str], theirs: dict[str, str]) -> dict[str, str]:
    """Leaves out entries such as "of texts: as in bert_self_distill" that `theirs` has."""
    return {
        name: line
        for name, line in own.items()
        if not (name in theirs and line.startswith("of ") and _AS_IN.search(line))
    }


def _entries(text: str) -> dict[str, str]:
    """Returns {name: line}; a name of which only "as in ..." is said has no entry."""
    entries: list[tuple[str, list[str]]] = []
    for line in _joined_names(text).splitlines():
        if found := _ENTRY.fullmatch(line):
            entries.append((found[1], [found[2]]))
        elif (more := _MORE.fullmatch(line)) and entries:
            entries[-1][1].append(more[1])
    return {
        name: " ".join(said)
        for names, said in entries
        for name in re.split(", *", names)
        if not said[0].startswith("as in")
    }


def _joined_names(text: str) -> str:
    """Joins a list of names that goes on in the next line, after a comma."""
    return re.sub(r"(?m)^( {8}\w+(?:, \w+)*,)\n +(?=\w+(?:,|:|  ))", r"\1 ", text)
