"""Whole recipes of text families other than BERT: S1, from weights to a classifier."""

import json

import numpy as np
import pytest
from support import depth, tiny, tiny_files, tiny_runs, tiny_text

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.experiment import recipe
from flax_adapt.weights import strict
from flax_adapt.weights.formats import hf_families

pytestmark = pytest.mark.usefixtures("compile_fast")

MODERN = dict(global_every=2, local_window=4, global_theta=50.0, local_theta=7.0)
# Fields of tiny models besides those of the tiny BERT, and traits besides the family's.
FIELDS = {
    "distilbert": (dict(token_types=0), {}),
    "electra": ({}, dict(embed_dim=8)),
    "modernbert": (dict(token_types=0), MODERN),
}
NAMES = depth.long_except(["modernbert"], FIELDS)


def folder_of(name, root):
    """A masked-language model of the family, as transformers would write it."""
    fields, own = FIELDS[name]
    traits = {**hf_families.FAMILIES[name].traits, **own}
    model = tiny.build("mlm", {**tiny_runs.TEXT_MODEL, **fields, "traits": traits})
    tokenizer = tiny_text.bert_folder(root / "tokenizer")
    path, params = root / name, tiny.params_of(model)
    weights.save_pretrained(path, model, params, tokenizer=tokenizer)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_self_distillation_adapts_and_fine_tunes_a_family(name, tmp_path):
    init = folder_of(name, tmp_path)
    texts = tiny_text.corpus_folder(tmp_path / "texts")
    config = configs.load(f"bert_self_distill:dataset=jsonl:{texts},init={init}")
    run = tmp_path / "run"
    rows = recipe.run(tiny_files.shrink(config), run, force=False)
    assert [row["stage"] for row in rows] == [one.name for one in config.stages]
    assert all(np.isfinite(row["mean"]) for row in rows)
    export = run / "stages/distill_1/export"
    assert json.loads((export / "config.json").read_text())["model_type"] == name
    before, after = (
        strict.flatten(weights.from_pretrained(path, "mlm")[1])
        for path in (init, export)
    )
    assert before.keys() == after.keys()
    kernels = [key for key in before if key.endswith("kernel")]
    assert all(np.any(before[key] != after[key]) for key in kernels)
