"""The front door is light: help, lists and refusals do not wait for JAX, nor imports for more."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.pure import LIGHT

import flax_adapt
from flax_adapt import __main__
from flax_adapt.commands import table

PACKAGE = Path(flax_adapt.__file__).parent
# LIGHT: what `import flax_adapt` may load, with all that these load themselves.
# Their classes derive from Orbax's; whoever needs them imports them inside a function.
WITH_ORBAX = {"train/checkpoint.py", "weights/files/orbax_arrays.py"}
WITHOUT_JAX = [
    ["--help"],
    ["--version"],
    ["configs"],
    *[[command, "--help"] for command in __main__.COMMANDS],
    ["nope"],
    ["configs", "--all"],
    ["run"],
    ["run", "--config=nope", "--workdir=w"],
    ["run", "--config=nope.py", "--workdir=w"],
    ["run", "--config=quickstart"],
    ["run", "--config=quickstart", "--workdir=w", "--wrong=1"],
    ["run", "--config=quickstart", "--workdir=w", "--num_processes=x"],
    ["eval", "--config=quickstart", "--workdir=w", "more"],
    ["features", "--init=x"],
    ["convert", "--from=x", "--to=y", "--seed=x"],
]


def loaded_by(script, *arguments):
    """Runs a script in a fresh process; returns the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_help_lists_and_refusals_do_not_import_jax():
    script = """
import json, sys
from flax_adapt.__main__ import main
codes = [main(line) for line in json.loads(sys.argv[1])]
heavy = [name for name in ("jax", "flax", "numpy") if name in sys.modules]
print(json.dumps([codes, heavy]))
"""
    codes, heavy = loaded_by(script, json.dumps(WITHOUT_JAX))
    refused = [line for line, code in zip(WITHOUT_JAX, codes, strict=True) if code]
    assert refused == WITHOUT_JAX[WITHOUT_JAX.index(["nope"]) :]
    assert heavy == []


def test_importing_the_package_loads_jax_flax_and_little_else():
    script = f"""
import importlib, json, sys
tops = lambda: {{name.partition(".")[0] for name in sys.modules}}
import flax_adapt
assert "jax" not in sys.modules
for name in {LIGHT!r}:
    importlib.import_module(name)
before = tops()
for name in flax_adapt.__all__:
    getattr(flax_adapt, name)
print(json.dumps(sorted(tops() - before - sys.stdlib_module_names)))
"""
    assert loaded_by(script) == []


def top_level_imports(source):
    """Packages that importing a module of this source imports."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_slow_packages_are_imported_inside_functions(path):
    light = {name.partition(".")[0] for name in LIGHT} | sys.stdlib_module_names
    extra = (
        {"orbax", "etils"} if str(path.relative_to(PACKAGE)) in WITH_ORBAX else set()
    )
    found = {*top_level_imports(path.read_text("utf-8"))}
    assert found - light - extra - {"flax_adapt"} == set()


def test_every_public_name_has_a_place_and_is_listed():
    assert [*flax_adapt._PLACES] == flax_adapt.__all__ == sorted(flax_adapt.__all__)
    assert {*flax_adapt.__all__, "__version__"} <= {*dir(flax_adapt)}
    with pytest.raises(AttributeError, match="'flax_adapt' has no attribute 'nope'"):
        flax_adapt.nope  # noqa: B018


def test_types_are_checked_by_the_same_places():
    """What type checkers read under TYPE_CHECKING is what __getattr__ finds."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    places = {}
    for node in block.body:
        base = node.module.removeprefix("flax_adapt").removeprefix(".")
        for alias in node.names:
            module = f"{base}.{alias.name}".strip(".")
            is_module = (PACKAGE / module.replace(".", "/")).with_suffix(".py").exists()
            is_module |= (PACKAGE / module.replace(".", "/")).is_dir()
            place = (module, "") if is_module else (base, alias.name)
            places[alias.asname or alias.name] = place
    assert places == flax_adapt._PLACES


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_the_table_says_what_the_functions_say(name):
    function, summary, takes_config, flags, (rest, _) = __main__.COMMANDS[name]
    module = importlib.import_module(f"flax_adapt.commands.{function}")
    call = getattr(module, function.rpartition(".")[2])
    found = inspect.signature(call).parameters
    own = {"stop_code", *table.MACHINE, *table.PROCESSES}  # `main` itself takes these
    taken = [flag for flag in flags if flag not in own]
    names = [f"{flag}_" if flag == "from" else flag for flag in taken]
    more = [*(["config"] if takes_config else []), *([rest] if rest else [])]
    assert {*found} == {*names, *more}
    assert inspect.getdoc(call).splitlines()[0] == summary


@pytest.mark.parametrize(
    ("line", "own"),
    [
        ("--workdir=w --config.seed=1 --force", "--workdir=w --force"),
        ("--config.seed 1 --workdir w", "--workdir w"),
        ("--config.flag --workdir=w more", "--workdir=w more"),
        ("-config.stages[0].lr=1 more", "more"),
    ],
)
def test_own_flags_are_what_is_no_override(line, own):
    assert __main__._without_overrides(line.split()) == own.split()


def test_the_version_is_said_by_the_command_and_by_the_package(main):
    assert main("--version") == (0, f"flax-adapt {flax_adapt.__version__}\n", "")


def test_the_pure_parts_run_where_only_jax_flax_and_few_others_are_installed():
    """With the rest hidden: gradients of every objective, a step, another last block."""
    tests = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "support.pure"],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": f"{PACKAGE.parent}:{tests}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (0, "7 objectives\n"), done.stderr
