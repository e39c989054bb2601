"""`launch/local_pod.py`: its commands, its output, and its end when a process dies."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent.parent / "launch"
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
# Ends itself like a process that the kernel killed.
VICTIM = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def local_pod():
    spec = importlib.util.spec_from_file_location("pod", LAUNCH / "local_pod.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield module
    for number, handler in handlers.items():
        signal.signal(number, handler)


def with_programs(module, monkeypatch, *programs):
    def command_of(options, number):
        return [sys.executable, "-c", programs[number]]

    monkeypatch.setattr(module, "command_of", command_of)
    return module.parse([f"--processes={len(programs)}", "--grace=1", "run"])


def test_dry_run_prints_the_command_of_every_process(local_pod, capsys):
    arguments = ["--dry-run", "--processes=2", "--devices=3", "--port=1234"]
    assert local_pod.main([*arguments, "run", "--config=quickstart:a=b c"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        prefix, *words = shlex.split(line)
        assert prefix == f"[{number}]"
        split = words.index(sys.executable)
        settings = dict(word.split("=", 1) for word in words[:split])
        assert settings["JAX_NUM_CPU_DEVICES"] == "3"
        assert settings["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] == "gloo"
        assert words[split + 1 :] == [
            *("-m", "flax_adapt", "run", "--config=quickstart:a=b c"),
            *("--coordinator=127.0.0.1:1234", "--num_processes=2"),
            f"--process_id={number}",
        ]


def test_a_process_that_dies_ends_the_others_within_the_grace(
    local_pod, monkeypatch, capsys
):
    options = with_programs(local_pod, monkeypatch, SLEEPER, VICTIM)
    start = time.monotonic()
    assert local_pod.run(options) == 128 + signal.SIGKILL
    assert time.monotonic() - start < 20
    out, error = capsys.readouterr()
    assert out == "[0] up\n"
    told = "local_pod: process 1 was ended by signal 9; killed after 1 s: 0\n"
    assert error == told


@pytest.mark.parametrize("to", [None, 1])
def test_sigterm_goes_to_all_processes_or_to_one(local_pod, monkeypatch, capsys, to):
    says = (
        "import signal, sys, time\n"
        "def stop(*_): print('stop', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('up', flush=True); time.sleep({})"
    )
    programs = [says.format(3 if to else 60), says.format(60)]
    options = with_programs(local_pod, monkeypatch, *programs)
    options.signal_to = to
    timer = threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    assert local_pod.run(options) == 0
    stopped = [f"[{number}] stop" for number in ((0, 1) if to is None else (to,))]
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line for line in lines if "stop" in line) == stopped


def test_one_process_is_the_command_as_it_is():
    command = [sys.executable, LAUNCH / "local_pod.py", "--processes=1", "configs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert all(line.startswith("[0] ") for line in done.stdout.splitlines())
    assert "quickstart" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], None),
        ([], "a flax-adapt command is missing"),
        (["--processes=0", "run"], "must be 1 or more"),
        (["--signal-to=2", "run"], "0 to 1"),
    ],
)
def test_wrong_options_are_refused(local_pod, capsys, arguments, told):
    if told is None:
        assert local_pod.parse(arguments).processes == 2
        return
    with pytest.raises(SystemExit) as stopped:
        local_pod.parse(arguments)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
