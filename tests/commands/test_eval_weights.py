"""`eval --init`: any weights are measured on a data set, without a config."""

import json
import shutil

import numpy as np
import pytest
from support import format_files, tiny, tiny_files

from flax_adapt import data, weights
from flax_adapt.evals import drift, embed, few_shot, knn
from flax_adapt.train import sharding

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of two splits, a MAE, and another one with the same inputs."""
    root = tmp_path_factory.mktemp("files")
    tiny_files.image_folder(root / "images", train=12, test=6)
    tiny_files.mae_folder(root / "mae")
    other = tiny.build("mae", tiny_files.MODEL)
    extras = tiny_files.PIXELS
    weights.save_pretrained(root / "other", other, tiny.params_of(other, 1), **extras)
    for number in range(4):
        path = root / "plain/train"
        path.mkdir(parents=True, exist_ok=True)
        first = next((root / "images/train").rglob(f"{number}.png"))
        (path / f"{number}.png").write_bytes(first.read_bytes())
    tiny_files.image_folder(root / "single", train=2, test=1)
    shutil.rmtree(root / "single/test/bee")
    return root


def features_of(files, split):
    section = embed.image_section(
        files / "mae", f"folder:{files}/images", split, init_options=HOW, pixels=None
    )
    embedder = embed.Embedder(
        files / "mae",
        fit={},
        pooling="cls",
        batch_size=16,
        precision="float32",
        mesh=sharding.all_devices(),
    )
    return embedder.features(data.open_examples(section, ""))


HOW = dict(format=None, known={})


def test_a_checkpoint_is_measured_by_knn_probe_few_shots_and_rankme(
    main, files, tmp_path
):
    line = f"eval --init={files}/mae --data=folder:{files}/images --pooling=cls"
    code, out, error = main(*line.split(), f"--out={tmp_path}/x.json")
    assert code == 0, error
    stored = json.loads((tmp_path / "x.json").read_text())
    (row,) = stored["rows"]
    assert stored["verdicts"] == []
    assert {"knn", "probe", "shot_1", "shot_5", "shot_10", "rankme"} <= {*row}
    train, test = (features_of(files, split) for split in ("train", "test"))
    sets = (train.embeddings, train.labels, test.embeddings)
    guesses = knn.predict(*sets, k=20, temperature=0.07)
    assert row["knn"] == pytest.approx(np.mean(guesses == test.labels))
    assert row["rankme"] == pytest.approx(drift.rankme(test.embeddings), rel=1e-4)
    shots = []
    for draw in range(5):
        rows = few_shot.draw(train.labels, 10, draw)
        some = (train.embeddings[rows], train.labels[rows])
        found = few_shot.predict(*some, test.embeddings)
        shots.append(np.mean(found == test.labels))
    assert row["shot_10"] == pytest.approx(np.mean(shots))
    assert out.splitlines()[-1] == f"results: {tmp_path}/x.json"


def test_two_checkpoints_are_compared_by_labels_that_are_drawn(main, files):
    line = f"eval --init={files}/other --against={files}/mae --per_class=5"
    line += f" --data=folder:{files}/images --test_split=rest"
    code, out, error = main(*line.split())
    assert code == 0, error
    table, verdict = out.splitlines()[:-1], out.splitlines()[-1]
    assert [row.split()[0] for row in table[-2:]] == [f"{files}/mae", f"{files}/other"]
    assert verdict.startswith(f"{files}/other against {files}/mae on folder:")
    assert "covers test examples and draws of labels" in verdict


def test_a_test_set_that_the_probes_were_fitted_to_is_said(main, files, tmp_path):
    line = f"eval --init={files}/mae --data=folder:{files}/images --test_split=train"
    code, out, error = main(*line.split(), f"--out={tmp_path}/x.json")
    assert code == 0, error
    (said,) = (text for text in out.splitlines() if "of kNN and probes" in text)
    count, *_ = said.split()
    assert said.startswith(f"{count} of the {count} test examples are training")
    assert json.loads((tmp_path / "x.json").read_text())["notes"] == [said]


def test_each_of_two_checkpoints_is_measured_as_it_is_alone(main, files, tmp_path):
    """They differ in image size, pixel statistics, and the pooling of their libraries."""
    large = tiny.build("encoder", {**tiny_files.MODEL, "image_size": 12})
    extras = dict(mean=(0.1,) * 3, std=(0.1,) * 3)
    weights.save_pretrained(tmp_path / "large", large, tiny.params_of(large), **extras)
    shutil.copytree(format_files.GOLDENS / "timm_avg", tmp_path / "timm")
    line = f"eval --data=folder:{files}/images --per_class=5 --test_split=rest"

    def rows_of(*flags):
        code, _, error = main(*line.split(), *flags, f"--out={tmp_path}/x.json")
        assert code == 0, error
        return json.loads((tmp_path / "x.json").read_text())["rows"]

    alone = [rows_of(f"--init={tmp_path}/{name}")[0] for name in ("large", "timm")]
    both = rows_of(f"--init={tmp_path}/timm", f"--against={tmp_path}/large")
    assert both == alone
    assert alone[0]["rankme"] != alone[1]["rankme"]


def test_without_labels_there_is_rankme_alone(main, files):
    line = f"eval --init={files}/mae --data=folder:{files}/plain --test_split=train"
    code, out, error = main(*line.split())
    assert code == 0, error
    assert "rankme" in out
    assert "knn" not in out


MISTAKES = {
    "eval --init={f}/mae": "eval --init needs --data=...",
    "eval --init={f}/no --data={i}": "{f}/no",
    "eval --init={f}/mae --data={i} --test_split=val": "it has ['test', 'train']",
    "eval --init={f}/mae --data={i} --test_split=rest": "--per_class=0 do not fit",
    "eval --init={f}/mae --data={i} --out={f}/x.csv": "must be a new .json file",
    "eval --init={f}/mae --data={i} --workdir=w": "nknown command line flag 'workdir'",
    "eval --init={f}/mae --data={i} --against={f}/bert": "bert reads texts and {f}/mae reads",
    "eval --init={f}/mae --data=folder:{f}/single": "eval needs two test examples",
    "eval": "eval needs one --config=FILE or --config=NAME",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line(main, files, line):
    if "bert" in line and not (files / "bert").exists():
        tiny_files.bert_folder(files / "bert")
    names = dict(f=files, i=f"folder:{files}/images")
    code, out, error = main(*line.format(**names).split())
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert MISTAKES[line].format(**names) in error
