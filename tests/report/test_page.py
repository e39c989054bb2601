"""report.html: what it shows, what it leaves out, and that it is one valid file."""

import dataclasses
import logging

import pytest
from support import html_page, tiny_report

from flax_adapt.base import logs
from flax_adapt.experiment import provenance
from flax_adapt.report import curves, outcomes, page, recipe, svg, workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("report") / "<run> & co"
    made.mkdir()
    tiny_report.write(made)
    provenance.note_start(made)
    return made


@pytest.fixture(scope="module")
def text(folder):
    return page.write(folder).read_text("utf-8")


@pytest.fixture
def run(folder):
    return workdir.read(folder)


def test_the_page_is_one_valid_file_that_loads_nothing(text):
    assert html_page.Page(text).problems == []
    assert "prefers-color-scheme: dark" in text


def test_a_page_with_faults_has_problems():
    planted = (
        "<!DOCTYPE html><p><div></p></div><img src='http://x/y.png'><br><li>"
        '<a href="#no" id="a"></a>'
        "<b id='a'></b></li><svg></svg><script></script>"
    )
    found = " ".join(html_page.Page(planted).problems)
    for fault in (
        *("inside of", "closes nothing", "loads http", "no alt", "in <", "no id no"),
        *("id a twice", "has no text", "is not wanted"),
    ):
        assert fault in found


def test_the_verdict_comes_first_then_results_and_the_recipe(text):
    found = html_page.Page(text)
    assert found.headings[:3] == ["Did it help?", "Results", "Recipe"]
    assert "arm helped." in found.words


@pytest.mark.parametrize("name", page.SECTIONS)
def test_no_section_fails_on_a_whole_workdir(run, name):
    found = page.SECTIONS[name].find(run)
    assert found is None or (isinstance(found, dict) and found)


def test_what_users_write_is_escaped(folder, text):
    assert "<run>" not in text
    assert "<script" not in text
    assert folder.name in html_page.Page(text).words


def test_what_is_missing_is_left_out(tmp_path):
    """One stage that was not tested, and no metrics: no verdict, no curve, no heading."""
    tiny_report.write(tmp_path)
    rows = logs.read_json(tmp_path / "results.json")
    logs.write_json(tmp_path / "results.json", rows[:1])
    for file in ("metrics.jsonl", "stages/pretrain/data.json"):
        (tmp_path / file).unlink()
    found = html_page.Page(page.write(tmp_path).read_text("utf-8"))
    assert found.headings == ["Results", "Recipe", "Time and throughput", "Config"]
    assert found.problems == []


def test_a_section_that_fails_is_left_out_with_a_line(folder, monkeypatch, caplog):
    def fail(run):
        raise KeyError("nope")

    broken = page.SECTIONS["recipe"]._replace(find=fail)
    monkeypatch.setitem(page.SECTIONS, "recipe", broken)
    caplog.set_level(logging.INFO, "flax_adapt")
    found = html_page.Page(page.write(folder).read_text("utf-8"))
    assert "Recipe" not in found.headings
    assert "report: 'Recipe' is left out (KeyError: 'nope')" in caplog.text


def test_a_report_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    assert page.write_or_warn(tmp_path) is None
    (line,) = caplog.messages
    assert line.startswith("no report was written (UserError: ")


def test_the_command_refuses_a_folder_without_results(main, tmp_path):
    code, _, error = main("report", f"--workdir={tmp_path}")
    assert (code, error.count("\n")) == (2, 1)
    assert "holds no config.json and no results.json" in error


def test_the_command_writes_the_page(main, folder):
    code, out, _ = main("report", f"--workdir={folder}")
    assert (code, out) == (0, f"report:  {folder}/report.html\n")


def test_a_bar_has_zero_in_the_middle_and_ends_at_its_reach():
    found = outcomes.bar(dict(low=-1.0, difference=0.5, high=2.0), 2.0)
    assert found == dict(left=25.0, width=75.0, middle=62.5)


def test_a_long_line_is_thinned_and_keeps_its_end():
    line = [(step, 0.0) for step in range(1, 1001)]
    thinned = curves.thin(line)
    assert len(thinned) <= curves.MOST_POINTS
    assert thinned[-1] == line[-1]
    assert curves.thin(line[:5]) == line[:5]


def test_losses_of_different_objectives_are_not_in_one_chart(run):
    lines = curves.collect_lines(run)
    assert {*lines["reconstruct", "loss"]} == {"pretrain", "further"}
    assert {*lines["classify", "loss"]} == {
        f"{name}/seed_{seed}" for name in ("base", "arm") for seed in tiny_report.SEEDS
    }
    assert len(lines["", "lr"]) == 8


def test_a_watched_stage_has_its_curve_and_says_what_it_kept(run):
    label, name = "further", "watch_target_knn"
    lines = [{"stage": label, "step": step, name: 0.1 * step} for step in (0, 2, 4)]
    found = dict(metric="target/knn", verdict={"word": "helped"}, kept_step=2)
    kept = {"watch": [{"rolled_back": False, **found}]}
    rows = [{**row, **kept} if row["stage"] == label else row for row in run.rows]
    watched = dataclasses.replace(run, metrics=lines, rows=rows)
    (chart,) = curves.charts(watched)["charts"]
    assert chart["title"] == "target knn, watched"
    (root,) = recipe.tree(watched)["roots"]
    nodes = [root["children"][0], *root["children"][0]["children"]]
    chips = {node["title"]: node["chips"] for node in nodes}
    assert chips["further"] == ["watched, kept: step 2", "target/knn helped"]
    assert chips["pretrain"] == []


def test_every_watched_metric_has_a_curve_over_steps(run):
    names = ("watch_target_knn", "watch_pool_rankme", "watch_source_knn")
    lines = [
        {"stage": "further", "step": step, **dict.fromkeys(names, 0.1 * step)}
        for step in (0, 2, 4)
    ]
    drawn = curves.charts(dataclasses.replace(run, metrics=lines))["charts"]
    titles = ["target knn, watched", "pool rankme, watched", "source knn, watched"]
    assert [chart["title"] for chart in drawn] == titles


def test_pictures_share_no_id_and_have_the_colours_of_the_page():
    with svg.settings():
        pictures = []
        for _ in range(2):
            figure, axes = svg.new_axes()
            axes.plot([0, 1], [0, 1], color=svg.SERIES[3], label="a $b$ <c>")
            axes.legend()
            pictures.append(svg.draw(figure, 'of "a"'))
    whole = "<!DOCTYPE html><body>" + "".join(pictures) + "</body>"
    assert html_page.Page(whole).problems == []
    assert "var(--s3)" in whole
    assert not any(colour in whole for colour in svg.COLOURS)
    assert "a $b$ <c>" in html_page.Page(whole).words
