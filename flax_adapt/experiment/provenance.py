"""What a workdir was made with: commands.jsonl, a line for each start of a command.

Commands are `run` and `adapt`, and `eval` and `interpolate`, whose results the workdir has.

The report shows it. A workdir of an earlier version has no such file.
"""

import datetime
import importlib.metadata
import json
import logging
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

from flax_adapt.base.version import __version__

FILE = "commands.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
log = logging.getLogger(__name__)


def note_start(workdir: Path) -> None:
    """Appends command, time, versions and devices; process 0 alone."""
    if jax.process_index():
        return
    with (workdir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(describe_process()) + "\n")


def describe_process() -> dict[str, Any]:
    """Returns the command line, the time, versions and devices of this process."""
    devices = jax.devices()
    now = datetime.datetime.now(datetime.UTC)
    return {
        "command": describe_command(sys.argv),
        "time": now.isoformat(timespec="seconds"),
        "versions": find_versions(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def describe_command(words: list[str]) -> str:
    """Returns a command line as it is typed, with the program's name in place of its path."""
    first, rest = Path(words[0]).name, words[1:]
    names = {"__main__.py": "python -m flax_adapt", "-c": "python -c ..."}
    return " ".join([names.get(first, first), shlex.join(rest)]).strip()


def find_versions() -> dict[str, str]:
    """Returns {package: version} of Python, this package and those that it computes with."""
    found = {"python": platform.python_version(), "flax_adapt": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a wheel without metadata
            log.debug("%s says no version", name)
    return found


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of commands.jsonl; [] without the file. A torn line is left out."""
    path = workdir / FILE
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict) and {"command", "time", "versions"} <= one.keys():
            found.append(one)
    return found
