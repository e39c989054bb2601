"""Every config that starts from weights draws its labels, and measures forgetting."""

import pytest
from support import tiny_files

from flax_adapt import defaults
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import measure, recipe
from flax_adapt.experiment.measuring import verdicts
from flax_adapt.stage import check

SHIPPED = configs.list_shipped()
ARGUMENTS = {name: configs.argument_defaults(name) for name in SHIPPED}
# The first data set of a config, where it is not `dataset`; method=naive replays nothing.
OWN = {
    "adapt": "unlabelled={images},method=self_distill",
    "continual_pretrain": "domains={images}+{others},finetune=False",
    "quickstart": "",
    "resize_last_block": "dataset={images},width=8",
    "unsup_finetune": "dataset={images},method=naive",
}
TEXTS = ("bert_further_pretrain", "bert_self_distill", "text_finetune")
MEASURES = [name for name in SHIPPED if "source" in ARGUMENTS[name]]
DRAWN = ("each_seed", "fixed")
DRAWS = [name for name in SHIPPED if "labels" in ARGUMENTS[name]]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return tiny_files.everything(tmp_path_factory.mktemp("files"))


def load(name, files, **more):
    """The config on tiny files, with three labels a class where it takes a number."""
    first = "dataset={texts},init={bert}" if name in TEXTS else "dataset={images}"
    known = OWN.get(name, first).format(**files)
    found = [known] if known else []
    if "init" in ARGUMENTS[name] and name not in TEXTS:
        found.append(f"init={files['init']}")
    if "per_class" in ARGUMENTS[name]:
        more = {"per_class": 3, **more}
    found += [f"{key}={value}" for key, value in more.items()]
    return configs.load(f"{name}:{','.join(found)}")


def test_all_but_training_from_scratch_can_measure_forgetting():
    assert {*SHIPPED} - {*MEASURES} == {"small_pretrain"}
    assert {*SHIPPED} - {*DRAWS} == {"small_pretrain", "adapt"}


@pytest.mark.parametrize("name", DRAWS)
def test_labels_of_frozen_features_are_drawn_as_the_argument_says(files, name):
    """kNN and probe have the draws of fine-tuning: by default and with labels=fixed."""
    usual = ARGUMENTS[name]["labels"]
    assert (usual == "fixed") == (name == "quickstart")
    for more, draw in (({}, usual), *((dict(labels=d), d) for d in DRAWN)):
        config = load(name, files, **more)
        for section in (config.evaluate, *config.more_evaluations):
            assert section.train.subset.draw == draw


@pytest.mark.parametrize("name", MEASURES)
def test_a_source_is_measured_and_watched_and_replayed_by_methods_of_replay(
    files, name
):
    source = files["texts"] if name in TEXTS else files["others"]
    assert load(name, files).evaluate.source is None
    config = load(name, files, source=source, watch="source/knn")
    section = config.evaluate.source
    assert (section.source, section.split, section.label_field) == (
        source,
        "train",
        "label",
    )
    assert [one.source for one in config.more_evaluations if one.source] == []
    assert any(stage.watch is not None for stage in config.stages)
    replaying = [one.name for one in config.stages if one.replay is not None]
    own = {"chain": ["unsupervised"], "continual_pretrain": ["joint"]}
    assert replaying == own.get(name, [])
    check.experiment(config)


@pytest.mark.usefixtures("compile_fast")
def test_forgetting_has_a_verdict_after_further_pretraining(files, tmp_path):
    more = dict(source=files["others"], watch="target/knn+source/knn")
    config = tiny_files.shrink(load("vit_further_pretrain", files, **more))
    config.evaluate.update(knn_k=2, batch_size=8, shots=(), draws=2)
    (row,) = recipe.run(config, tmp_path, force=False)
    assert "source/knn" in row["watch"][0]["others"]
    rows = measure.evaluate(config, tmp_path)
    assert rows[0]["cka_source"] == pytest.approx(1, abs=1e-6)
    found = verdicts.read(tmp_path)
    assert [one["domain"] for one in found] == [verdicts.TARGET, verdicts.SOURCE]
    said = (
        f"further against pretrained on the source {files['others']} (forgetting): kNN"
    )
    assert verdicts.describe(found[1]).startswith(said)
    # Two draws of the labels, and one half of the source, which has no draws.
    assert found[0]["metrics"]["knn"]["seeds"] == [0, 1]
    assert found[1]["metrics"]["knn"]["seeds"] == [0]


@pytest.mark.usefixtures("compile_fast")
def test_without_initial_weights_drift_is_from_the_first_stage(files, tmp_path):
    config = load("quickstart", files, source="builtin:digits", seeds=1)
    config = tiny_files.shrink(config)
    with config.unlocked():
        pretrain, _, further, *_ = config.stages
        config.stages = (pretrain, further)
        for section in tiny_files.data_sections(config):
            section.subset = defaults.few(4, "fixed")
        config.evaluate.test.subset.seed = 1
    config.evaluate.update(knn_k=2, batch_size=8, shots=())
    recipe.run(config, tmp_path, force=False)
    first, second = measure.evaluate(config, tmp_path)
    assert first["cka_source"] == pytest.approx(1, abs=1e-6)
    assert second["cka_source"] < 1 - 1e-6
    assert verdicts.read(tmp_path)[1]["against"] == "pretrain"


def test_a_source_without_labels_is_measured_by_drift_alone(files, tmp_path):
    (tmp_path / "wiki.txt").write_text("a line\nanother line\n")
    source = f"text:{tmp_path}/wiki.txt"
    config = load("bert_further_pretrain", files, source=source)
    assert config.evaluate.source.label_field == ""
    assert config.evaluate.train.label_field == "label"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(source="folder:/nowhere"), "^source='folder:/nowhere': there is no such"),
        (dict(source="mnist"), "^source='mnist' is unknown"),
        (dict(source="builtin:digits", source_split="new"), "^source_split='new'"),
        (dict(watch="source/knn"), "there are none: give source=SOURCE"),
    ],
)
def test_a_wrong_source_is_told_in_the_words_of_the_argument(files, more, said):
    with pytest.raises(UserError, match=said):
        load("vit_further_pretrain", files, **more)


def test_a_source_needs_weights_that_could_forget_it():
    with pytest.raises(UserError, match="give init=PATH, or leave source out"):
        configs.load(
            "vit_further_pretrain:dataset=builtin:digits,source=builtin:mnist5k"
        )
