"""The notebooks of the docs: they are pages, and run from a clean kernel."""

import ast
import json
import os
from pathlib import Path

import pytest
from support import tiny_files, tiny_runs

ROOT = Path(__file__).parent.parent
BOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# The parameters of a short run; INIT is a tiny model, made here.
SMALL = dict(BUDGET="steps:2", LABELS=2)


def cells_of(path, kind):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def test_there_is_a_notebook_of_images_and_one_of_texts():
    assert [path.stem for path in BOOKS] == ["images", "texts"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_of_the_docs(path, pages):
    page = pages.notebook_page(path)
    assert page.startswith("# Your ")
    assert page.count("```python") == len(cells_of(path, "code"))
    assert f"notebooks/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text("utf-8")


def test_a_page_shows_what_a_cell_printed_and_its_value(pages, tmp_path):
    outputs = [
        dict(output_type="stream", name="stdout", text=["handed", " over\n"]),
        dict(output_type="execute_result", data={"text/plain": ["PosixPath('x')"]}),
    ]
    code = dict(cell_type="code", source=["f()\n", "g()"], outputs=outputs)
    words = dict(cell_type="markdown", source=["# Words"])
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [words, code]}))
    page = pages.notebook_page(tmp_path / "a.ipynb")
    assert "# Words\n\n```python\nf()\ng()\n```" in page
    assert "```text\nhanded over\nPosixPath('x')\n```" in page


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_a_tiny_size(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    (cell,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", ()))
    make = {"images": tiny_files.mae_folder, "texts": tiny_files.bert_folder}
    changes = dict(SMALL, INIT=str(make[path.stem](tmp_path / "init")))
    if path.stem == "texts":
        changes["SEQ_LEN"] = tiny_runs.SEQ_LEN
    names = {node.targets[0].id for node in ast.parse(cell.source).body[1:]}
    assert {*changes} <= names
    lines = [f"{name} = {value!r}" for name, value in changes.items()]
    cell.source = "\n".join([cell.source, *lines])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(
        book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=dict(os.environ))
    printed = json.dumps([cell.get("outputs") for cell in book.cells])
    assert "handed over" in printed
    assert "are right" in printed
