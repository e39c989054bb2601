"""Whatever has happened to a workdir: one line and exit code 2, never a traceback."""

import json
import shutil
from pathlib import Path

import pytest
from support import machine

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


# `eval` reads the exports alone.
CASES = [*(("run", name) for name in MISFORTUNES), ("eval", "no export")]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_damaged_workdir_is_one_line(main, workdir, command, name):
    damage, text = MISFORTUNES[name]
    damage(workdir)
    assert text in refused(main, command, workdir)


def test_a_workdir_in_use_is_one_line(main, workdir):
    with lock.hold(workdir):
        assert "is in use by process" in refused(main, "run", workdir)


def test_no_room_for_the_config_is_one_line_and_the_old_one_stays(main, workdir):
    before = (workdir / "config.json").read_bytes()
    with machine.no_room(2000):
        assert "make room, then run the same" in refused(main, "run", workdir)
    assert (workdir / "config.json").read_bytes() == before


def test_nothing_to_measure_is_one_line(main, tmp_path):
    assert "holds no finished stage" in refused(main, "eval", tmp_path)


def test_eval_measures_what_is_finished_whatever_else_is_damaged_or_in_use(
    main, workdir
):
    line = ("eval", f"--config={KEPT / 'config.py'}", f"--workdir={workdir}")
    code, out, _ = main(*line)
    rows = json.loads((workdir / "eval.json").read_text())
    assert (code, [row["stage"] for row in rows]) == (0, ["pretrain", f"{DONE[7:]}"])
    damaged = ("config.json", "metrics.jsonl", "eval.json", f"{DONE}/result.json")
    for name in damaged:
        (workdir / name).write_bytes(b"\xff{")
    shutil.rmtree(workdir / "stages/finetune/seed_1")
    with lock.hold(workdir):
        assert main(*line)[:2] == (0, out)
    assert json.loads((workdir / "eval.json").read_text()) == rows


def test_eval_of_a_read_only_workdir_is_one_line(main, workdir):
    with machine.read_only(workdir):
        code, out, err = main(
            "eval", f"--config={KEPT / 'config.py'}", f"--workdir={workdir}"
        )
    assert (code, out) == (2, "")
    assert "Permission denied" in err.splitlines()[-1]
    assert "Traceback" not in err
