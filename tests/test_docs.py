"""README and docs: their examples run, their commands are accepted, every argument is named."""

import ast
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from pytest_examples import find_examples
from support import tiny, tiny_files, tiny_text

import flax_adapt as fa
from flax_adapt import __main__
from flax_adapt.base import config as configs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """Its blocks one after another, on a tiny model in the place of the user's."""
    monkeypatch.chdir(tmp_path)
    model = tiny.build("mae")
    fa.save_pretrained("path/to/hf_folder", model, tiny.params_of(model))
    names = {"batch": tiny.batch_of(8)}
    examples = [e for e in find_examples(ROOT / page) if e.prefix == "python"]
    assert examples
    for example in examples:
        exec(compile(example.source, page, "exec"), names)
    _, saved, _ = fa.from_pretrained("out", "mae")
    start = tiny.params_of(model)
    assert jax.tree.structure(saved) == jax.tree.structure(start)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), saved, start)
    assert max(jax.tree.leaves(moved)) > 0


def commands_of(path):
    """The `flax-adapt` lines of code blocks; a backslash continues a line."""
    text = re.sub(r"\\\n\s*", "", path.read_text("utf-8"))
    return re.findall(r"^(?: {4})?(flax-adapt .+)$", text, re.MULTILINE)


COMMANDS = [(page, line) for page in PAGES for line in commands_of(page)]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What a reader fills in, by modality: a command on texts names jsonl or BERT."""
    root = tmp_path_factory.mktemp("docs")
    images = tiny_files.image_folder(root / "images")
    text = dict(PATH=tiny_text.corpus_folder(root / "texts"))
    text["MODEL"] = tiny_files.bert_folder(root / "bert")
    image = dict(PATH=images, SOURCE=images, A=images, MODEL=root / "mae", NEXT=images)
    image["B"] = tiny_files.image_folder(root / "others")
    tiny_files.mae_folder(root / "mae")
    return {"text": text, "image": image}


@pytest.mark.parametrize(
    ("page", "line"),
    COMMANDS,
    ids=[f"{name_of(p)}:{line[:60]}" for p, line in COMMANDS],
)
def test_every_command_of_a_page_is_accepted(page, line, stand_ins):
    """Its flags, its config and all arguments; `run` would start from here."""
    words = stand_ins["text" if re.search("jsonl|bert", line) else "image"]
    for word, value in words.items():
        line = re.sub(rf"(?<=[:=+]){word}\b", str(value), line)
    _, command, *flags = shlex.split(line)
    if flags != ["--help"]:
        __main__.parse(command, flags)


def test_every_argument_of_a_config_is_explained(pages):
    """In its docstring, or in that of a config which that names ("as in ...")."""
    texts = {
        name: ast.get_docstring(ast.parse(path.read_text("utf-8")))
        for name, path in configs.list_shipped().items()
    }
    missing = []
    for name, path in configs.list_shipped().items():
        named = [text for other, text in texts.items() if other in texts[name]]
        explained = " ".join([texts[name], *named])
        missing += [
            f"{name}: {argument}"
            for argument in pages.arguments_of(path)
            if not re.search(rf"\b{argument}\b", explained)
        ]
    assert missing == []


def test_every_section_of_the_defaults_is_on_the_page_of_fields(pages):
    text = pages.fields_page()
    for name in pages.sections():
        assert f"\n## {name}\n" in text
        assert all(f"| `{field}` |" in text for field in pages.fields_of(name))
    assert "`optim.warmup_steps`" in text


def test_every_command_is_on_the_page_of_commands(pages):
    text = pages.commands_page()
    assert all(f"\n## {command}\n" in text for command in __main__.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_files_of_the_repository_lead_somewhere(page):
    generated = {"configs.md", "fields.md", "commands.md", "changelog.md"}
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if (
            "://" in target
            or Path(target).name in generated
            or "results/index" in target
        ):
            continue
        assert (page.parent / target).exists(), target


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120
