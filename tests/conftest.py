"""How every test runs: eight fake devices, strict shapes, a compile cache."""

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
}
for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)


def pytest_report_header():
    import flax_adapt

    return f"flax_adapt: {Path(flax_adapt.__file__).parent}"


def pytest_collection_modifyitems(items):
    if SHARED_DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason=f"there is no {SHARED_DATA}"))


@pytest.fixture
def shared_data():
    """The folder of real data; tests that use it carry `@pytest.mark.shared_data`."""
    return SHARED_DATA


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
def compile_fast():
    """For tests in which numbers do not matter: compiling takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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

    `main` expects a process of its own: its signal handler is put back.
    """
    from flax_adapt import __main__

    def main(*arguments):
        code = __main__.main(arguments)
        return code, *capsys.readouterr()

    handler = signal.getsignal(signal.SIGTERM)
    yield main
    signal.signal(signal.SIGTERM, handler)
