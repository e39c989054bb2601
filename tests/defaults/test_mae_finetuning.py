"""The config mae_finetune: the numbers of MAE's recipe, from the size of data and model."""

import pytest
from support import tiny_files

from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.defaults.images import mae_finetuning


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(files, more=""):
    return configs.load(
        "mae_finetune:dataset={images},init={init}".format(**files) + more
    )


def test_steps_rate_and_warm_up_follow_from_epochs_and_batch(files):
    """16 images in batches of 4: 4 steps an epoch; 5e-4 of a batch of 256."""
    (stage,) = load(files, ",batch_size=4,epochs=10,warmup_epochs=2").stages
    assert (stage.num_steps, stage.batch_size) == (40, 4)
    assert stage.optim.warmup_steps == 8
    assert stage.optim.lr == pytest.approx(5e-4 * 4 / 256)


def test_a_batch_is_at_most_all_images_and_the_recipe_has_a_hundred_epochs(files):
    (stage,) = load(files).stages
    assert (stage.batch_size, stage.num_steps) == (16, 100)


def test_everything_of_the_recipe_is_on(files):
    (stage,) = load(files).stages
    objective, view = stage.objective, stage.data.augment
    assert (objective.label_smoothing, objective.mixup_alpha) == (0.1, 0.8)
    assert objective.cutmix_alpha == 1.0
    assert (view.randaugment_operations, view.randaugment_magnitude) == (2, 9.0)
    assert (view.erase_probability, view.min_crop_area, view.flip) == (0.25, 0.08, True)
    assert (stage.optim.layer_decay, stage.model.drop_path) == (0.65, 0.1)
    assert (stage.optim.weight_decay, stage.optim.b2) == (0.05, 0.999)
    assert (stage.model.pooling, stage.model.dropout) == ("mean_norm", 0.0)
    assert stage.eval.data.augment.randaugment_operations == 0


@pytest.mark.parametrize(
    ("width", "recipe"),
    [(768, (100, 0.65, 0.1)), (1024, (50, 0.75, 0.2)), (1280, (50, 0.75, 0.3))],
)
def test_large_models_have_a_recipe_of_their_own(width, recipe):
    found = mae_finetuning.RECIPES.get(width, mae_finetuning.BASE)
    assert found == recipe


@pytest.mark.parametrize("change", ["epochs=-1", "batch_size=0", "seeds=0"])
def test_impossible_numbers_are_refused(files, change):
    with pytest.raises(UserError, match=change):
        load(files, f",{change}")
