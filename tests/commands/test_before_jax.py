"""What a command sets before its process starts JAX: huge pages of malloc, flags of XLA."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from flax_adapt.commands.machine import allocator, xla

IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


@pytest.mark.parametrize(
    ("given", "version", "found"),
    [
        (None, "0.10.2", IN_ORDER),
        ("--a=1", "0.10.2", f"--a=1 {IN_ORDER}"),
        (f"{IN_ORDER[:-5]}true --a=1", "0.10.2", f"{IN_ORDER[:-5]}true --a=1"),
        ("--a=1", "0.12.0", "--a=1"),
    ],
)
def test_xla_runs_collectives_in_order_unless_the_user_or_jaxlib_says_otherwise(
    given, version, found, monkeypatch
):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given:
        monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == found


LINE = ["run", "--config=quickstart", "--workdir=x"]


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(who has huge pages, glibc, variables, typed) -> what execve is called with."""

    def start(who, library, variables, typed=LINE):
        calls, enabled = [], tmp_path / "enabled"
        enabled.write_text(who)
        monkeypatch.setattr(allocator, "_WHO", enabled)
        monkeypatch.setattr(allocator.platform, "libc_ver", lambda: library)
        monkeypatch.setattr(allocator.os, "environ", variables)
        monkeypatch.setattr(allocator.os, "execve", lambda *how: calls.append(how))
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "flax_adapt", *typed])
        allocator.start_anew([one for one in typed if one != "more"])
        return calls

    return start


ASKED = "always [madvise] never\n"


@pytest.mark.parametrize("flags", [[], ["--malloc=huge_pages"]])
def test_a_command_starts_once_more_as_it_was_typed_with_huge_pages(flags, start):
    command = [sys.executable, "-m", "flax_adapt", *LINE, *flags]
    variables = {"HOME": "x", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert start(ASKED, ("glibc", "2.36"), {"HOME": "x"}, [*LINE, *flags]) == [
        (sys.executable, command, variables)
    ]


@pytest.mark.parametrize(
    ("who", "library", "variables", "typed"),
    [
        ("[always] madvise never\n", ("glibc", "2.36"), {}, LINE),
        ("always madvise [never]\n", ("glibc", "2.36"), {}, LINE),
        ("", ("glibc", "2.36"), {}, LINE),
        (ASKED, ("glibc", "2.34"), {}, LINE),
        (ASKED, ("", ""), {}, LINE),
        (ASKED, ("glibc", "2.36"), {"GLIBC_TUNABLES": "x"}, LINE),
        (ASKED, ("glibc", "2.36"), {"MALLOC_ARENA_MAX": "8"}, LINE),
        (ASKED, ("glibc", "2.36"), {}, [*LINE, "--malloc=keep"]),
        (ASKED, ("glibc", "2.36"), {}, [*LINE, "more"]),  # of another program
    ],
)
def test_it_goes_on_as_it_is_where_that_changes_nothing(
    start, who, library, variables, typed
):
    assert start(who, library, variables, typed) == []


CONFIG = """
import os
def get_config():
    raise SystemExit(os.environ.get("GLIBC_TUNABLES", "none"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
@pytest.mark.parametrize("flag", ["", "--malloc=system"])
def test_a_real_process_has_the_variable_where_the_system_waits_to_be_asked(
    flag, tmp_path
):
    (tmp_path / "c.py").write_text(CONFIG)
    command = [sys.executable, "-m", "flax_adapt", "run", f"--config={tmp_path}/c.py"]
    command += [f"--workdir={tmp_path}/x", *[flag] * bool(flag)]
    names = {"GLIBC_TUNABLES", *(x for x in os.environ if x.startswith("MALLOC_"))}
    left = {name: value for name, value in os.environ.items() if name not in names}
    found = subprocess.run(command, env=left, capture_output=True, text=True)
    who = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    waits = who.exists() and "[madvise]" in who.read_text() and version >= (2, 35)
    asks = waits and not flag
    expected = "glibc.malloc.hugetlb=1" if asks else "none"
    assert found.stderr.splitlines()[-1] == expected
