"""The architecture: imports point backwards, no circles, few loose files, all of it small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flax_adapt"

# A package may import those of the lines above its own, and itself. Two on one line do
# not import each other.
ORDER = (
    ("base",),
    ("data", "models"),
    ("weights",),
    ("surgery", "train"),
    ("objectives",),
    ("defaults",),
    ("stage",),
    ("evals", "plan"),
    ("experiment",),
    ("report",),
    ("commands",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names}
LOOSE = {"__init__", "__main__", "commands"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_FILES_IN_ONE_LIST = 20

MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = [ROOT / "setup.py", *MODULES]
for folder in ("configs", "launch", "tests", "benchmarks"):
    FILES += sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def dotted(path):
    """flax_adapt/data/images/image.py -> data.images.image; __init__.py is its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {dotted(path): path for path in MODULES}


def imported(source, modules):
    """Names in `modules` that `source` imports anywhere; "" is flax_adapt itself.

    `from flax_adapt.data import image` is the module data.image where there is one, else
    something that data/__init__.py defines.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"line {node.lineno}: relative import")
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            if package == "flax_adapt":
                yield inner if inner in modules else inner.rpartition(".")[0] or inner


def package_of(module):
    return module.partition(".")[0]


def upward(source, here):
    """Packages that `source`, a module of the package `here`, must not import."""
    found = {package_of(module) for module in imported(source, NAMES)} - {here}
    return sorted(name for name in found if FLOOR.get(name, 99) >= FLOOR[here])


def circles(sources):
    """Modules of {name: source} that import each other in a circle."""
    graph = {
        name: {other for other in imported(source, sources) if other != name}
        for name, source in sources.items()
    }
    while leaves := [name for name, others in graph.items() if not others & {*graph}]:
        for name in leaves:
            del graph[name]
    return sorted(graph)


def loose(paths):
    return sorted(path.stem for path in paths if path.stem not in LOOSE)


def test_imports_point_backwards():
    wrong = {}
    for name, path in NAMES.items():
        if name:  # the public face sees everything
            assert package_of(name) in FLOOR, name_of(path)
            try:
                found = upward(path.read_text("utf-8"), package_of(name))
            except AssertionError as relative:
                found = str(relative)
            if found:
                wrong[name_of(path)] = found
    assert wrong == {}


def test_no_module_imports_itself_by_way_of_others():
    inside = {n: p for n, p in NAMES.items() if n not in ("", "__main__")}
    assert circles({n: p.read_text("utf-8") for n, p in inside.items()}) == []


def test_few_files_lie_loose():
    assert loose(PACKAGE.glob("*.py")) == []
    for folder in {path.parent for path in MODULES}:
        count = len(list(folder.glob("*.py")))
        assert count <= MAX_FILES_IN_ONE_LIST, f"{name_of(folder)} lists {count} files"


def test_the_tests_lie_in_the_folders_of_what_they_test():
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    found = {path.relative_to(ROOT / "tests").as_posix() for path in folders}
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in MODULES}
    assert found - rooms <= {".", "commands", "launch", "parity"}


@pytest.mark.parametrize(
    "source",
    [
        "from flax_adapt.stage import loop",
        "from flax_adapt.stage.loop import train_and_evaluate",
        "import flax_adapt.stage.loop",
        "import flax_adapt.stage.loop as lazily",
        "def late():\n    from flax_adapt.stage import loop, stage",
        "import importlib\nimportlib.import_module('flax_adapt.stage.loop')",
    ],
)
def test_an_upward_import_is_seen_in_every_form(source):
    assert upward(source, "train") == ["stage"]
    assert upward(source, "stage") == upward(source, "experiment") == []


def test_two_packages_of_one_floor_do_not_import_each_other():
    assert upward("from flax_adapt import models", "data") == ["models"]
    assert upward("from flax_adapt.data import order", "models") == ["data"]


def test_a_module_must_not_import_the_public_face():
    assert upward("import flax_adapt", "experiment") == [""]


def test_a_planted_circle_and_a_planted_loose_file_are_seen():
    sources = {
        "stage": "",
        "stage.a": "from flax_adapt.stage import b",
        "stage.b": "def late():\n    from flax_adapt.stage.c import x",
        "stage.c": "from flax_adapt.stage import a",
        "stage.d": "from flax_adapt.stage import a",
    }
    assert circles(sources) == ["stage.a", "stage.b", "stage.c", "stage.d"]
    assert circles(sources | {"stage.c": ""}) == []
    assert loose([PACKAGE / "step.py", PACKAGE / "commands.py"]) == ["step"]


def too_large(name, text):
    """ "file:line: what is too large" of a file and of each of its functions."""
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {lines} lines"


def test_files_and_functions_stay_small():
    texts = {name_of(path): path.read_text("utf-8") for path in FILES}
    assert [line for each in texts.items() for line in too_large(*each)] == []


def test_a_planted_long_file_and_a_planted_long_function_are_seen():
    long = "\n" * 3 + "def late():\n" + "    pass\n" * MAX_FUNCTION_LINES
    assert [*too_large("a.py", long)] == ["a.py:4: late has 61 lines"]
    assert [*too_large("a.py", "\n" * 301)] == ["a.py: 301 lines"]
    assert [*too_large("a.py", "def soon():\n    pass")] == []


def test_there_is_no_drawer():
    assert [
        name_of(path) for path in FILES if path.stem in ("utils", "helpers", "misc")
    ] == []
