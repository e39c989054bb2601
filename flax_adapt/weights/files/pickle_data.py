"""Reads a pickle as data, on a stack machine with few opcodes that runs no code of the file.

`pickle.Unpickler`, even with an allow-list of globals, hashes objects of the file (a key of
nested tuples takes for ever) and makes its memo as long as the file says. This machine has
only the opcodes that torch writes, keys are scalars, and a global is only a name.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from flax_adapt.base.errors import UserError

# A model of 10 000 tensors is a pickle of 2 MB and 400 000 steps.
MAX_STEPS = 1_000_000

SCALARS = (str, int, float, bool, bytes, type(None))
LARGEST_KEY = 1 << 60  # larger numbers can be made to share one hash
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes that push their argument; opcodes without effect.
ARGUMENTS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        *("BINUNICODE", "SHORT_BINUNICODE"),
    )
)
NOTHING = frozenset(("PROTO", "FRAME", "STOP"))


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A name in a pickle; call: the function of ours to call in its place, None: no call."""

    name: str
    call: Callable[..., Any] | None


class Opaque:
    """Replaces an object that is not needed; its content is dropped."""


def load(
    stream: io.BytesIO,
    known: Mapping[str, Callable[..., Any] | None],
    persistent: Callable[[Any], Any],
) -> Any:
    """Returns the value of the pickle at the position of `stream`, which moves past it.

    known: dotted name -> function that is called in its place. persistent: returns the object
    of a persistent id. Raises UserError for other names and for unknown opcodes.
    """
    machine = _Machine(known, persistent)
    for opcode, argument, _ in pickletools.genops(stream):
        machine.count(1)
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """The stack machine of Python's pickles (see `pickletools`)."""

    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def count(self, steps: int) -> None:
        """Limits the work: without it a short pickle could copy a list for ever."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise UserError(f"its pickle takes more than {MAX_STEPS} steps")

    def step(self, name: str, argument: Any) -> None:
        if name in ARGUMENTS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in STEPS:
            STEPS[name](self, argument)
        elif name not in NOTHING:
            raise UserError(f"its pickle has the opcode {name}, which is not allowed")

    def push_global(self, name: str) -> None:
        if name not in self.known:
            raise UserError(
                f"names {name[:200]!a}, which a file of weights may not; nothing of it "
                "was run -- save the weights as safetensors where you trust it"
            )
        self.stack.append(Global(name, self.known[name]))

    def pop(self, count: int) -> list[Any]:
        """Removes and returns the `count` topmost items, the topmost last."""
        if count > len(self.stack):
            raise ValueError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def pop_mark(self) -> list[Any]:
        return self.pop(max(0, len(self.stack) - self.marks.pop()))

    def top(self, kind: type) -> Any:
        """Returns the topmost item, which must be of the kind."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(
                f"{type(self.stack[-1]).__name__} is not a {kind.__name__}"
            )
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        self.top(dict).update(pairs(items))

    def call(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not Global or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        if function.call is None:
            raise ValueError(f"{function.name} is called")
        self.count(sum(len(a) for a in arguments if type(a) in (list, tuple)))
        self.stack.append(function.call(*arguments))

    def build(self) -> None:
        """Drops the state of an object: objects that are needed have none."""
        self.pop(1)
        if type(self.stack[-1]) not in (dict, Opaque):
            raise ValueError(f"a state for a {type(self.stack[-1]).__name__}")


def pairs(items: list[Any]) -> dict[Any, Any]:
    """Returns {key: value} of [key, value, ...]; keys are scalars, cheap to hash."""
    keys = items[::2]
    for key in keys:
        if type(key) not in SCALARS or (type(key) is int and abs(key) > LARGEST_KEY):
            raise ValueError(f"a {type(key).__name__} is a key")
    return dict(zip(keys, items[1::2], strict=True))


STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(1),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.pop(3))),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "DICT": lambda m, _: m.stack.append(pairs(m.pop_mark())),
    "APPEND": lambda m, _: _extend(m, m.pop(1)),
    "APPENDS": lambda m, _: _extend(m, m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "BINPUT": lambda m, at: m.memo.__setitem__(at, m.stack[-1]),
    "LONG_BINPUT": lambda m, at: m.memo.__setitem__(at, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "BINGET": lambda m, at: m.stack.append(m.memo[at]),
    "LONG_BINGET": lambda m, at: m.stack.append(m.memo[at]),
    "GLOBAL": lambda m, name: m.push_global(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, _: m.push_global(_dotted(*m.pop(2))),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.stack.append(m.persistent(*m.pop(1))),
}


def _extend(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _dotted(module: Any, name: Any) -> str:
    if type(module) is not str or type(name) is not str:
        raise ValueError("the name of a global is no text")
    return f"{module}.{name}"
