"""The command `bench`: what it measures, what it prints, and what it leaves."""

import json
import tempfile

import pytest
from support import tiny

from flax_adapt.base import config as configs
from flax_adapt.experiment import bench as benches
from flax_adapt.plan import flops, plans
from flax_adapt.stage import shapes
from flax_adapt.train import sharding

CONFIG = tiny.experiment(tiny.pretrain(num_steps=6), tiny.pretrain("again"))


@pytest.fixture
def bench(main, monkeypatch):
    monkeypatch.setattr(configs, "load", lambda name: CONFIG)
    return lambda *flags: main("bench", "--config=tiny", *flags)


def test_a_kind_of_stage_is_measured_with_and_without_its_data(
    bench, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = bench("--json")
    assert code == 0, err
    (found,) = json.loads(out)
    assert found["stages"] == ["pretrain", "again"]
    assert {*found["seconds"]} == {"step", "with_input"}
    for name, seconds in found["seconds"].items():
        rate = found["batch"] / seconds
        assert found["examples_per_second"][name] == pytest.approx(rate)
    (kind,) = plans.group_stages(CONFIG)
    mesh = sharding.make_mesh(CONFIG.mesh)
    count = flops.count_step(shapes.describe(kind.stage, mesh))
    assert found["flops"] == count
    assert found["flops_per_second"] == count / found["seconds"]["step"]
    rate = found["share_of_matmul"] * found["matmul_flops_per_second"]
    assert rate == pytest.approx(found["flops_per_second"])
    assert found["mfu"] is None  # nobody publishes the peak of fake devices
    assert found["memory"]["arguments"] > 4 * 3 * 1_000  # parameters, two moments
    assert not list(tmp_path.iterdir())


def test_without_input_no_data_are_opened(bench, monkeypatch):
    monkeypatch.setattr(benches, "_time_stage", None)
    code, out, err = bench("--input=False", "--stage=again")
    assert (code, out.partition("\n")[0]) == (0, "pretrain and again on 8 x cpu"), err
    assert "without input" in out
    assert "with input" not in out.replace("without input", "")


def test_a_stage_that_is_not_there_is_one_line(bench):
    code, out, err = bench("--stage=no")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--stage=no is no stage; there are: pretrain, again" in err
