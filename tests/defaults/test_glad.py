"""glad_finetune: GLAD, what follows from its backbone, and what cannot be."""

import jax
import numpy as np
import pytest
from support import tiny_files

from flax_adapt import weights
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe
from flax_adapt.stage import check

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(config, **arguments):
    text = ",".join(f"{name}={value}" for name, value in arguments.items())
    return configs.load(f"{config}:{text}")


def starts(config):
    return {stage.name: stage.init_from for stage in config.stages}


def glad(files, **arguments):
    return load(
        "glad_finetune",
        **dict(dataset=files["images"], init=files["init"], seeds=1) | arguments,
    )


def encoder(workdir, stage):
    export = workdir / "stages" / stage / "export"
    return weights.load(export, "encoder", pooling=None)[1]["encoder"]


def test_glad_goes_on_to_the_next_task_with_its_backbone(files, tmp_path):
    """GLAD, then masked pre-training of what it left, as the released model's would."""
    both = dict(regularizer="masked+preserve", then_by="mae")
    config = glad(files, then=files["others"], **both)
    assert starts(config) == {
        "glad_masked": "pretrained",
        "glad_masked_then_1": "stage:glad_masked",
        "glad_preserve": "pretrained",
        "glad_preserve_then_1_warmup": "stage:glad_preserve",
        "glad_preserve_then_1": "stage:glad_preserve_then_1_warmup",
    }
    tiny_files.shrink(config)
    recipe.run(config, tmp_path, force=False)
    for name in ("glad_masked_then_1", "glad_preserve_then_1"):
        export = tmp_path / "stages" / name / "export"
        assert weights.parts(export, "mae") == {"encoder", "decoder"}
    solved, warm, after = (
        encoder(tmp_path, f"glad_preserve{more}")
        for more in ("", "_then_1_warmup", "_then_1")
    )
    jax.tree.map(np.testing.assert_array_equal, solved, warm)
    moved = [tree["block_00"]["mlp"]["up"]["kernel"] for tree in (warm, after)]
    assert np.any(moved[0] != moved[1])
    again = glad(files, then=files["others"], then_by="glad")
    check.experiment(again)
    assert [stage.objective.name for stage in again.stages] == ["glad", "glad"]


@pytest.mark.parametrize("regularizer", ["preserve", "none"])
@pytest.mark.parametrize(
    ("dataset", "init", "then_by", "part"),
    [("images", "vit", "mae", "decoder"), ("texts", "encoder", "mlm", "mlm")],
)
def test_without_masked_modelling_beside_its_head_is_new(
    files, dataset, init, then_by, part, regularizer
):
    """Also from weights that have none; only there is the encoder frozen."""
    given = dict(dataset=files[dataset], init=files[init], regularizer=regularizer)
    then = dict(then=files[dataset], then_by=then_by, then_warmup=7)
    config = glad(files, **given, **then)
    check.experiment(config)
    _, warmup, after = config.stages
    assert (warmup.model.fresh, warmup.num_steps) == ((part,), 7)
    assert (after.model.fresh, after.num_steps) == ((), 500)
    assert [s.optim.freeze[-1:] == ("encoder/.*",) for s in (warmup, after)] == [
        True,
        False,
    ]
    assert bool(config.model.get("decoder")) == (dataset == "images")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(regularizer="ewc"), "regularizer='ewc' is unknown"),
        (dict(preserve="logits"), "preserve='logits' is unknown"),
        (dict(then_by="lora"), "then_by='lora' is unknown"),
        (dict(then_warmup=0), "then_warmup=0 must be at least 1"),
        (dict(adaptor="lora"), "adaptor='lora' is unknown.*'vector'"),
    ],
)
def test_a_wrong_argument_of_glad_is_named(files, arguments, text):
    with pytest.raises(UserError, match=text) as error:
        glad(files, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("glad_finetune", "dataset={images}"),
        ("continual_pretrain", "domains={images}+{others},objective=glad"),
    ],
)
def test_masked_modelling_beside_needs_a_decoder_at_once(files, config, arguments):
    text = "vit has no decoder, which regularizer=masked goes on with; first train one"
    with pytest.raises(UserError, match=text):
        configs.load(
            f"{config}:{arguments},init={{vit}},regularizer=masked".format(**files)
        )


def test_glad_of_texts_is_a_config_too(files):
    config = load(
        "glad_finetune",
        dataset=files["texts"],
        init=files["bert"],
        regularizer="masked+preserve+none",
        adaptor="bottleneck",
        bottleneck=4,
    )
    check.experiment(config)
    masked = config.stages[0].objective.masked
    assert masked.name == "mlm"
    assert np.all([stage.model.adaptor.hidden == 4 for stage in config.stages])
