"""How every test runs: eight fake devices, strict shapes, a compile cache.

Compiling is nine tenths of the suite, so XLA optimises little unless told `--optimized`.
Tests marked `long` run with `--all` alone; how many were left out is printed.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import resource
import signal
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
STATM = Path("/proc/self/statm")  # its second number: resident pages
CACHE = ROOT / ".pytest_cache" / "d" / "xla"  # `pytest --cache-clear` empties it

# Before NumPy and JAX start, and for the processes that tests start: workers share the
# cores, so each gets one thread; what one process compiled, the others read.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    # Decoded images of tests are not stored in the home directory of who runs them.
    "XDG_CACHE_HOME": str(ROOT / ".pytest_cache" / "d" / "user"),
}
for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)

import jax
import pytest
from hypothesis import settings
from support import depth, storages

from flax_adapt.commands.machine import xla

OLDER = jax.version.__version_info__ < (0, 11)
# Most time goes into LLVM: loops that XLA writes itself, in one piece, compile fastest.
# jaxlib 0.11 has no other way left, and ends a process that names an unknown flag.
QUICK_XLA = (
    *(["--xla_cpu_use_fusion_emitters=false"] if OLDER else []),
    "--xla_cpu_parallel_codegen_split_count=1",
)
# Fake devices wait for each other; where cores are few and busy, longer than the 40 s after
# which XLA ends the process.
PATIENT_XLA = ("--xla_cpu_collective_call_terminate_timeout_seconds=900",)
LEFT_OUT = pytest.StashKey[int]()

settings.register_profile("short", max_examples=depth.SHORT)
settings.register_profile("deep", max_examples=depth.DEEP)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked long too")
    parser.addoption(
        "--optimized",
        action="store_true",
        help="compile as users do: takes twice as long",
    )


def pytest_configure(config):
    if importlib.metadata.version("orbax-checkpoint") < "0.12":
        # It leaves event loops open, which Python closes, with a warning, when it finds them.
        found = "Exception ignored in. <(socket|function BaseEventLoop)"
        warning = "pytest.PytestUnraisableExceptionWarning"
        config.addinivalue_line("filterwarnings", f"ignore:{found}:{warning}")
    settings.load_profile("deep" if config.option.all else "short")
    config.stash[LEFT_OUT] = 0
    quick = () if config.option.optimized else QUICK_XLA
    # By way of the environment, for the processes that tests start, too.
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*flags, *quick, *PATIENT_XLA]))
    xla.set_flags()
    if config.option.optimized:
        return
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_report_header():
    import flax_adapt

    return f"flax_adapt: {Path(flax_adapt.__file__).parent}"


def pytest_collection_modifyitems(config, items):
    for item in items:
        if not SHARED_DATA.is_dir() and item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason=f"there is no {SHARED_DATA}"))
    if config.option.all:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    config.stash[LEFT_OUT] = len(long)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Each worker collects all tests: what one left out, all did."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[LEFT_OUT] = max(node.config.stash[LEFT_OUT], left_out)


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash[LEFT_OUT]:
        terminalreporter.write_line(
            f"{count} long tests were left out; --all runs them", yellow=True
        )


@pytest.fixture
def shared_data():
    """The folder of real data; tests that use it carry `@pytest.mark.shared_data`."""
    return SHARED_DATA


@pytest.fixture(scope="module")
def pages():
    """The module that makes pages of the docs, docs/pages.py."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_files():
    """Closes the files of weights that are read when they are used."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def strict_dtypes():
    """For our own maths: optax.adamw itself mixes float and int32."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def nans_allowed():
    """For a test that makes a NaN on purpose."""
    with jax.debug_nans(False):
        yield


@pytest.fixture(scope="module")
def compile_fast(pytestconfig):
    """For tests in which numbers do not matter: fast under `--optimized` as well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    optimized = pytestconfig.option.optimized
    jax.config.update("jax_disable_most_optimizations", not optimized)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """What modules compiled is let go when it is much: all of it is 7 GiB a worker."""
    yield
    if STATM.exists():  # Linux
        pages = int(STATM.read_text().split()[1])
        if pages * resource.getpagesize() > 4 * 2**30:
            jax.clear_caches()


@pytest.fixture
def main(capsys):
    """Runs a command in this process; returns (exit code, stdout, stderr).

    `main` expects a process of its own: its signal handlers are put back, and malloc stays
    as it is. A run writes report.html where it is asked to alone.
    """
    from flax_adapt import __main__
    from flax_adapt.commands.machine import allocator

    def main(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(allocator, "mallopt", lambda parameter, value: 1)
            runs = arguments[:1] in (("run",), ("adapt",)) and len(arguments) > 1
            less = runs and not {"--report", "--help"} & {*arguments}
            code = __main__.main(
                [*arguments[:1], *["--noreport"] * less, *arguments[1:]]
            )
        return code, *capsys.readouterr()

    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield main
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    # Its log goes to what was captured of this test, which is closed now.
    log = logging.getLogger("flax_adapt")
    log.handlers.clear()
    log.propagate = True


@pytest.fixture(params=storages.KINDS)
def storage(request, monkeypatch, tmp_path):
    """The address of an empty folder on each kind of storage."""
    return storages.start(request.param, monkeypatch, tmp_path)


@pytest.fixture
def file_storage(monkeypatch, tmp_path):
    """The address of an empty folder that stands for a storage."""
    return storages.start("file", monkeypatch, tmp_path)
