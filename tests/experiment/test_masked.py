"""`eval` measures the masked loss of weights that have a decoder, on the test examples."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from support import tiny, tiny_files

from flax_adapt import data, defaults, objectives, weights
from flax_adapt.base import config as configs
from flax_adapt.base import keys
from flax_adapt.base.metrics import Meter
from flax_adapt.experiment.measuring import masked
from flax_adapt.experiment.measuring.embeddings import Model
from flax_adapt.stage import draws
from flax_adapt.train import sharding, step

pytestmark = pytest.mark.usefixtures("compile_fast")
CONFIG = tiny.experiment(tiny.pretrain(), tiny.finetune())


@pytest.fixture(scope="module")
def examples():
    section = tiny.digits(subset={**tiny.FEW, "per_class": 5})
    return data.open_examples(configs.build(section), "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{task: a folder of weights}."""
    root, made = tmp_path_factory.mktemp("weights"), {}
    for task in ("mae", "encoder"):
        model = tiny.build(task)
        weights.save_pretrained(root / task, model, tiny.params_of(model))
        made[task] = root / task
    return made


def test_it_is_the_loss_of_the_objective_whatever_the_batch_size(examples, folders):
    model, params, _ = weights.from_pretrained(folders["mae"], "mae")
    mesh = sharding.all_devices()
    loss_fn, sums = objectives.build(CONFIG.stages[0].objective, model), Meter()
    (batch,) = data.eval_batches(examples, 56, 0, 1)
    batch["image"] = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.5
    placed = sharding.put_batch(batch, mesh)
    key = jax.random.fold_in(jax.random.key(CONFIG.seed), step._EVAL)
    key_B = keys.example_keys(key, placed["index"])
    sums.add(jax.device_get(loss_fn(params, {}, placed, key_B)[1]))
    wanted = sums.values()["reconstruct"]
    for size in (16, 56):
        one = Model("x", folders["mae"], {})
        found = masked.measure(CONFIG, one, examples, size, None)
        np.testing.assert_allclose(found["reconstruct"], wanted, rtol=1e-5)


def test_it_is_kept_and_is_not_of_weights_without_a_decoder(
    examples, folders, tmp_path, monkeypatch
):
    one = Model("x", folders["mae"], {})
    first = masked.measure(CONFIG, one, examples, 16, tmp_path)
    monkeypatch.setattr(masked, "_compute", None)
    assert masked.measure(CONFIG, one, examples, 16, tmp_path) == first
    bare = Model("y", folders["encoder"], {})
    assert masked.measure(CONFIG, bare, examples, 16, tmp_path) == {}
    supervised = tiny.experiment(tiny.finetune(init_from="scratch"))
    assert masked.measure(supervised, one, examples, 16, tmp_path) == {}


def test_a_larger_set_is_measured_on_examples_of_all_its_classes(
    examples, folders, tmp_path, monkeypatch
):
    """Those of a folder are sorted by class."""
    root = tiny_files.image_folder(tmp_path, train=40, classes=("a", "b", "c"))
    fields = dict(source=f"folder:{root}", subset=ConfigDict(defaults.ALL))
    section = draws.change_fields(examples.config, **fields)
    by_class = data.open_examples(section, "")
    read = []
    batches = data.eval_batches

    def spy(examples, size, *share_and_rows):
        read.extend(examples.labels[share_and_rows[-1]].tolist())
        return batches(examples, size, *share_and_rows)

    monkeypatch.setattr(data, "eval_batches", spy)
    monkeypatch.setattr(masked, "MOST", 24)
    masked.measure(CONFIG, Model("x", folders["mae"], {}), by_class, 16, None)
    assert len(read) == 24
    assert {*read} == {0, 1, 2}


def test_what_is_kept_is_of_the_way_that_examples_are_read(examples, folders, tmp_path):
    section = draws.change_fields(examples.config, mean=(0.1,), num_threads=1)
    others = data.open_examples(section, "")
    one = Model("x", folders["mae"], {})
    first = masked.measure(CONFIG, one, examples, 16, tmp_path)
    second = masked.measure(CONFIG, one, others, 16, tmp_path)
    assert second == masked.measure(CONFIG, one, others, 16, None)
    assert second != first
