"""Promises of a run: exact resume, SIGTERM, nothing silent, nothing lost."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

from flax_adapt import data as fa_data
from flax_adapt import defaults, loop, recipe
from flax_adapt.errors import UserError

HERE = Path(__file__).parent
# A run in a process of its own. It writes the examples of every batch that a step used,
# and can stop itself with a signal just before a given step.
RUNNER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
import tiny
from flax_adapt import __main__, config, loop

workdir, stop = sys.argv[1], json.loads(sys.argv[2])
seen = open(Path(workdir) / "seen.jsonl", "a")
advance = loop.Run.advance

def spying(run, step):
    batches, stage = run.batches, run.stage.label
    if stop and (stage, step) == (stop["stage"], stop["step"]):
        run.checkpoints._manager.wait_until_finished()
        os.kill(os.getpid(), stop["signal"])
    class Spy:
        def __next__(self):
            batch = next(batches)
            line = dict(stage=stage, step=step, index=batch["index"].tolist())
            seen.write(json.dumps(line) + "\\n")
            seen.flush()
            return batch
    run.batches = Spy()
    advance(run, step)
    run.batches = batches

loop.Run.advance = spying
experiment = tiny.experiment(
    tiny.pretrain(), tiny.distill(), tiny.finetune(), **json.loads(sys.argv[4])
)
config.load = lambda name: experiment
sys.exit(__main__.main(["run", "--config=tiny", f"--workdir={{workdir}}"]))
"""


def launch(workdir, stop=None, devices=1, **changes):
    workdir.mkdir(exist_ok=True)
    arguments = [str(workdir), json.dumps(stop), str(devices), json.dumps(changes)]
    code = RUNNER.format(tests=str(HERE))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def tensors(workdir, stage):
    """Exported parameters and the whole last checkpoint of a stage, as arrays."""
    folder = workdir / "stages" / stage
    step = max(int(p.name) for p in (folder / "checkpoints").iterdir())
    saved = folder / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(saved).item_metadata.tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names
        )
        state = reader.restore(saved, restore_args=as_numpy)
    return load_file(folder / "export" / "model.safetensors"), state


