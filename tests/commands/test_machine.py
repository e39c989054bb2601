"""What `main` sets up before a command: the folder of compiled programs, and malloc."""

import json
import os
import platform
import subprocess
import sys

import jax
import pytest

from flax_adapt.base.errors import UserError
from flax_adapt.commands.machine import allocator, compile_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    *compile_cache._OPTIONS,
)
needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="there is no glibc"
)


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """keep_programs(folder) -> JAX's options, from an environment without its variables."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    for name in OPTIONS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def keep(folder=""):
        compile_cache.keep_programs(folder)
        return {name: getattr(jax.config, name) for name in OPTIONS}

    yield keep
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_one_folder_of_the_user_up_to_a_size(chosen, tmp_path):
    found = chosen()
    folder = tmp_path / "cache/flax_adapt/programs" / compile_cache._describe_cpu()
    assert found["jax_compilation_cache_dir"] == str(folder)
    assert folder.is_dir()
    assert found["jax_compilation_cache_max_size"] == 4 * 2**30


@pytest.mark.parametrize("base", ["", "relative/path"])
def test_without_xdg_the_folder_is_in_home(chosen, monkeypatch, tmp_path, base):
    """A relative path there is to be ignored (XDG base directories)."""
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        chosen()["jax_compilation_cache_dir"].rpartition("/")[0]
        == f"{tmp_path}/.cache/flax_adapt/programs"
    )


def test_the_cpu_is_part_of_the_folder(monkeypatch, tmp_path):
    names = []
    for flags in ("sse avx", "sse avx avx512f"):
        info = tmp_path / "cpuinfo"
        info.write_text(f"vendor: x\nflags : {flags}\nbugs:\n")
        monkeypatch.setattr(compile_cache, "_CPU_INFO", info)
        names.append(compile_cache.user_folder().name)
    assert names[0] != names[1]


def test_the_flag_names_another_folder_or_none(chosen, tmp_path):
    own = tmp_path / "own"
    assert chosen(str(own))["jax_compilation_cache_dir"] == str(own)
    assert not chosen("none")["jax_enable_compilation_cache"]


def test_variables_of_jax_are_as_the_user_set_them(chosen, monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "123")
    limit = jax.config.jax_compilation_cache_max_size
    assert chosen(str(tmp_path))["jax_compilation_cache_max_size"] == limit
    jax.config.update("jax_compilation_cache_dir", before)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    assert chosen()["jax_compilation_cache_dir"] == before
    assert chosen(str(tmp_path))["jax_compilation_cache_dir"] == str(tmp_path)


def test_a_folder_that_cannot_be(chosen, monkeypatch, tmp_path):
    """The usual one is done without; one that was asked for is an error."""
    file = tmp_path / "file"
    file.write_text("")
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert chosen()["jax_compilation_cache_dir"] == before
    with pytest.raises(UserError, match=f"--compile_cache={file}/x: .* or 'none'"):
        chosen(f"{file}/x")


def run_python(code, **variables):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMPILATION_CACHE", "MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COMPILE = """
import json
import jax
from flax_adapt.commands.machine import compile_cache
compile_cache.keep_programs("")
hits = []
jax.monitoring.register_event_listener(lambda event, **more: hits.append(event))
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8)))
print(json.dumps(hits.count("/jax/compilation_cache/cache_hits")))
"""


def test_what_one_process_compiled_another_reads_until_the_limit(tmp_path):
    how = dict(
        XDG_CACHE_HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"
    )
    assert run_python(COMPILE, **how) == 0
    assert run_python(COMPILE, **how) > 0
    kept = list(tmp_path.rglob("*-cache"))
    assert kept
    limit = sum(path.stat().st_size for path in kept) - 1
    run_python(
        COMPILE.replace("sin", "cos"),
        **how,
        JAX_COMPILATION_CACHE_MAX_SIZE=str(limit),
    )
    left = [path.stat().st_size for path in tmp_path.rglob("*-cache")]
    assert 0 < sum(left) <= limit


# The page faults of the last of ten arrays of 64 MiB that are made and freed.
FAULTS = """
import json, resource
from flax_adapt.commands.machine import allocator
allocator.set_allocator({name!r})
import numpy as np
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    before = count()
    np.ones(2**23)
print(json.dumps(count() - before))
"""


@needs_glibc
@pytest.mark.parametrize(
    ("name", "variables", "keeps"),
    [
        ("keep", {}, True),
        ("system", {}, False),
        ("keep", dict(MALLOC_ARENA_MAX="8"), False),
    ],
)
def test_memory_is_kept_unless_the_user_has_settings(name, variables, keeps):
    faults = run_python(FAULTS.format(name=name), **variables)
    # All of them would be 16 384 pages of 4 KiB, or 32 of 2 MiB, which NumPy asks for.
    assert (faults < 20) == keeps


BEFORE_JAX = """
import json, sys
from flax_adapt import __main__
from flax_adapt.commands.machine import allocator

calls, real = [], allocator.mallopt
def noted(parameter, value):
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = bridge is not None and bridge.backends_are_initialized()
    calls.append([started, real(parameter, value)])
allocator.mallopt = noted
lines = [
    "features --init=/nowhere --data=folder:/nowhere --out=x.npz --malloc=keep",
    "run --config=quickstart --workdir=/dev/null/x --malloc=keep",
    "run --config=quickstart --workdir=/dev/null/x --malloc=system",
]
found = []
for line in lines:
    calls.clear()
    found.append([__main__.main(line.split()), [*calls]])
print(json.dumps(found))
"""


@needs_glibc
def test_malloc_is_set_up_before_jax_starts(tmp_path):
    found = run_python(BEFORE_JAX, XDG_CACHE_HOME=str(tmp_path))
    before = [[False, 1]] * len(allocator.SETTINGS["keep"])
    assert found[1:] == [[2, before], [2, []]]
    assert found[0][1] == before


def test_an_unknown_setting_names_the_flag():
    with pytest.raises(UserError, match="--malloc"):
        allocator.set_allocator("fast")
