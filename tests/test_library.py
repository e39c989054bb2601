"""The library as README and DESIGN show it."""

import re
from pathlib import Path

import jax
import numpy as np
import tiny

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


def test_every_public_name_is_there():
    assert [name for name in fa.__all__ if not hasattr(fa, name)] == []
