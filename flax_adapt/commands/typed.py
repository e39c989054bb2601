"""Rewords messages that name fields of a config in the words that a user typed.

A message names a field, as in `data.split='val'`. Who typed `test_split=val`, the flag
`--split=val` or `--config.stages.0.data.split=val` reads that name. FIELDS has the names of
arguments for each field; of several, the one with the value in the message is meant.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.commands.table import COMMANDS

# Field -> arguments of the shipped configs (and flags of commands) that set it.
FIELDS: dict[str, tuple[str, ...]] = {
    "data.source": (
        *("dataset", "data", "source", "previous", "domains", "also"),
        *("unlabelled", "labelled", "test"),
    ),
    "replay.data.source": ("source", "previous"),
    "data.split": (
        *("split", "train_split", "test_split", "source_split", "label_split"),
        *("heldout_split", "drift_split"),
    ),
    "data.data_dir": ("data_dir",),
    "data.seq_len": ("seq_len",),
    "data.text_fields": ("text_field", "text_fields"),
    "data.label_field": ("label_field",),
    "data.label_kind": ("label_kind",),
    "data.subset.per_class": ("per_class",),
    "data.max_bad_fraction": ("max_bad_fraction",),
    "data.image_size": ("image_size",),
    "data.channels": ("channels",),
    "data.bits": ("bits",),
    "data.window": ("window",),
    "data.fit": ("fit",),
    "data.image_field": ("image_field",),
    "data.split_field": ("split_field",),
    "num_steps": ("steps", "finetune_steps", "pretrain_steps"),
    "batch_size": ("batch_size", "finetune_batch_size", "pretrain_batch_size"),
    "optim.lr": ("lr", "finetune_lr", "pretrain_lr"),
    "optim.warmup_steps": ("warmup",),
    "sweep.lrs": ("lrs",),
    "seeds": ("seeds",),
    "model.dropout": ("dropout",),
    "model.pooling": ("pooling",),
    "model.resize.width": ("width",),
    "objective.name": ("objective",),
    "objective.form": ("form",),
    "objective.queue_size": ("queue_size",),
    "objective.regularizer": ("regularizer",),
    "objective.weight": ("weight",),
    "mixing.operator": ("operator",),
    "mixing.pairing": ("pairing",),
    "mixing.reading": ("reading",),
    "mixing.alpha": ("alpha",),
    "replay.ratio": ("rho",),
    "replay.sampling": ("sampling",),
    "replay.buffer_size": ("buffer_size",),
}
# What a message advises in fields -> (the argument that does it, the advice in arguments).
ADVICE = {
    r"hold (?:examples|some) out with data\.subset and part='rest'": (
        "test_split",
        "hold some out with per_class=NUMBER,test_split=rest",
    ),
}
_VALUE = r"=('[^']*'|\"[^\"]*\"|\([^)]*\)|[^\s,:;)]+)"


class Typed(NamedTuple):
    """What a user typed, and what the command takes for the rest.

    given: {argument: value as text}. defaults: {argument: default}. overrides: {dotted
    field: value as text} of the flags `--config.FIELD=VALUE`. prefix: what stands before an
    argument, "--" for flags.
    """

    given: Mapping[str, str]
    defaults: Mapping[str, Any]
    overrides: Mapping[str, str]
    prefix: str = ""

    def reword(self, message: str) -> str:
        """Returns the message with fields replaced by what was typed."""
        for path, value in self.overrides.items():
            message = _name_override(message, path, value)
        for field in sorted(FIELDS, key=len, reverse=True):
            message = self._name_argument(message, field)
        for pattern, (argument, advice) in ADVICE.items():
            if argument in self.defaults:
                message = re.sub(pattern, advice, message)
        return message

    def _name_argument(self, message: str, field: str) -> str:
        """Replaces `field=VALUE`, or `field` alone where one argument can be meant."""

        def replace(found: re.Match[str]) -> str:
            value = found[1]
            names = [name for name in FIELDS[field] if name in self.defaults]
            given = [name for name in names if name in self.given]
            if value is not None:
                # A typed argument is meant before one that kept its default.
                equal = [
                    *filter(self._has(value), given),
                    *filter(self._has(value), names),
                ]
                # Advice: of a field of data that one argument sets, with another value.
                alone = names if field.startswith("data.") and len(names) == 1 else []
                meant = [*equal, *alone]
                return f"{self.prefix}{meant[0]}={value}" if meant else found[0]
            meant = given if len(given) == 1 else names
            return f"{self.prefix}{meant[0]}" if len(meant) == 1 else found[0]

        return re.sub(
            rf"(?<![\w.'\-,:]){re.escape(field)}(?![\w.])(?:{_VALUE})?",
            replace,
            message,
        )

    def _has(self, value: str) -> Any:
        def has(name: str) -> bool:
            own = self.given.get(name, str(self.defaults[name]))
            return any(_are_equal(one, value) for one in (own, *own.split("+")))

        return has


@contextlib.contextmanager
def reworded(command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Rewords a UserError raised inside in the words of a command line."""
    try:
        yield
    except UserError as error:
        named = re.search(rf"\b({'|'.join(map(re.escape, FIELDS))})\b", str(error))
        if not named and not overrides_of(arguments):
            raise  # the config, and with it JAX, need not be loaded
        try:
            text = typed_by(command, arguments).reword(str(error))
        except UserError:  # the config itself cannot be loaded: the message says so
            raise error from None
        raise UserError(text) from error.__cause__


def typed_by(command: str, arguments: Sequence[str]) -> Typed:
    """Returns what a command line says: arguments of its config, or its flags."""
    pairs = (argument.lstrip("-").partition("=") for argument in arguments)
    flags = {name: value for name, equals, value in pairs if equals}
    if not COMMANDS[command].takes_config or "config" not in flags:
        known = {
            name: default for name, (default, _) in COMMANDS[command].flags.items()
        }
        return Typed(flags, known, {}, "--")
    config = flags["config"]
    defaults = configs.argument_defaults(config)
    return Typed(configs.typed_arguments(config), defaults, overrides_of(arguments))


def overrides_of(arguments: Sequence[str]) -> dict[str, str]:
    """Returns {dotted field: value} of the arguments `--config.FIELD=VALUE`."""
    pairs = (argument.partition("=") for argument in arguments)
    return {
        re.sub(r"\[(-?\d+)\]", r".\1", flag).partition("config.")[2]: value
        for flag, equals, value in pairs
        if equals and re.match(r"--?config\.", flag)
    }


def _name_override(message: str, path: str, value: str) -> str:
    """Replaces the end of `path` that the message names, where it has this value."""
    parts = path.split(".")
    for first in range(len(parts)):
        end = ".".join(parts[first:])
        for found in re.finditer(rf"(?<![\w.'-]){re.escape(end)}{_VALUE}", message):
            if _are_equal(found[1], value):
                whole = f"--config.{path}={found[1]}"
                return message[: found.start()] + whole + message[found.end() :]
    return message


def _are_equal(one: str, other: str) -> bool:
    """Whether two texts are the same value: quotes and the form of a number do not count."""
    one, other = (re.sub(r"[\s'\"(),]", "", text) for text in (one, other))
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other
