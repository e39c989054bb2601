"""`adapt`: from own data to an adapted model, in one command."""

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest
from support import tiny_files

import flax_adapt as fa
from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.commands import adapt, values
from flax_adapt.commands.table import COMMANDS
from flax_adapt.data import source as sources
from flax_adapt.defaults import baselines
from flax_adapt.defaults.adapting import recipe, sizes
from flax_adapt.evals import outputs
from flax_adapt.experiment import budget, forgetting, handover, timing
from flax_adapt.experiment.measuring import leaks

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def small():
    """Few steps, rates and folds, so that a recipe takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "FINETUNE_LEAST", 2)
        patch.setattr(sizes, "FINETUNE_EPOCHS", 1)
        patch.setattr(sizes, "LEAST", 2)
        patch.setattr(sizes, "EPOCHS", 1)
        patch.setattr(recipe, "LRS", (1.0,))
        patch.setattr(baselines, "LP_FT_LRS", (1.0,))
        patch.setattr(handover, "FOLDS", 2)
        yield


def flags(files, workdir, **changes):
    """Flags of a run: a class folder for each source, without splits."""
    root = files["images"]
    given = dict(
        init=str(files["init"]), workdir=str(workdir), labelled=root, test=root
    )
    given |= dict(report=False, bits=8)  # 8 of the 8 bits that they have: as they are
    return {**given, **changes}


def whole(files):
    return dict(budget="2m", source=files["others"], method="none")


OPENED = []


@pytest.fixture(scope="module")
def adapted(files, small, tmp_path_factory):
    """A whole run without adapting, the source measured all the same.

    OPENED has (source, split) of every folder that it opened.
    """
    workdir = tmp_path_factory.mktemp("adapted")
    open_folder = sources.SCHEMES["image"]["folder"]

    def count(path, section):
        OPENED.append((path, section.split))
        return open_folder(path, section)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.SCHEMES["image"], "folder", count)
        patch.setattr(budget, "share", lambda *_: dict(finetune_steps=3))
        export = fa.adapt(**flags(files, workdir, **whole(files)))
    return workdir, export


def test_a_whole_run_opens_each_source_once(adapted, files):
    root, other = (files[k].removeprefix("folder:") for k in ("images", "others"))
    assert sorted(OPENED) == [(root, "test"), (root, "train"), (other, "train")]


def test_adapt_hands_over_one_of_the_candidates_and_the_report_shows_all(adapted):
    workdir, export = adapted
    record = json.loads((workdir / "handed_over.json").read_text())
    names = [f"{kind}_start" for kind in recipe.CANDIDATES]
    assert list(record["held_out"]) == names
    assert record["stage"] in names
    assert record["examples"] == 16  # all labels, each held out once
    report = (workdir / "report.md").read_text()
    assert all(name in report for name in names)
    # method=none replays nothing, and what is forgotten is said all the same.
    assert f"{record['stage']} against pretrained on the source folder:" in report
    assert export == workdir / "export"


def test_numbers_of_a_budget_are_fixed_in_the_config_of_the_workdir(adapted):
    workdir, _ = adapted
    record = json.loads((workdir / "adapt.json").read_text())
    assert record["config"].endswith("finetune_steps=3")
    stages = configs.plain(configs.load(record["config"]))["stages"]
    stored = json.loads((workdir / "config.json").read_text())["stages"]
    assert [s["num_steps"] for s in stages] == [s["num_steps"] for s in stored]


def test_the_same_command_continues_and_another_budget_is_refused(adapted, files, main):
    workdir, export = adapted
    before = (workdir / "config.json").read_text()
    assert fa.adapt(**flags(files, workdir, **whole(files), report=True)) == export
    said = json.loads((workdir / leaks.RECORD).read_text())["lines"]
    page = (workdir / "report.html").read_text()
    assert said
    assert all(html.escape(line) in page for line in said)
    assert (workdir / "config.json").read_text() == before
    other = flags(files, workdir, **{**whole(files), "budget": "3m"})
    line = [f"--{k}={v}" for k, v in other.items()]
    code, _, error = main("adapt", *line)
    assert code == 2
    assert "begun with other flags (--budget: 2m -> 3m)" in error


def test_predict_on_the_test_set_has_the_accuracy_of_the_report(
    adapted, files, main, tmp_path
):
    workdir, export = adapted
    out, results = (
        tmp_path / "p.csv",
        json.loads((workdir / "results.json").read_text()),
    )
    chosen = json.loads((workdir / "handed_over.json").read_text())["stage"]
    code, *_ = main(
        *("predict", f"--init={export}", f"--data={files['images']}@test"),
        f"--out={out}",
    )
    rows = list(csv.DictReader(out.read_text().splitlines()))
    right = np.mean([row["predicted"] == row["name"].split("/")[1] for row in rows])
    assert code == 0
    assert right == pytest.approx(
        next(row["mean"] for row in results if row["stage"] == chosen)
    )


def test_the_export_says_what_it_is_and_has_its_temperature(adapted):
    workdir, export = adapted
    card = (export / "README.md").read_text()
    assert "handed over since" in card
    assert "ForImageClassification" in card
    assert "temperature" in card
    assert 0.05 <= outputs.read_temperature(export) <= 20
    assert weights.image_reading(export) == {"bits": 8}
    other = (workdir / "stages/full_start/export/README.md").read_text()
    assert "names " in other  # the fingerprint of the data
    assert "handed over" not in other


def test_the_screen_shows_stages_sizes_and_the_equivalent_command(
    files, small, tmp_path, capsys
):
    fa.adapt(**flags(files, tmp_path, budget="steps:3", dry_run=True))
    shown = capsys.readouterr().out
    assert "probe_start" in shown
    assert "about" in shown
    line = next(line for line in shown.splitlines() if "--config=" in line)
    name = line.split("--config=")[1].strip("'")
    assert [s.num_steps for s in configs.load(name).stages] == [1, 3, 3]
    assert not (tmp_path / "config.json").exists()


def test_a_source_gets_a_verdict_on_forgetting(files, small, tmp_path, capsys):
    """The adapted backbone against the initial one, on examples of the source."""
    given = flags(files, tmp_path, labelled="", test="", budget="steps:2")
    fa.adapt(**given, unlabelled=files["images"], source=files["others"])
    said = f"adapt against pretrained on the source {files['others']} (forgetting): kNN"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "report.md").read_text()
    config = configs.load(json.loads((tmp_path / "adapt.json").read_text())["config"])
    # Of three models: 16 examples of the pool, and twice its views, and 16 of the source.
    assert forgetting.count_passes(config) == 3 * (16 + 3 * 16 + 16)


def test_a_source_of_texts_is_measured_with_its_labels_where_it_has_them(files):
    known = dict(init=files["bert"], unlabelled=files["texts"], source=files["texts"])
    name = adapt.join_arguments({**known, "seq_len": 16, "method": "replay"})
    for field, label in (("label", "label"), ("kind", "")):
        config = configs.load(f"{name},label_field={field}")
        section = config.evaluate.source
        assert (section.label_field, section.layout) == (label, "padded")
        assert config.stages[-1].replay.data.label_field == ""


def test_a_pool_needs_no_column_of_labels(files, tmp_path):
    folder = files["images"].removeprefix("folder:")
    paths = [f"{folder}/train/ant/{number}.png" for number in range(8)]
    (tmp_path / "pool.csv").write_text("\n".join(["path", *paths]))
    pool = f"csv:{tmp_path}/pool.csv"
    known = dict(init=files["init"], labelled=files["images"], unlabelled=pool)
    config = configs.load(adapt.join_arguments({**known, "method": "further"}))
    assert config.stages[0].data.label_field == ""
    assert config.stages[1].data.label_field == "label"


def test_lengths_and_rates_share_the_timed_program_and_contrast_has_one_of_its_own(
    files, small, monkeypatch
):
    timed = []

    def time_stage(config, section, *_):
        timed.append(section.name)
        return budget.Cost(1.0, 1.0, 0, 1.0)

    monkeypatch.setattr(timing, "time_stage", time_stage)
    known = dict(init=files["init"], unlabelled=files["images"], seeds=2)
    for method, count in (("further", 0), ("contrast", 1)):
        timed.clear()
        given = dict(known, labelled=files["images"], method=method)
        config = configs.load(adapt.join_arguments(given))
        work = budget.list_work(config, Path("w"), None)
        assert {one.name: one.programs for one in work if one.programs} == (
            {"adapt": count} if count else {}
        )
        # Full fine-tuning differs from LP-FT in its initial weights alone.
        assert timed == ["adapt", "probe_start", "lp_ft_start"]


@pytest.mark.parametrize("text", ["30", "30x", "steps", "steps:0", "0m", "papr", "-3m"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=f"--budget={text} must be"):
        values.parse_budget(text)


def test_a_config_of_flags_is_one_that_the_command_line_can_read_back():
    name = adapt.join_arguments(dict(init="m", labelled="folder:/a,b"))
    assert configs.typed_arguments(name) == dict(init="m", labelled="folder:/a,b")


def test_the_function_knows_the_flags_of_the_command():
    with pytest.raises(UserError, match=r"'inti' is unknown.*did you mean 'init'"):
        fa.adapt(inti="x")
    with pytest.raises(UserError, match="adapt needs init, workdir"):
        fa.adapt()


@pytest.mark.parametrize(
    ("examples", "batch"), [(0, 64), (1, 16), (5, 16), (17, 32), (40, 64), (9_000, 64)]
)
def test_a_small_set_has_a_smaller_batch_that_devices_divide(examples, batch):
    assert sizes.fit_batch(64, examples) == batch


@pytest.mark.parametrize(
    ("budget", "more", "watch"),
    [
        ("auto", {}, "held_out/loss"),
        ("auto", dict(watch="pool/rankme"), "pool/rankme"),
        ("auto", dict(method="none"), ""),
        ("steps:5", {}, ""),
    ],
)
def test_auto_stops_where_the_held_out_loss_is_no_longer_better(budget, more, watch):
    defaults = configs.argument_defaults("adapt")
    given = {
        name: defaults[name] for name in COMMANDS["adapt"].flags if name in defaults
    }
    given |= dict(init="m", unlabelled="folder:x", **more)
    parsed = values.parse_budget(budget)
    name = adapt._name_config(given, parsed, "float32")
    assert configs.typed_arguments(name).get("watch", "") == watch


def test_fine_tuning_takes_no_more_steps_than_a_budget_in_steps(files):
    root = files["images"]
    known = dict(init=files["init"], unlabelled=root, labelled=root, bits=8, steps=1)
    for more, steps in ({}, 1), ({"finetune_steps": 5}, 5):
        config = configs.load(adapt.join_arguments({**known, **more}))
        tuned = [s for s in config.stages if s.name.startswith(("lp_ft", "full"))]
        assert [s.num_steps for s in tuned] == [steps] * 4


@pytest.mark.long
@pytest.mark.parametrize(("init", "method"), [("init", "further"), ("bert", "further")])
def test_without_labels_first_and_then_from_both_backbones(
    init, method, files, small, tmp_path
):
    root = files["texts" if init == "bert" else "images"]
    given = flags(files, tmp_path, method=method, budget="steps:2", unlabelled=root)
    given |= dict(init=str(files[init]), labelled=root, test=root, seq_len=16)
    assert fa.adapt(**given) == tmp_path / "export"
    record = json.loads((tmp_path / "handed_over.json").read_text())
    assert len(record["held_out"]) == 2 * len(recipe.CANDIDATES)
