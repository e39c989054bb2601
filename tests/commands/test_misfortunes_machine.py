"""What a machine does to a run: signals, damaged files, full disks, read-only folders."""

import json
import os
import shutil
import signal

import pytest
from support import machine, tiny, tiny_files

from flax_adapt.base import config
from flax_adapt.stage import loop, training

pytestmark = pytest.mark.usefixtures("compile_fast")
STEPS, STOPPED = 6, 5
SAVED = dict(every_steps=2, keep_last=3, keep_best=0)


@pytest.fixture(scope="module")
def experiment():
    model = {**tiny.MODEL, "depth": 1}
    stage = tiny.pretrain(num_steps=STEPS, batch_size=8)
    return tiny.experiment(stage, model=model, checkpoint=SAVED)


@pytest.fixture
def run(main, monkeypatch, experiment):
    """Runs the experiment in a workdir; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(config, "load", lambda name: experiment)
    return lambda workdir: main("run", "--config=tiny", f"--workdir={workdir}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared") / "run"


@pytest.fixture
def stopped(run, shared, monkeypatch, tmp_path):
    """A copy of a workdir whose run got Ctrl-C before step 5; it has steps 2, 4, 4 or 5."""
    if not shared.exists():
        advance = loop.Run.advance

        def interrupted(self, step):
            if step == STOPPED:
                os.kill(os.getpid(), signal.SIGINT)
            advance(self, step)

        monkeypatch.setattr(loop.Run, "advance", interrupted)
        code, out, err = run(shared)
        monkeypatch.setattr(loop.Run, "advance", advance)
        said = dict(code=code, out=out, err=err)
        (shared / "said.json").write_text(json.dumps(said))
    return shutil.copytree(shared, tmp_path / "run")


def checkpoints(workdir):
    return workdir / "stages/pretrain/checkpoints"


def refusal(found):
    """The one line of a refusal, whatever was logged before it."""
    code, _, err = found
    lines = [line for line in err.splitlines() if line.startswith("flax-adapt: ")]
    assert (code, len(lines)) == (2, 1), err
    assert err.splitlines()[-1] == lines[0]
    assert "Traceback" not in err
    return lines[0]


def steps_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_ctrl_c_ends_as_sigterm_does_with_a_checkpoint_and_exit_code_0(stopped):
    said = json.loads((stopped / "said.json").read_text())
    assert said["code"] == 0
    assert f"stage pretrain stopped at step {STOPPED}; run the same" in said["out"]
    assert "stopping with a checkpoint; Ctrl-C again ends at once" in said["err"]
    assert (checkpoints(stopped) / str(STOPPED)).is_dir()
    assert not (stopped / "stages/pretrain/result.json").exists()


def test_a_damaged_newest_checkpoint_costs_its_steps_alone(run, stopped):
    (checkpoints(stopped) / str(STOPPED) / "progress/metadata").write_bytes(b"")
    code, _, err = run(stopped)
    assert code == 0, err
    assert "the checkpoint of step 5 in" in err
    assert "going on from step 4" in err
    assert "Traceback" not in err
    assert steps_of(stopped) == list(range(1, STEPS + 1))


def test_where_every_checkpoint_is_damaged_that_is_one_line(run, stopped):
    for folder in checkpoints(stopped).iterdir():
        (folder / "progress/metadata").write_bytes(b"")
    assert "can be read" in refusal(run(stopped))


@pytest.mark.parametrize("content", [b"\xff\x00\n", b"[]\n", b'{"step": 1}\n{"a'])
def test_damaged_metrics_are_one_line_that_names_the_line(run, stopped, content):
    (stopped / "metrics.jsonl").write_bytes(content)
    assert "metrics.jsonl, line 1 is not JSON of a step" in refusal(run(stopped))


def test_a_disk_that_fills_while_a_model_is_exported(run, stopped, monkeypatch):
    export = training.export

    def fill(*arguments):
        with machine.no_room(1_000):
            export(*arguments)

    monkeypatch.setattr(training, "export", fill)
    assert "make room, then run the same command again" in refusal(run(stopped))
    assert not (stopped / "stages/pretrain/result.json").exists()
    assert not list(stopped.glob("stages/pretrain/export*"))


@pytest.mark.long
def test_after_room_was_made_a_run_goes_on_from_the_last_checkpoint(
    run, stopped, tmp_path
):
    used = sum(-(-file.stat().st_size // 4096) * 4096 for file in stopped.rglob("*"))
    with machine.small_disk(tmp_path / "disk", used + 40_000) as resize:
        workdir = shutil.copytree(stopped, tmp_path / "disk/run")
        assert "make room" in refusal(run(workdir))
        resize(2**24)
        code, _, err = run(workdir)
        assert code == 0, err
        assert steps_of(workdir) == list(range(1, STEPS + 1))


def test_a_workdir_that_is_read_only_is_one_line(run, stopped, main):
    with machine.read_only(stopped):
        assert str(stopped) in refusal(run(stopped))
    with machine.read_only(stopped.parent):
        assert "Permission denied" in refusal(run(stopped.parent / "other"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    tiny_files.mae_folder(root / "mae")
    return root


LINES = {
    "features": "features --init={root}/mae --data=builtin:digits --out={out}/x.npz",
    "convert": "convert --from={root}/mae --to={out}/x",
}


@pytest.mark.parametrize("command", LINES)
def test_an_output_that_cannot_be_written_is_one_line_and_leaves_nothing(
    main, files, tmp_path, command
):
    out = tmp_path / "out"
    out.mkdir()
    line = LINES[command].format(root=files, out=out).split()
    with machine.read_only(out):
        assert "Permission denied" in refusal(main(*line))
    with machine.no_room(1_000):
        assert "make room, then run the same command again" in refusal(main(*line))
    assert not list(out.iterdir())
    assert main(*line)[0] == 0
