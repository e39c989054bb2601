"""continual_pretrain as it runs: its matrices, also where it was stopped within one."""

import os
import shutil
import signal

import pytest
from support import tiny_files
from support.runner import assert_identical, tensors

from flax_adapt.base import config as configs
from flax_adapt.base.errors import Preempted
from flax_adapt.base.logs import read_json
from flax_adapt.commands.measures.evaluate import evaluate
from flax_adapt.experiment import recipe
from flax_adapt.stage import loop

pytestmark = pytest.mark.usefixtures("compile_fast")
ROWS = ("pretrained", "task_1_images", "task_2_others")
DOMAINS = ("images", "others")
CELL = "finetune_task_1_images_on_others"  # the one with several seeds


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def config(files):
    arguments = "domains={images}+{others},init={init},joint=False".format(**files)
    config = configs.load(f"continual_pretrain:{arguments}")
    tiny_files.shrink(config)
    for section in (config.evaluate, *config.more_evaluations):
        section.update(knn_k=2, batch_size=8)
    (cell,) = (stage for stage in config.stages if stage.name == CELL)
    cell.seeds = (0, 1)
    return config


@pytest.fixture(scope="module")
def straight(config, compile_fast, tmp_path_factory):
    """The workdir of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    recipe.run(config, workdir, force=False)
    evaluate(config, str(workdir), near_copies=False, report=True)
    return workdir


def test_the_matrices_are_those_of_the_run(files, config, straight, capsys):
    """Cells by fine-tuning from results.json, probes from eval.json; all are printed."""
    evaluate(config, str(straight), near_copies=False, report=True)
    printed = capsys.readouterr().out
    assert "finetune\n" in printed
    assert "backward" in printed
    whole, results, measured = (
        read_json(straight / f"{name}.json") for name in ("transfer", "results", "eval")
    )
    means = {row["stage"]: row["mean"] for row in results}
    for r, row in enumerate(ROWS):
        for d, domain in enumerate(DOMAINS):
            name = f"finetune_{row}_on_{domain}"
            assert whole["finetune"]["matrix"][r][d] == means[name]
            (found,) = (
                one
                for one in measured
                if one["stage"] == row and one["data"] == files[domain]
            )
            assert whole["probe"]["matrix"][r][d] == found["probe"]
    assert len(measured) == 3 * 2  # the fine-tuned models are not probed
    at_start = [row for row in measured if row["stage"] == "pretrained"]
    assert all(row["weight_distance"] == 0 for row in at_start)
    moved = [row["weight_distance"] for row in measured if row["stage"] == ROWS[2]]
    assert all(distance > 0 for distance in moved)


def rows(workdir):
    """results.json without what no two runs have alike."""
    found = read_json(workdir / "results.json")
    return [
        {name: row[name] for name in row if name not in ("seconds", "export")}
        for row in found
    ]


def copy_until(straight, workdir, config, label):
    """What a run leaves before it comes to the stage `label`."""
    labels = [run.label for run in recipe.stage_runs(config, straight)]
    for done in labels[: labels.index(label)]:
        shutil.copytree(straight / "stages" / done, workdir / "stages" / done)


def test_a_run_that_was_stopped_inside_a_cell_ends_as_one_that_was_not(
    config, straight, tmp_path, monkeypatch
):
    """Between two steps of the second seed; what was done before is not done again."""
    label, taken, advance = f"{CELL}/seed_1", [], loop.Run.advance
    copy_until(straight, tmp_path, config, label)

    def spying(run, step):
        taken.append((run.stage.label, step))
        if taken == [(label, 1)]:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(run, step)

    monkeypatch.setattr(loop.Run, "advance", spying)
    with pytest.raises(Preempted, match=f"{label} stopped at step 1"):
        recipe.run(config, tmp_path, force=False)
    recipe.run(config, tmp_path, force=False)
    last = [f"finetune_task_2_others_on_{domain}" for domain in DOMAINS]
    assert taken == [(name, step) for name in (label, *last) for step in (1, 2)]
    evaluate(config, str(tmp_path), near_copies=False, report=True)
    assert rows(tmp_path) == rows(straight)
    both = [workdir / "transfer.json" for workdir in (tmp_path, straight)]
    assert read_json(both[0]) == read_json(both[1])
    same = (tensors(workdir, label) for workdir in (tmp_path, straight))
    assert_identical(*same)
