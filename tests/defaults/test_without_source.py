"""The config unsup_finetune without the data that the weights were pre-trained on."""

import pytest
from support import tiny_files

from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import measure, recipe


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(files, method):
    return configs.load(
        f"unsup_finetune:dataset={files['images']},init={files['init']},"
        f"method={method},objective=mae,operator=cutmix,per_class=3"
    )


@pytest.mark.usefixtures("compile_fast")
def test_what_replays_nothing_needs_no_source_and_has_no_drift(files, tmp_path):
    config = tiny_files.shrink(load(files, "naive+mixing+frozen"))
    assert [stage.replay for stage in config.stages] == [None] * 3
    config.evaluate.update(knn_k=2, batch_size=8)
    recipe.run(config, tmp_path, force=False)
    rows = measure.evaluate(config, tmp_path)
    assert len(rows) == 4
    for row in rows:
        assert {"knn", "probe"} < set(row)
        assert not [name for name in row if "source" in name or "cka" in name]


@pytest.mark.parametrize(
    ("method", "named"), [("naive+both", "both"), ("replay+both", r"replay\+both")]
)
def test_what_replays_needs_a_source_and_is_named(files, method, named):
    said = f"method={named} replays examples .* needs source=SOURCE; frozen, naive, mix"
    with pytest.raises(UserError, match=said):
        load(files, method)


def test_a_source_is_asked_for_where_it_is_needed_alone():
    for method, source in (("naive", ""), ("both", ", source=SOURCE .*")):
        said = f"^the config needs dataset=TARGET{source} and init=PATH"
        with pytest.raises(UserError, match=said):
            configs.load(f"unsup_finetune:method={method}")
