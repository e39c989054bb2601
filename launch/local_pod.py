"""Runs a flax-adapt command as several processes on this machine, on fake CPU devices.

    python launch/local_pod.py --processes=2 --devices=4 \\
        run --config=quickstart --workdir=runs/pod --config.mesh.data=-1

Each process sees `--devices` CPU devices and joins the others as the hosts of a pod do; the
environment sets the rest (compile cache, XLA_FLAGS). Every line of output begins with the
number of its process. SIGTERM and Ctrl-C go to all processes, or with --signal-to=N to
process N alone, as when one host of a pod is preempted. Where one process fails, the others
have `--grace` seconds to end, then they are killed. The exit code is 0 if every process has
0, else that of the first that failed (128 + the signal that killed it). --dry-run prints the
command of every process and starts none.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options, and in `command` the flax-adapt command with its flags."""
    parser = argparse.ArgumentParser(
        prog="local_pod.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("--devices", type=int, default=4, help="devices of each")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds, see above")
    parser.add_argument("--signal-to", type=int, default=None, help="one process only")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="COMMAND --flag=...")
    options = parser.parse_args(arguments)
    if min(options.processes, options.devices) < 1:
        parser.error("--processes and --devices must be 1 or more")
    if options.signal_to not in (None, *range(options.processes)):
        parser.error(f"--signal-to must lie in 0 to {options.processes - 1}")
    if not options.command:
        parser.error(
            "a flax-adapt command is missing, such as: run --config=quickstart"
        )
    options.port = options.port or free_port()
    return options


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns the variables that make fake devices, which processes reach by gloo."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        ),
        "PYTHONUNBUFFERED": "1",
    }


def command_of(options: argparse.Namespace, number: int) -> list[str]:
    """Returns the command line of process `number`."""
    flags = [f"--coordinator=127.0.0.1:{options.port}"]
    flags += [f"--num_processes={options.processes}", f"--process_id={number}"]
    # One process is the command as it is: it joins nobody.
    flags = flags if options.processes > 1 else []
    return [sys.executable, "-m", "flax_adapt", *options.command, *flags]


class Process:
    """One running process; two threads copy its output, line by line."""

    def __init__(self, options: argparse.Namespace, number: int):
        self.number = number
        self._popen = subprocess.Popen(
            command_of(options, number),
            env={**os.environ, **environment(options)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C arrives here only, and is passed on once
        )
        pairs = (self._popen.stdout, sys.stdout), (self._popen.stderr, sys.stderr)
        self._threads = [
            threading.Thread(target=self._copy, args=pair, daemon=True)
            for pair in pairs
        ]
        for thread in self._threads:
            thread.start()

    def _copy(self, source: IO[str], target: IO[str]) -> None:
        with source:
            for line in source:
                text = f"[{self.number}] {line.rstrip()}\n"
                print(text, end="", file=target, flush=True)

    def code(self) -> int | None:
        """Returns the exit code (128 + signal of a killed process), None while it runs."""
        code = self._popen.poll()
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def close(self) -> None:
        """Kills the process if it runs, and waits for the rest of its output."""
        self.send(signal.SIGKILL)
        self._popen.wait()
        for thread in self._threads:
            thread.join(timeout=5)


def describe(process: Process) -> str:
    code = process.code() or 0
    how = f"was ended by signal {code - 128}" if code > 128 else f"failed (code {code})"
    return f"process {process.number} {how}"


def wait(processes: list[Process], grace: float) -> int:
    """Waits until all have ended; `grace` seconds after a failure the rest is killed."""
    failed, deadline = None, 0.0
    while any(process.code() is None for process in processes):
        bad = [process for process in processes if process.code()]
        if bad and failed is None:
            failed, deadline = bad[0], time.monotonic() + grace
        if failed is not None and time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    failed = failed or next((one for one in processes if one.code()), None)
    if failed is None:
        return 0
    late = [str(process.number) for process in processes if process.code() is None]
    rest = f"; killed after {grace:g} s: {', '.join(late)}" if late else ""
    for process in processes:
        process.close()
    print(f"local_pod: {describe(failed)}{rest}", file=sys.stderr, flush=True)
    return failed.code() or 1


def run(options: argparse.Namespace) -> int:
    """Starts all processes, passes signals on, and returns the exit code."""
    processes: list[Process] = []

    def pass_on(*_: object) -> None:
        for process in processes:
            if options.signal_to in (None, process.number):
                process.send(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    try:
        for number in range(options.processes):
            processes.append(Process(options, number))
        return wait(processes, options.grace)
    finally:
        for process in processes:
            process.close()


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if not options.dry_run:
        return run(options)
    settings = [f"{name}={value}" for name, value in environment(options).items()]
    for number in range(options.processes):
        print(f"[{number}]", shlex.join([*settings, *command_of(options, number)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
