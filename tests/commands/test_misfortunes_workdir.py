"""Whatever has happened to a workdir: one line and exit code 2, never a traceback."""

import contextlib
import resource
import shutil
from pathlib import Path

import pytest

from flax_adapt.experiment import lock

KEPT = Path(__file__).parent.parent / "stage/workdir_0_1"  # two runs done, one stopped
DONE = "stages/finetune/seed_0"


@pytest.fixture
def workdir(tmp_path):
    shutil.copytree(KEPT / "run", tmp_path / "run")
    return tmp_path / "run"


def write(name, content):
    return lambda workdir: (workdir / name).write_bytes(content)


MISFORTUNES = {
    "torn config": (write("config.json", b"{"), "config.json is not JSON"),
    "binary config": (write("config.json", b"\xff\x00"), "config.json is not JSON"),
    "torn result": (write(f"{DONE}/result.json", b'{"a'), "result.json is not JSON"),
    "other result": (write(f"{DONE}/result.json", b"[]"), "result.json is damaged"),
    "no export": (
        lambda workdir: shutil.rmtree(workdir / DONE / "export"),
        "has a result, but",
    ),
}


def refused(main, command, workdir):
    code, out, err = main(
        command, f"--config={KEPT / 'config.py'}", f"--workdir={workdir}"
    )
    assert (code, out) == (2, "")
    assert err.startswith("flax-adapt: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", MISFORTUNES)
def test_a_damaged_workdir_is_one_line(main, workdir, name):
    damage, text = MISFORTUNES[name]
    damage(workdir)
    assert text in refused(main, "run", workdir)


def test_a_workdir_in_use_is_one_line(main, workdir):
    with lock.hold(workdir):
        assert "is in use by process" in refused(main, "run", workdir)


@contextlib.contextmanager
def no_room(limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_the_config_is_one_line_and_the_old_one_stays(main, workdir):
    before = (workdir / "config.json").read_bytes()
    with no_room(2000):
        assert "make room, then run the same" in refused(main, "run", workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_nothing_to_measure_is_one_line(main, tmp_path):
    assert "holds no finished stage" in refused(main, "eval", tmp_path)
