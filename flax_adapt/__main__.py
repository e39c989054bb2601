"""Commands: `flax-adapt COMMAND --flag=value ...` (or `python -m flax_adapt COMMAND ...`).

Flags only, no logic: help and refusals come from `commands.table`, without importing JAX or
the module of any command. Exit code 0, or one line on stderr: 2 for a user's mistake, 1 for
a run that broke down. SIGTERM and Ctrl-C: a checkpoint, one line, and exit code 0, or that
of --stop_code.
"""

import importlib
import keyword
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging

from flax_adapt.base import config, errors
from flax_adapt.base.errors import NonFiniteError, Preempted, UserError
from flax_adapt.base.remote import hub_cache
from flax_adapt.base.remote.addresses import LogLines, restore
from flax_adapt.base.version import __version__
from flax_adapt.commands import machine, typed
from flax_adapt.commands.machine import allocator
from flax_adapt.commands.table import BY_INIT, COMMANDS, PROCESSES, REQUIRED

# What the libraries say whose collective operation another process left.
_PEER_IS_GONE = re.compile("Gloo|NCCL|[Cc]onnection (closed|reset)|Socket closed")


def usage() -> str:
    """Returns the help: a line for each command."""
    lines = ["flax-adapt COMMAND --flag=value ...  (COMMAND --help lists its flags)"]
    lines += [f"  {name:13}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "flax-adapt --version"])


def describe(command: str) -> str:
    """Returns the help of a command: a line for each flag."""
    _, summary, takes_config, table, rest = COMMANDS[command]
    rows = [("--config", "", "file or shipped name, NAME:argument=value,...")]
    rows += [("--config.FIELD", "", "changes one field, as in --config.stages.0.seeds")]
    rows = rows if takes_config else []
    rows += [(rest[0].upper(), "", rest[1])] if rest[0] else []
    rows += [
        (f"--{name}", "required" if default is REQUIRED else repr(default), text)
        for name, (default, text) in table.items()
    ]
    lines = [f"  {name:21} {default:9} {text}" for name, default, text in rows]
    return "\n".join([summary, *lines])


def name_command(command: str, arguments: Sequence[str]) -> str:
    """Returns the name of a command in the table: `eval --init` is another than `eval`."""
    other = f"{command} {BY_INIT}"
    has_init = any(re.match(f"-?{BY_INIT}(=|$)", one) for one in arguments)
    return other if has_init and other in COMMANDS else command


def parse(command: str, arguments: Sequence[str]) -> dict:
    """Returns the command's arguments; raises UserError naming what is wrong."""
    command = name_command(command, arguments)
    table = COMMANDS[command].flags
    rest = [config.bracket_indices(argument) for argument in arguments]
    if COMMANDS[command].takes_config:
        return _parse_with_config(command, rest)
    values, left = _parse_flags(command, _define_flags(table), rest)
    name, _ = COMMANDS[command].rest
    _check_complete(command, values, [] if name else left)
    return {**_arguments_of(table, values), **({name: left} if name else {})}


def _parse_with_config(command: str, arguments: list[str]) -> dict:
    """Returns the arguments of a command with a config, after its flags are checked.

    They are checked first, as loading a config imports JAX, which takes seconds.
    """
    table = COMMANDS[command].flags
    names = [argument for argument in arguments if argument.startswith("--config=")]
    if len(names) != 1:
        known = ", ".join(f"--{name}" for name in table)
        raise UserError(
            f"{command} needs one --config=FILE or --config=NAME; flags: {known}"
        )
    arguments.remove(names[0])
    own = _without_overrides(arguments)
    values, left = _parse_flags(command, _define_flags(table), own)
    _check_complete(command, values, left)
    loaded = config.load(names[0].removeprefix("--config="))
    for argument in arguments:
        config.check_override(loaded, argument)
    values, left = _parse_flags(command, _define_flags(table), arguments, loaded)
    _check_complete(command, values, left)
    return {**_arguments_of(table, values), "config": values["config"].value}


def _without_overrides(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments but `--config.FIELD=VALUE` and `--config.FIELD VALUE`."""
    own, before = [], ""
    for argument in arguments:
        is_override = re.match("--?config[.]", argument)
        is_value = re.fullmatch("--?config[.][^=]*", before) and argument[:1] != "-"
        if not is_override and not is_value:
            own.append(argument)
        before = argument
    return own


def _define_flags(table: dict[str, tuple[Any, str]]) -> flags.FlagValues:
    values = flags.FlagValues()
    for name, (default, text) in table.items():
        _DEFINE[type(default)](name, default, text, flag_values=values)
    return values


def _parse_flags(
    command: str,
    values: flags.FlagValues,
    arguments: Sequence[str],
    loaded: Any = None,
) -> tuple[flags.FlagValues, list[str]]:
    """Returns (flags, arguments that are no flags); flags also change the config `loaded`."""
    try:
        if loaded is not None:
            from ml_collections import config_flags

            config_flags.DEFINE_config_dict(
                "config", loaded, flag_values=values, sys_argv=[command, *arguments]
            )
        return values, values([command, *arguments])[1:]
    except (
        flags.Error,
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{command}: {_one_line(error)}") from None


def _check_complete(command: str, values: flags.FlagValues, left: list[str]) -> None:
    table = COMMANDS[command].flags
    needed = [name for name, (default, _) in table.items() if default is REQUIRED]
    missing = [f"--{name}=..." for name in needed if not values[name].value]
    if missing or left:
        known = ", ".join(f"--{name}" for name in table)
        what = f"needs {' '.join(missing)}" if missing else f"does not know {left}"
        raise UserError(f"{command} {what}; flags: {known}")


def _arguments_of(
    table: dict[str, tuple[Any, str]], values: flags.FlagValues
) -> dict[str, Any]:
    """Returns {argument: value}; the flag --from is `from_`, as Python reserves `from`."""
    return {
        f"{name}_" if keyword.iskeyword(name) else name: values[name].value
        for name in table
    }


_DEFINE: dict[type, Callable[..., Any]] = {
    type(REQUIRED): flags.DEFINE_string,
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_multi_string,
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _set_up_log() -> None:
    """Makes each message of a run one plain line on stderr, and libraries quiet."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    name = "flax_adapt"  # of the log, and of our handler among those of others
    log = logging.getLogger(name)
    log.setLevel(logging.INFO)
    others = [handler for handler in log.handlers if handler.name != name]
    if len(others) < len(log.handlers) or not others:
        handler = logging.StreamHandler()  # to the stderr of now
        handler.name = name
        handler.setFormatter(LogLines("%(message)s"))
        log.handlers[:] = [handler, *others]
        log.propagate = False


def _stop(*_: object) -> None:
    raise Preempted("stopped before anything was trained")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    _set_up_log()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"flax-adapt {__version__}")
        return 0
    command, stop_code = name_command(arguments[0], arguments[1:]), 0
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _stop)
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            near = errors.suggest(command, COMMANDS)
            raise UserError(f"{command!r} is no command; there are: {known}{near}")
        if {"-h", "--help"} & set(arguments):
            print(describe(command))
            return 0
        if argv is None and "malloc" in COMMANDS[command].flags:
            allocator.start_anew(arguments)
        with typed.reworded(command, arguments[1:]):
            parsed = parse(command, arguments[1:])
            stop_code = parsed.pop("stop_code", 0)
            return _call(command, parsed)
    except Preempted as stop:
        print(f"{stop}; run the same command to continue")
        return stop_code
    except (UserError, OSError, NonFiniteError) as error:
        return _refuse(error, 1 if isinstance(error, NonFiniteError) else 2)
    except Exception as error:
        if errors.full_disk(error) is not None:
            return _refuse(error, 2)
        if line := errors.missing_field(error) or errors.no_memory(error):
            return _refuse(UserError(line), 2)
        if _has_peers():
            return _break_down(error)
        raise


