"""The library as README and DESIGN show it."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from ml_collections import ConfigDict
from support import tiny

import flax_adapt as fa

README = Path(__file__).parent.parent / "README.md"


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    model = tiny.build("mae")
    fa.save_pretrained(tmp_path / "hf", model, tiny.params_of(model))
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    example = example.replace("path/to/hf_folder", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    names = {"batch": tiny.batch_of(8)}
    exec(example, names)
    assert int(names["state"].step) == 1
    _, trained, _ = fa.from_pretrained(tmp_path / "out", "mae")
    jax.tree.map(np.testing.assert_array_equal, trained, names["state"].params)


def test_the_example_of_penalties_and_adaptors_runs(tmp_path, monkeypatch):
    _, text = README.read_text().split("\nPenalties wrap a loss")
    lines = text.split("\n## ")[0].splitlines()
    example = "\n".join(line[4:] for line in lines if line.startswith("    "))
    model = tiny.build("classify")
    params = tiny.params_of(model)
    names = dict(
        fa=fa,
        jax=jax,
        ConfigDict=ConfigDict,
        model=model,
        params=params,
        report=SimpleNamespace(fresh=("head/kernel", "head/bias")),
        loss_fn=fa.objectives.build(ConfigDict(fa.defaults.classify()), model),
        tx=fa.optim.build(ConfigDict(fa.defaults.finetune_optim()), 1_000, params),
        mesh=fa.make_mesh(dict(data=-1, fsdp=1, tensor=1)),
    )
    monkeypatch.chdir(tmp_path)
    exec(example, names)
    frozen, batch = names["state"].given, tiny.batch_of(8)
    keys_B = jax.random.split(jax.random.key(0), 8)
    _, metrics = names["loss_fn"](names["params"], frozen, batch, keys_B)
    assert metrics["l2_sp"].value() > 0  # of the head, which is new
    _, kept, _ = fa.from_pretrained(tmp_path / "out", "classify")
    jax.tree.map(np.testing.assert_array_equal, kept, params)


def test_every_public_name_is_there():
    assert [name for name in fa.__all__ if not hasattr(fa, name)] == []
