"""The pooling of features that comes with the weights."""

from types import SimpleNamespace

import pytest
from support import hf_folders, tiny
from support.format_files import GOLDENS

from flax_adapt import weights
from flax_adapt.experiment import measure

BACKBONES = GOLDENS.parent / "backbones"
OWN = {
    BACKBONES / "dinov2": "cls_mean",
    BACKBONES / "facebook_dinov2_registers.pth": "cls_mean",
    BACKBONES / "timm_dinov2": "cls",  # global_pool="token"
    GOLDENS / "deit.pth": "cls",
}


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_auto_is_the_pooling_of_the_library_and_a_name_stays(path):
    assert weights.resolve_pooling("auto", path) == OWN[path]
    assert weights.resolve_pooling("mean", path) == "mean"


def test_the_states_of_a_pooler_are_those_of_cls(tmp_path):
    hf_folders.save_text(tmp_path / "bert", "bert", "encoder")
    assert weights.resolve_pooling("auto", tmp_path / "bert") == "cls"


def test_eval_pools_all_models_as_the_first_one_s_library():
    first = measure.Model("pretrained", BACKBONES / "dinov2", dict(reshape=()))
    assert measure._pooling(SimpleNamespace(pooling="auto"), first) == "cls_mean"
    assert measure._pooling(SimpleNamespace(pooling="cls"), first) == "cls"


def test_a_new_config_pools_as_the_weights_do():
    assert tiny.experiment(tiny.pretrain()).evaluate.pooling == "auto"