def _call(command: str, arguments: dict[str, Any]) -> int:
    """Runs a command and returns its exit code; JAX is imported where it needs JAX.

    The machine is set up here, and with the flags of `table.PROCESSES` the process joins the
    others.
    """
    machine.set_up(arguments)
    joins = {name: arguments.pop(name) for name in PROCESSES if name in arguments}
    if joins:
        importlib.import_module("flax_adapt.commands.processes").join(**joins)
    function = COMMANDS[command].function
    module = importlib.import_module(f"flax_adapt.commands.{function}")
    return getattr(module, function.rpartition(".")[2])(**arguments) or 0


def _refuse(error: Exception, code: int) -> int:
    """Prints the error as one line and returns the exit code."""
    text, problem = restore(_one_line(error)), errors.full_disk(error)
    text = hub_cache.restore(text)
    if problem is not None and not isinstance(error, UserError):
        text = f"{problem}: make room, then run the same command again"
    print(f"flax-adapt: {text}", file=sys.stderr, flush=True)
    return _leave(code)


def _break_down(error: Exception) -> int:
    """Prints one line where a connection to another process broke, else the traceback."""
    if _PEER_IS_GONE.search(str(error)):
        text = _one_line(error)[:200]
        lost = f"another process is gone ({text}); start all processes again to go on"
        return _refuse(UserError(lost), 1)
    traceback.print_exc()
    return _leave(1)


def _has_peers() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> int:
    """Returns the exit code, or with several processes exits at once.

    An ordinary exit waits for the other processes, and they may wait for this one: all
    would hang for minutes, and be aborted without this exit code.
    """
    if _has_peers():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
