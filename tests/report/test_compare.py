"""`compare`: workdirs in one table and one page."""

import shutil

import pytest
from support import html_page, tiny_report

from flax_adapt.base import logs
from flax_adapt.report import compare, workdir


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    for name, right in (("a", 0.6), ("<b>", 0.97), ("other", 0.6)):
        (root / name).mkdir()
        config = tiny_report.experiment(seed=int(name == "<b>"))
        tiny_report.write(root / name, {"base": 0.6, "arm": right}, config)
    return root


@pytest.fixture
def rows(folders):
    runs = compare.read_all({name: folders / name for name in ("a", "<b>", "other")})
    return compare.list_rows(runs)


def test_stages_of_one_name_are_judged_against_the_first_workdir(rows):
    words = {
        (row["stage"], row["workdir"]): row["verdict"] and row["verdict"]["word"]
        for row in rows
    }
    unclear = "no evidence either way"
    assert words["arm", "a"] is None
    assert (words["arm", "<b>"], words["arm", "other"]) == ("helped", unclear)
    assert words["base", "<b>"] == unclear
    assert words["pretrain", "<b>"] is None
    assert [row["workdir"] for row in rows[:3]] == ["a", "<b>", "other"]


def judge(first, second, **row):
    stage = next(row for row in second.rows if row["stage"] == "arm")
    return compare.compare_stage(first, second, {**stage, **row})


def test_a_verdict_says_what_its_interval_covers(rows):
    judged = {row["verdict"]["covers"] for row in rows if row["verdict"]}
    text = "covers test examples and training; the labels were the same for all seeds"
    assert judged == {text}
    assert text in compare.format_text(rows)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(contents="other"), "the test data differ (contents)"),
        (dict(sizes="ef56"), ""),  # which the other one lacks
        (dict(labels="x", rows=59), "the test data differ (number of examples)"),
        (dict(names="x", class_names=["a"]), "the test data differ (names, classes)"),
    ],
)
def test_test_data_that_differ_in_a_fact_have_no_verdict(
    folders, tmp_path, changes, reason
):
    """Names of files are relative: other pictures may have the same ones."""
    copy = shutil.copytree(folders / "other", tmp_path / "copy")
    path = copy / "stages/arm/seed_1/eval_data.json"
    logs.write_json(path, {**logs.read_json(path), **changes})
    runs = compare.read_all({"a": folders / "a", "copy": copy})
    found, said = judge(*runs.values())
    assert (found is None, said) == (bool(reason), reason)
    for path in copy.glob("stages/arm/*/eval_data.json"):
        path.unlink()  # as an earlier version leaves a workdir
    assert judge(*compare.read_all({"a": folders / "a", "x": copy}).values())[0]


def test_why_there_is_no_verdict_is_said_once_for_all_its_stages(folders, tmp_path):
    copy = shutil.copytree(folders / "other", tmp_path / "copy")
    for path in copy.glob("stages/*/*/eval_data.json"):
        logs.write_json(path, {**logs.read_json(path), "contents": "x"})
    runs = compare.read_all({"a": folders / "a", "copy": copy})
    rows = compare.list_rows(runs)
    reason = "the test data differ (contents)"
    assert compare.format_text(rows).splitlines()[-2:] == [
        "copy: no verdict on pretrain, further: the stage was not tested",
        f"copy: no verdict on base, arm: {reason}",
    ]
    compare.write(runs, rows, tmp_path / "page.html")
    found = html_page.Page((tmp_path / "page.html").read_text("utf-8"))
    assert found.problems == []
    assert f"copy : No verdict: {reason}." in found.words


def test_other_examples_labels_or_metrics_are_not_compared(folders):
    first, second = (workdir.read(folders / name) for name in ("a", "other"))
    assert judge(first, second)[0] is not None

    def with_predictions(change):
        class Changed(workdir.Run):
            def predictions(self, name):
                return {s: change(p) for s, p in super().predictions(name).items()}

        return Changed(second.folder, second.config, second.rows, [], [])

    renamed = with_predictions(lambda p: p._replace(names=p.names + "x"))
    assert judge(first, renamed) == (None, "the test data differ (names)")
    labelled = with_predictions(lambda p: p._replace(labels=p.labels[::-1]))
    assert judge(first, labelled) == (None, "the test data differ (labels)")
    reason = "its metric is macro_f1, and accuracy in the first workdir"
    assert judge(first, second, metric="macro_f1") == (None, reason)


def test_a_pool_with_test_examples_is_said_beside_the_verdict(folders, tmp_path):
    copy = shutil.copytree(folders / "other", tmp_path / "copy")
    shared = dict(pools=["further"], examples=5, of=60)
    rows = logs.read_json(copy / "results.json")
    logs.write_json(copy / "results.json", [{**rows[-1], "transductive": shared}])
    runs = compare.read_all({"a": folders / "a", "copy": copy})
    found = compare.list_rows(runs)
    text = compare.format_text(found)
    assert text.splitlines()[0].split()[-1] == "pool"
    said = "transductive: the pool of further holds 5 of the 60 test examples"
    assert said in text
    compare.write(runs, found, tmp_path / "page.html")
    assert said in html_page.Page((tmp_path / "page.html").read_text("utf-8")).words


def test_the_command_prints_a_table_and_writes_a_page(main, folders, tmp_path):
    out = tmp_path / "page.html"
    names = [str(folders / name) for name in ("a", "<b>")]
    code, printed, _ = main("compare", *names, f"--out={out}")
    assert code == 0
    assert "helped (+" in printed
    assert printed.endswith(f"page:    {out}\n")
    text = out.read_text("utf-8")
    found = html_page.Page(text)
    assert found.problems == []
    assert found.headings == ["Results", "Configs"]
    assert "seed: 0 -> 1" in found.words
    assert "; covers test examples and training" in found.words
    assert f"{names[1]} : arm helped; base no evidence either way." in found.words
    assert "<b>" not in text.replace("<body>", "")


@pytest.mark.parametrize("words", [(), ("a",), ("a", "a")])
def test_one_workdir_is_not_enough(main, folders, tmp_path, words):
    names = [str(folders / name) for name in words]
    code, _, error = main("compare", *names, f"--out={tmp_path / 'x.html'}")
    assert (code, error.count("\n")) == (2, 1)
    assert "two different workdirs or more" in error
    assert not (tmp_path / "x.html").exists()


def test_the_folder_of_the_page_must_exist(main, folders, tmp_path):
    names = [str(folders / name) for name in ("a", "other")]
    code, _, error = main("compare", *names, f"--out={tmp_path}/no/x.html")
    assert (code, "in a folder that exists" in error) == (2, True)
