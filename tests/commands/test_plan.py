"""The command `plan`, from flags to text, JSON, exit code and refusals."""

import importlib.util
import json

import pytest
from support import tiny

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.plan import plans

# Two kinds of stages; the second stage of the first kind needs no program of its own.
STAGES = (
    tiny.pretrain(num_steps=6),
    tiny.pretrain("again", num_steps=4),
    tiny.finetune(memory=defaults.memory(remat="blocks", scan=True)),
)


@pytest.fixture
def plan(main, monkeypatch):
    config = tiny.experiment(*STAGES, mesh=dict(data=2, fsdp=4, tensor=1))
    monkeypatch.setattr(configs, "load", lambda name: config)
    return lambda *flags: main("plan", "--config=tiny", *flags)


def test_every_kind_of_stage_is_compiled_once_and_told_as_json(plan):
    code, out, _ = plan(
        "--topology=cpu:8", "--json", "--price_per_chip_hour=3.5", "--num_classes=10"
    )
    first, second = json.loads(out)
    assert code == 0
    assert first["stages"] == ["pretrain", "again"]
    assert (second["stage"], second["assumed"]) == ("finetune", [])
    assert first["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert (first["batch"], first["batch_per_chip"], first["chips"]) == (16, 2, 8)
    # Parameters are gathered; gradients are summed.
    assert first["collectives"]["all-gather"]["bytes"] > 0
    assert first["collectives"]["all-reduce"]["bytes"] > 0
    assert first["policy"] == {"remat": "none", "scan": False, "logit_chunks": 1}
    assert second["policy"] == {"remat": "blocks", "scan": True, "logit_chunks": 1}
    # Blocks that are recomputed run forward a second time: at most 4 / 3 of the mathematics.
    for found, more in ((first, 1.0), (second, 1.25)):
        ours, theirs = found["flops"]["analytic"], found["flops"]["compiled"]
        assert theirs / ours == pytest.approx(more, rel=0.06)
        memory = found["memory"]
        parts = ("arguments", "temporaries", "outputs", "code")
        assert memory["total"] == sum(memory[part] for part in parts)
        assert memory["fits"]
    bound = first["roofline"]
    assert bound["seconds"] >= max(bound["compute"], bound["memory"], bound["network"])
    hours = bound["seconds"] * 10 / 3600
    assert first["dollars"] == pytest.approx(hours * 8 * 3.5)


def test_a_program_that_does_not_fit_has_exit_code_1(plan):
    code, out, _ = plan("--topology=cpu:8", "--stage=again", "--hbm_gib=1e-6")
    assert code == 1
    assert "DOES NOT FIT" in out
    assert out.startswith("pretrain (reconstruct) and again")


def test_a_stage_that_is_solved_has_no_step_and_is_left_out(main, monkeypatch):
    model = defaults.stage_model(fresh=("head",), head_norm=True)
    fields = dict(num_steps=1, optim=defaults.exact_probe_optim(), model=model)
    probe = tiny.finetune("probe", **fields)
    config = tiny.experiment(tiny.pretrain(), probe)
    monkeypatch.setattr(configs, "load", lambda name: config)
    compiled = {"stage": "pretrain", "memory": {"fits": True}}
    monkeypatch.setattr(plans, "plan_kind", lambda kind, hardware: compiled)
    flags = ("plan", "--config=tiny", "--topology=cpu:8", "--json")
    code, out, err = main(*flags)
    assert (code, json.loads(out)) == (0, [compiled])
    assert err == "probe: optim.solve has no training step\n"
    code, _, err = main(*flags, "--stage=probe")
    assert (code, err.count("\n")) == (2, 1)


def test_a_search_prints_what_fits_and_the_best_flags(plan, monkeypatch):
    def compiled(kind, hardware):
        """Twice the batch takes twice the memory; parts divide it."""
        section = kind.stage.config
        memory = section.batch_size / section.optim.accum_steps
        speed = {"examples_per_second": float(section.batch_size), "mfu": 0.1}
        fits = {"fits": memory <= 16, "total": memory}
        return {"stage": section.name, "memory": fits, "roofline": speed}

    monkeypatch.setattr(plans, "plan_kind", compiled)
    flags = ("--topology=cpu:8", "--stage=pretrain", "--search")
    code, out, _ = plan(*flags)
    assert code == 0
    best = next(line for line in out.splitlines() if line.startswith("best: "))
    assert "--config.stages.0.batch_size=64" in best
    assert "--config.stages.0.optim.accum_steps=4" in best
    code, out, _ = plan(*flags, "--config.stages.0.batch_size=1024")
    assert (code, "nothing fits" in out) == (1, True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e"], "--topology=v5e must be KIND:SIZES"),
        (["--topology=v7:4x4"], "--topology=v7:4x4: the kind of chip"),
        (["--topology=cpu:64"], "JAX has started with 8 CPU devices"),
        (
            ["--topology=cpu:8", "--stage=no"],
            "--stage=no is no stage; there are: pretr",
        ),
        (["--topology=cpu:4"], "mesh: data=2, fsdp=4, tensor=1 does not use 4 devices"),
        ([], "plan needs --topology=..."),
    ],
)
def test_a_mistake_is_one_line(plan, flags, words):
    code, out, err = plan(*flags)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("topology", "module", "extra"),
    [("v5e:4x4", "libtpu", "tpu"), ("h100:8", "jax_cuda12_plugin", "cuda")],
)
def test_a_missing_compiler_names_the_extra_that_brings_it(
    plan, monkeypatch, topology, module, extra
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    code, _, err = plan(f"--topology={topology}")
    assert (code, err.count("\n")) == (2, 1)
    assert f'pip install "flax-adapt[{extra}]"' in err


def test_a_tpu_program_is_compiled_without_a_tpu(plan):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip(
            "libtpu, which compiles for TPUs, is not installed: flax-adapt[tpu]"
        )
    code, out, _ = plan("--topology=v5e:2x4", "--stage=pretrain", "--json")
    (found,) = json.loads(out)
    assert (code, found["chips"]) == (0, 8)
    assert found["memory"]["limit"] == 15.75 * 2**30
    assert found["flops"]["compiled"] >= found["flops"]["analytic"]
