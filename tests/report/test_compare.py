"""`compare`: workdirs in one table and one page."""

import pytest
from support import html_page, tiny_report

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


def test_other_test_examples_are_not_compared(folders):
    first, second = (workdir.read(folders / name) for name in ("a", "other"))
    row = next(row for row in first.rows if row["stage"] == "arm")
    assert compare.compare_stage(first, second, row) is not None

    class Renamed(workdir.Run):
        def predictions(self, name):
            found = super().predictions(name)
            return {s: p._replace(names=p.names + "x") for s, p in found.items()}

    assert (
        compare.compare_stage(
            first, Renamed(second.folder, second.config, second.rows, [], []), row
        )
        is None
    )
    other = {**row, "metric": "macro_f1"}
    assert compare.compare_stage(first, second, other) is None


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
