"""`adapt` where a stage does not fit: it names the command that takes the setting."""

import json
import re
import shlex

import jax
import pytest
from support import tiny_files

from flax_adapt import __main__
from flax_adapt.commands import adapt
from flax_adapt.experiment import device_memory
from flax_adapt.plan.fitting import Fit
from flax_adapt.stage import loop

FIT = Fit({"stages.1.memory.remat": "blocks"}, 11 * 2**30, 20 * 2**30, 16 * 2**30, True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def fail(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize(
    ("budget", "then"),
    [
        ("auto", "run that, then the same adapt command again"),
        ("30m", "run that instead, with steps by the rule auto, not --budget=30m"),
    ],
)
def test_adapt_names_the_run_that_fits(
    main, monkeypatch, files, tmp_path, budget, then
):
    monkeypatch.setattr(loop, "Run", fail)
    monkeypatch.setattr(device_memory, "_find_fit", lambda stage: FIT)
    given = dict(init=files["init"], labelled=files["images"], test=files["images"])
    given |= dict(workdir=tmp_path / "run", budget=budget, bits=8, seeds=2)
    code, _, err = main(
        "adapt", *(f"--{name}={value}" for name, value in given.items())
    )
    assert code == 2
    line = err.strip().split("\n")[-1]
    assert line.endswith(
        f"fits (needs 11.00 GiB of 16.00 GiB; the results stay, but for rounding): {then}"
    )
    command = shlex.split(re.search("`flax-adapt (.*)`", line)[1])
    parsed = __main__.parse(command[0], command[1:])
    assert parsed["workdir"] == str(tmp_path / "run")
    assert parsed["config"].stages[1].memory.remat == "blocks"
    assert parsed["config"].stages[1].seeds == (0, 1)
    # The same command goes on after that run: its record has the config that it runs.
    (tmp_path / "run/stages/x/checkpoints/2").mkdir(parents=True)
    record = tmp_path / "run" / adapt.RECORD
    assert record.exists() == (budget == "auto")
    if record.exists():
        kept = adapt.read_record(
            record.parent, json.loads(record.read_text())["flags"], False
        )
        assert f"--config={kept['config']}" in command
