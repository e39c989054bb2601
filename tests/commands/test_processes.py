"""How a process finds the others, and how it notices that one of them is gone."""

import logging
import threading

import jax
import pytest

from flax_adapt import __main__
from flax_adapt.base.errors import Preempted, UserError
from flax_adapt.commands import processes

# Environment -> arguments of jax.distributed.initialize.
ENVIRONMENTS = {
    "nothing of ours": ({}, {}),
    "SLURM, one task a GPU": (
        {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"},
        {},
    ),
    "SLURM, one task a node": (
        {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"},
        {"local_device_ids": [0, 1, 2, 3]},
    ),
    "a Job of GKE": (
        {
            "JAX_COORDINATOR_ADDRESS": "pod-0:1234",
            "JAX_NUM_PROCESSES": "2",
            "JOB_COMPLETION_INDEX": "1",
        },
        {
            "coordinator_address": "pod-0:1234",
            "num_processes": 2,
            "process_id": 1,
        },
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_auto_reads_the_environment(name):
    variables, found = ENVIRONMENTS[name]
    assert processes.detect(variables) == found


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "JAX_NUM_PROCESSES"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID or JOB_COMPLETION_INDEX"),
    ],
)
def test_auto_refuses_half_an_environment(variables, told):
    with pytest.raises(UserError, match=told):
        processes.detect({"JAX_COORDINATOR_ADDRESS": "h:1", **variables})


def test_auto_says_what_it_looked_for(monkeypatch):
    """JAX's own detection, which finds nothing here."""
    for name in ("SLURM_JOB_ID", "JAX_COORDINATOR_ADDRESS", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "jax._src.xla_bridge.backends_are_initialized", lambda: False
    )  # a command joins before it uses a device
    with pytest.raises(UserError, match="no TPU VM, SLURM step") as refused:
        processes.join("auto", 1, 0, 60)
    assert "--coordinator=HOST:PORT" in str(refused.value)
    assert not jax.distributed.is_initialized()


def test_a_process_is_lost_when_its_number_stands_still():
    """Also one that was slow before; never one that counts on, however slowly."""
    seen = {}
    for second in range(0, 100, 5):
        found = {"beats/0": str(second), "beats/1": str(min(second, 30) // 10)}
        lost = processes.find_silent(found, seen, float(second), 20.0)
        assert lost == (["1"] if second > 50 else [])


def test_the_watch_ends_this_process_with_one_line(monkeypatch, capsys):
    class Client:
        def key_value_set(self, key, value, allow_overwrite):
            assert (key, allow_overwrite) == ("flax_adapt/beats/0", True)
            self.own = value

        def key_value_dir_get(self, keys):
            return [(f"{keys}0", self.own), (f"{keys}1", "7")]

    class EndedError(BaseException):
        pass

    def leave(code):
        raise EndedError(code)

    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(processes.os, "_exit", leave)
    with pytest.raises(EndedError, match="1"):
        processes._watch(Client(), 0.05, threading.Event())
    line = capsys.readouterr().err
    assert line.startswith("flax-adapt: process 1 has given no sign for 0 s")
    assert line.count("\n") == 1


def test_other_processes_leave_the_talking_to_process_0(monkeypatch):
    log = logging.getLogger("flax_adapt")
    monkeypatch.setattr(log, "level", logging.INFO)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    processes.join("h:1", 2, 1, 60)
    assert log.level == logging.WARNING


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "Gloo all-reduce failed: Connection closed by peer",
            "another process is gone",
        ),
        ("shapes do not fit", "Traceback"),
    ],
)
def test_a_process_that_breaks_down_does_not_wait_for_the_others(
    monkeypatch, capsys, text, told
):
    """An ordinary exit would wait for them, and they for this one."""

    def fail(*_):
        raise RuntimeError(text)

    codes = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(__main__, "_call", fail)
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr(__main__.signal, "signal", lambda *_: None)
    __main__.main(["configs"])
    assert codes == [1]
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--stop_code=75"], 75)])
def test_a_stopped_run_has_the_exit_code_that_a_scheduler_asked_for(
    monkeypatch, capsys, flags, code
):
    def stop(command, arguments):
        assert "stop_code" not in arguments
        raise Preempted("stopped")

    monkeypatch.setattr(__main__, "_call", stop)
    monkeypatch.setattr(__main__.signal, "signal", lambda *_: None)
    assert __main__.main(["run", "--config=quickstart", "--workdir=w", *flags]) == code
    assert capsys.readouterr().out == "stopped; run the same command to continue\n"
