"""A text model with another last block, through every objective that follows."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny, tiny_runs

from flax_adapt import defaults, weights
from flax_adapt.experiment import recipe

pytestmark = pytest.mark.usefixtures("compile_fast")
BLOCK = "bert.encoder.layer.1"


def test_every_objective_trains_a_resized_text_model_spread_over_devices(tmp_path):
    base = tiny_runs.texts(tmp_path)
    resize = defaults.resize(8, init="pca")
    pretrain, distill, finetune = (
        {**section, "num_steps": 2, "model": {**section.model, "resize": resize}}
        for section in base.stages
    )
    first = {**base.stages[0], "num_steps": 2}
    narrow = dict(name="narrow", init_from="stage:pretrain")
    follow = dict(init_from="stage:narrow")
    stages = (
        first,
        {**pretrain, **narrow},
        {**distill, **follow, "teacher": "stage:narrow"},
        {**finetune, **follow},
    )
    fields = dict(model=base.model, evaluate=base.evaluate)
    mesh = dict(data=1, fsdp=-1, tensor=2)
    rows = recipe.run(
        tiny.experiment(*stages, **fields, mesh=mesh), tmp_path / "run", force=False
    )
    assert all(np.isfinite(row["mean"]) for row in rows)
    folders = [tmp_path / "run/stages" / row["stage"] / "export" for row in rows[1:]]
    widths = [weights.model_config(each)["last_block"]["width"] for each in folders]
    assert widths == [8, 8, 8]
    start, *others = (load_file(folder / "model.safetensors") for folder in folders)
    changed = [name for name in start if name.startswith(BLOCK) and "shortcut" in name]
    assert changed
    for leaves in others:
        assert all(np.any(leaves[name] != start[name]) for name in changed)
