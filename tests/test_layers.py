"""The architecture: imports point backwards, files and functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flax_adapt"

# A module may import those before it, and its own sub-package.
ORDER = (
    "scores",
    "metrics",
    "types",
    "errors",
    "keys",
    "rules",
    "config",
    "masking",
    "mixing",
    "data",
    "models",
    "weights",
    "surgery",
    "objectives",
    "defaults",
    "anchors",
    "lars",
    "optim",
    "sharding",
    "fisher",
    "state",
    "step",
    "preemption",
    "logs",
    "evals",
    "checkpoint",
    "check_model",
    "check",
    "stage_resize",
    "stage",
    "stage_weights",
    "stage_data",
    "stage_fisher",
    "stage_frozen",
    "stage_training",
    "loop",
    "sweep",
    "recipe",
    "measure",
    "transfer",
    "plan",
    "report",
    "convert",
    "commands",
    "__main__",
)
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = [ROOT / "setup.py", *MODULES]
for folder in ("configs", "launch", "tests", "benchmarks"):
    FILES += sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def layer_of(path):
    """flax_adapt/data/image.py -> data, flax_adapt/step.py -> step."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_layers(source):
    """Layers imported anywhere in `source`; "" is the package flax_adapt itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"line {node.lineno}: relative import")
        elif isinstance(node, ast.ImportFrom) and node.module == "flax_adapt":
            names = [f"flax_adapt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        else:
            continue
        for package, *rest in (name.split(".") for name in names):
            if package == "flax_adapt":
                yield rest[0] if rest else ""


def violations(source, here):
    """Layers that `source`, a module of the layer `here`, must not import."""
    allowed = ORDER[: ORDER.index(here) + 1]
    return sorted(set(imported_layers(source)) - set(allowed))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_its_place_in_the_order(path):
    assert layer_of(path) in (*ORDER, "__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_backwards(path):
    if path == PACKAGE / "__init__.py":
        return  # the public face sees everything
    assert violations(path.read_text("utf-8"), layer_of(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from flax_adapt import loop",
        "from flax_adapt.loop import train_and_evaluate",
        "import flax_adapt.loop",
        "import flax_adapt.loop as lazily",
        "def late():\n    from flax_adapt import types, loop",
        "import importlib\nimportlib.import_module('flax_adapt.loop')",
    ],
)
def test_a_forward_import_is_seen_in_every_form(source):
    assert violations(source, "step") == ["loop"]
    assert violations(source, "loop") == []


def test_a_module_must_not_import_the_public_face():
    assert violations("import flax_adapt", "recipe") == [""]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_small(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_stay_small(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_there_is_no_drawer():
    assert [
        name_of(path) for path in FILES if path.stem in ("utils", "helpers", "misc")
    ] == []