def last_seen(workdir):
    """(stage, step) -> indices; a step that ran again must have seen the same."""
    seen = {}
    for line in (workdir / "seen.jsonl").read_text().splitlines():
        row = json.loads(line)
        place = (row["stage"], row["step"])
        assert seen.setdefault(place, row["index"]) == row["index"]
    return seen


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = launch(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    ("name", "stage", "step"),
    [
        ("SIGKILL", "pretrain", 4),  # step 3 is done but not saved
        ("SIGKILL", "distill", 2),  # nothing saved yet
        ("SIGTERM", "distill", 4),
        ("SIGTERM", "finetune", 1),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(straight, tmp_path, name, stage, step):
    number = getattr(signal, name)
    stop = dict(stage=stage, step=step, signal=number)
    stopped = launch(tmp_path / "run", stop)
    if name == "SIGKILL":
        assert stopped.returncode == -number
    else:
        assert stopped.returncode == 0, stopped.stderr
        assert f"stage {stage} stopped at step {step}" in stopped.stdout
        assert "run the same command to continue" in stopped.stdout
    again = launch(tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert last_seen(tmp_path / "run") == last_seen(straight)
    for each in ("pretrain", "distill", "finetune"):
        assert_identical(tensors(tmp_path / "run", each), tensors(straight, each))


def test_a_finished_run_is_not_run_again(straight):
    before = (
        (straight / "seen.jsonl").read_text(),
        (straight / "results.json").read_text(),
    )
    again = launch(straight)
    assert again.returncode == 0
    assert "all stages were done before" in again.stdout
    after = (
        (straight / "seen.jsonl").read_text(),
        (straight / "results.json").read_text(),
    )
    assert before == after


def test_a_run_goes_on_with_another_number_of_devices(straight, tmp_path):
    stop = dict(stage="pretrain", step=5, signal=signal.SIGKILL)
    launch(tmp_path / "run", stop)
    again = launch(tmp_path / "run", devices=8)
    assert again.returncode == 0, again.stderr
    ours, theirs = (tensors(w, "pretrain")[0] for w in (tmp_path / "run", straight))
    for name, leaf in theirs.items():
        if not name.endswith(
            "key.bias"
        ):  # its gradient is rounding alone: test_step.py
            np.testing.assert_allclose(
                ours[name], leaf, rtol=0, atol=1e-5 * abs(leaf).max()
            )
    assert last_seen(tmp_path / "run") == last_seen(straight)


def test_metrics_have_every_step_once(straight):
    lines = [
        json.loads(x) for x in (straight / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [line["step"] for line in lines if line["stage"] == "pretrain"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["eval_accuracy"] >= 0


def test_results_have_the_promised_fields(straight):
    rows = json.loads((straight / "results.json").read_text())
    assert [row["stage"] for row in rows] == ["pretrain", "distill", "finetune"]
    for row in rows:
        assert {"stage", "metric", "seeds", "mean", "std", "seconds"} <= set(row)
    assert rows[2]["metric"] == "accuracy"
    assert (Path(rows[2]["export"]) / "config.json").exists()


def test_another_config_is_refused_with_the_difference(straight):
    changed = launch(straight, seed=1)
    assert changed.returncode == 2
    assert "seed: 0 -> 1" in changed.stderr
    assert changed.stderr.strip().count("\n") == 0
    assert "Traceback" not in changed.stderr


def run(workdir, *stages, **changes):
    return recipe.run(tiny.experiment(*stages, **changes), workdir, force=False)


def test_a_non_finite_loss_stops_with_step_leaf_and_good_checkpoint(
    tmp_path, nans_allowed
):
    # Warm-up from zero: step 1 changes nothing, step 2 makes weights that overflow.
    rate = defaults.pretrain_optim(lr=1e6, warmup_steps=5)
    bad = tiny.pretrain(optim=rate, num_steps=10)
    with pytest.raises(loop.NonFiniteError) as caught:
        run(tmp_path, bad, checkpoint=dict(every_steps=1, keep_last=2, keep_best=0))
    text = str(caught.value)
    assert "stage pretrain: loss, gradient or update is not finite at step 3" in text
    assert "first bad parameter: decoder/" in text
    # The checkpoint of step 2 led here, so it is not a good one.
    assert "last good checkpoint: step 1;" in text
    kept = [p.name for p in (tmp_path / "stages/pretrain/checkpoints").iterdir()]
    assert kept == ["1"]


def test_an_update_that_breaks_the_last_step_is_not_exported(tmp_path, nans_allowed):
    bad = tiny.pretrain(optim=defaults.pretrain_optim(lr=1e30), num_steps=1)
    with pytest.raises(loop.NonFiniteError, match="not finite at step 1"):
        run(tmp_path, bad)
    assert not (tmp_path / "stages/pretrain/export").exists()


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    rates = defaults.finetune_optim(lr=1e-3, warmup_steps=1)
    stage = tiny.finetune(init_from="scratch", num_steps=6, optim=rates)
    stage["model"] = {**stage["model"], "fresh": ()}
    stage["eval"] = {**stage["eval"], "every_steps": 1}
    run(tmp_path, stage, checkpoint=dict(every_steps=1, keep_last=1, keep_best=1))
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    values = {x["step"]: x["eval_accuracy"] for x in lines if "eval_accuracy" in x}
    kept = {int(p.name) for p in (tmp_path / "stages/finetune/checkpoints").iterdir()}
    best = max(values.values())
    assert 6 in kept
    assert len(kept) <= 2
    assert any(values[step] == best for step in kept)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            dict(init_from="stage:nowhere"),
            "'stage:nowhere' is no earlier stage",
        ),
        (dict(init_from="pretrained"), "the config's `init` is empty"),
        (dict(init_from="/nowhere"), "there is no folder /nowhere"),
        (dict(objective=defaults.distill()), "'distill' needs a teacher"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
        (dict(seeds=(0, 0)), "must be one or more different numbers"),
        (dict(seeds=(-1,)), r"seed=0 \+ -1 must lie in"),
    ],
)
def test_a_wrong_stage_is_refused_before_anything_is_written(tmp_path, changes, text):
    with pytest.raises(UserError, match=text):
        run(tmp_path, tiny.pretrain(**changes))
    assert not list(tmp_path.glob("stages/*/checkpoints/*"))


def test_a_mistake_in_the_last_stage_stops_the_first(tmp_path):
    late = tiny.finetune(init_from="stage:pretrian")
    with pytest.raises(UserError, match=r"stage finetune: .*no earlier.*: pretrain"):
        run(tmp_path, tiny.pretrain(), late)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_architecture_are_refused(straight, tmp_path):
    heads = {**tiny.MODEL, "heads": 4}
    init = str(straight / "stages/pretrain/export")
    stage = tiny.pretrain(init_from="pretrained")
    with pytest.raises(UserError, match=r"`model` is not what .* holds: heads: 2 -> 4"):
        run(tmp_path, stage, init=init, model=heads)


def test_classes_of_other_names_are_refused(tmp_path, straight):
    for split, names in (("train", "ab"), ("test", "bc")):
        for name in names:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "x.png")
    data = tiny.digits() | dict(source=f"folder:{tmp_path / 'data'}")
    stage = {**tiny.finetune(init_from="pretrained"), "data": data}
    # The classes of both splits count, so labels mean the same in both.
    examples = [
        fa_data.open_examples(ConfigDict({**data, "split": s}), "")
        for s in ("train", "test")
    ]
    assert examples[0].class_names == examples[1].class_names == ("a", "b", "c")
    stage["eval"] = {**stage["eval"], "data": tiny.digits(subset=tiny.FEW)}
    with pytest.raises(UserError, match=r"has the classes \('a', 'b', 'c'\) but"):
        run(tmp_path / "run", stage, init=str(straight / "stages/pretrain/export"))


def test_two_stages_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"twice: \['pretrain'\]"):
        run(tmp_path, tiny.pretrain(), tiny.pretrain())
