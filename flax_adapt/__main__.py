"""Commands: `flax-adapt COMMAND --flag=value ...` (or `python -m flax_adapt COMMAND ...`).

Flags only, no logic. Exit code 0, or one line on stderr: 2 for a user's mistake, 1 for a
run that broke down. SIGTERM: a checkpoint, one line, exit code 0.
"""

import keyword
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from flax_adapt import commands
from flax_adapt.base import config
from flax_adapt.base.errors import UserError
from flax_adapt.stage.loop import NonFiniteError
from flax_adapt.train.preemption import Preempted

REQUIRED = None

# Flags of each command: name -> (default, help).
_RUN = {
    "workdir": (REQUIRED, "folder of the run; the same command continues it"),
    "coordinator": ("", "host:port of process 0 ('auto' on a TPU pod or under SLURM)"),
    "num_processes": (1, "number of processes, with --coordinator=host:port"),
    "process_id": (0, "this process, 0 to num_processes - 1"),
}
_FORMATS = "huggingface, timm, torchvision, facebook_mae, big_vision, orbax"
_INIT_FORMAT = {"init_format": ("", f"{_FORMATS}; '': what it looks like")}
COMMANDS: dict[str, tuple[Callable[..., None], bool, dict]] = {
    # name: (function, takes --config, flags)
    "run": (
        commands.run,
        True,
        {**_RUN, "force": (False, "go on although the config of the workdir differs")},
    ),
    "eval": (commands.evaluate, True, {"workdir": _RUN["workdir"]}),
    "features": (
        commands.features,
        False,
        {
            "init": (REQUIRED, "folder or file of weights"),
            "data": (REQUIRED, "tfds:NAME, folder:PATH, builtin:NAME; jsonl:PATH ..."),
            "out": (REQUIRED, "the .npz to write: embeddings, labels, names"),
            "split": ("train", "split of the data"),
            "data_dir": ("", "where tfds: finds its data sets"),
            "pooling": ("cls", "cls, mean or mean_norm"),
            "batch_size": (64, "images or texts at once"),
            "precision": ("float32", "float32 or bfloat16"),
            "max_bad_fraction": (0.01, "undecodable examples beyond it are an error"),
            "seq_len": (128, "text: tokens that a text is cut to"),
            "text_fields": ("text", "text: the column, or A,B for pairs"),
            "label_field": ("label", "text: the column of the labels; '' for none"),
            "label_kind": ("class", "text: class or number"),
            **_INIT_FORMAT,
            "init_known": ("", "what init does not tell: heads=6,gelu=tanh"),
            "mean": ("", "images: of the pixels, 0.5,0.5,0.5; '': what init tells"),
            "std": ("", "images: of the pixels, 0.5,0.5,0.5; '': what init tells"),
        },
    ),
    "convert": (
        commands.convert,
        False,
        {
            "from": (REQUIRED, "folder or file of weights"),
            "to": (REQUIRED, "folder or file to write; must not be there yet"),
            "from_format": ("", f"{_FORMATS}; '': what it looks like"),
            "format": ("huggingface", _FORMATS),
            "task": ("", "mae, mlm, classify or encoder; '': all that there is"),
            "known": ("", "what a file does not tell: heads=6,decoder_heads=16"),
            "change": ("", "what shall be written otherwise: layer_norm_eps=1e-6"),
            "fresh": ([], "what shall be new: head (may be repeated)"),
            "num_classes": (0, "of a fresh head; 0: those of the one there is"),
            "seed": (0, "of what is fresh"),
        },
    ),
    "fill": (
        commands.fill,
        False,
        {
            "init": (REQUIRED, "Hugging Face folder of a masked language model"),
            "text": (REQUIRED, "a text with one mask token or more, such as [MASK]"),
            "top": (5, "how many tokens to print for each"),
            **_INIT_FORMAT,
        },
    ),
    "configs": (commands.list_configs, False, {}),
}


def usage() -> str:
    lines = ["flax-adapt COMMAND --flag=value ...  (COMMAND --help lists its flags)"]
    for name, (function, _, _) in COMMANDS.items():
        lines.append(f"  {name:10}{(function.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def describe(command: str) -> str:
    """The flags of a command, a line each."""
    function, takes_config, table = COMMANDS[command]
    rows = [("--config", "", "file or shipped name, NAME:argument=value,...")]
    rows += [("--config.FIELD", "", "changes one field, as in --config.stages.0.seeds")]
    rows = rows if takes_config else []
    rows += [
        (f"--{name}", "required" if default is REQUIRED else repr(default), text)
        for name, (default, text) in table.items()
    ]
    lines = [f"  {name:20}{default:10}{text}" for name, default, text in rows]
    return "\n".join([(function.__doc__ or "").splitlines()[0], *lines])


def parse(command: str, arguments: Sequence[str]) -> dict:
    """Returns the command's arguments; raises UserError naming what is wrong."""
    _, takes_config, table = COMMANDS[command]
    values = flags.FlagValues()
    for name, (default, text) in table.items():
        _DEFINE[type(default)](name, default, text, flag_values=values)
    rest = [config.bracket_indices(argument) for argument in arguments]
    names = [argument for argument in rest if argument.startswith("--config=")]
    known = ", ".join(f"--{name}" for name in table)
    if takes_config:
        if len(names) != 1:
            raise UserError(
                f"{command} needs one --config=FILE or --config=NAME; flags: {known}"
            )
        rest.remove(names[0])
        loaded = config.load(names[0].removeprefix("--config="))
        for argument in rest:
            config.check_override(loaded, argument)
    try:
        if takes_config:
            config_flags.DEFINE_config_dict(
                "config", loaded, flag_values=values, sys_argv=[command, *rest]
            )
        left = values([command, *rest])[1:]
    except (
        flags.Error,
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
    ) as e:
        raise UserError(f"{command}: {_one_line(e)}") from None
    needed = [name for name, (default, _) in table.items() if default is REQUIRED]
    missing = [f"--{name}=..." for name in needed if not values[name].value]
    if missing or left:
        what = f"needs {' '.join(missing)}" if missing else f"does not know {left}"
        raise UserError(f"{command} {what}; flags: {known}")
    # --from is no name of an argument in Python: there it is from_.
    given = {
        f"{name}_" if keyword.iskeyword(name) else name: values[name].value
        for name in table
    }
    return {**given, "config": values["config"].value} if takes_config else given


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
    """One plain line on stderr for what a run has to say; quiet libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    log = logging.getLogger("flax_adapt")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False


def _stop(*_: object) -> None:
    raise Preempted("stopped before anything was trained")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    _set_up_log()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command = arguments[0]
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _stop)
        if command not in COMMANDS:
            known = ", ".join(COMMANDS)
            raise UserError(f"{command!r} is no command; there are: {known}")
        if {"-h", "--help"} & set(arguments):
            print(describe(command))
            return 0
        COMMANDS[command][0](**parse(command, arguments[1:]))
    except Preempted as stop:
        print(f"{stop}; run the same command to continue")
    except (UserError, OSError, NonFiniteError) as error:
        print(f"flax-adapt: {_one_line(error)}", file=sys.stderr, flush=True)
        return _leave(1 if isinstance(error, NonFiniteError) else 2)
    return 0


def _leave(code: int) -> int:
    """Ends at once where there are other processes.

    An ordinary exit waits for all to exit, and the others may wait for this one: then
    all would hang for minutes, and be aborted without this exit code.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
