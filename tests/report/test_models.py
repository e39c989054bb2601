"""The sections that run models: laws of what they draw, without any trained weights."""

import dataclasses

import jax
import numpy as np
import pytest
from support import html_page, tiny, tiny_report

from flax_adapt import models, weights
from flax_adapt.base import config as configs
from flax_adapt.base import logs
from flax_adapt.experiment import interpolate
from flax_adapt.objectives import reconstruct
from flax_adapt.report import (
    arms,
    attentions,
    backbones,
    encoders,
    examples,
    facts,
    maps,
    outcomes,
    page,
    pictures,
    reconstructions,
    stages,
    texts,
    transfers,
    workdir,
)

PIXELS = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A made-up run whose stages have exports with random numbers."""
    folder = tmp_path_factory.mktemp("models")
    tiny_report.write(folder)
    found = workdir.read(folder)
    model = tiny.build("mae")
    for seed, name in enumerate(("pretrain", "further")):
        weights.save_pretrained(found.export(name), model, tiny.params_of(model, seed))
    return found


@pytest.mark.parametrize("normalize", [False, True])
def test_restored_targets_are_the_pixels(normalize):
    target = reconstruct.patch_targets(PIXELS, 4, normalize)
    found = reconstruct.restore_pixels(target, PIXELS, 4, normalize)
    np.testing.assert_allclose(found, models.patchify(PIXELS, 4), atol=1e-5)


def test_attention_is_that_of_the_last_block_by_hand():
    model = tiny.build("encoder")
    params = tiny.params_of(model)
    _, found = encoders.encode_batch(model, params, PIXELS, "cls", "", True)
    block = jax.tree.map(np.asarray, params["encoder"]["block_01"])
    states = np.asarray(
        model.apply({"params": params}, PIXELS, None, method="encode")[0]
    )
    norm = block["norm1"]
    centred = states - states.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-12)
    x_BLD = centred / spread * norm["scale"] + norm["bias"]
    q, k = (
        np.asarray(x_BLD @ part["kernel"] + part["bias"]).reshape(2, 5, 2, 8)
        for part in (block["attention"]["query"], block["attention"]["key"])
    )
    logits = np.einsum("bhk,blhk->bhl", q[:, 0], k) / 8**0.5
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, shares.mean(axis=1)[:, 1:], rtol=1e-4)


def test_visible_patches_of_a_reconstruction_are_those_of_the_image(run):
    found = reconstructions.reconstructions(run)
    assert found["columns"] == ["original", "masked", "pretrain", "further"]
    assert len(found["rows"]) == reconstructions.IMAGES
    config = page.workdir.read(run.folder).config
    assert config["stages"][0]["objective"]["hidden_ratio"] == 0.75
    section = tiny.experiment(tiny.pretrain()).stages[0].data
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    one = reconstructions.Backbone("pretrain", run.export("pretrain"), {}, "pretrain")
    filled, masked = reconstructions.predict(one, pixels, section, 0.75, True)
    hidden = (masked == 128).all(axis=-1)
    np.testing.assert_array_equal(filled[~hidden], pixels[~hidden])
    assert hidden.reshape(2, 2, 4, 2, 4).all(axis=(2, 4)).sum(axis=(1, 2)).tolist() == [
        3,
        3,
    ]


def test_attention_and_features_have_a_column_for_each_backbone(run):
    assert attentions.attentions(run)["columns"] == ["image", "pretrain", "further"]
    charts = maps.feature_maps(run)["charts"]
    assert [chart["title"] for chart in charts] == ["pretrain", "further"]


def test_one_example_is_no_map(run, monkeypatch):
    points = encoders.encode_points(run)
    one = points.target._replace(names=points.target.names[:1])
    alone = points._replace(target=one)
    monkeypatch.setattr(encoders, "encode_points", lambda _: alone)
    assert maps.feature_maps(run) is None


def test_two_components_are_found_again():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * [3.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    points, share = maps.project(plane @ axes.T + 5.0)
    assert share == pytest.approx(1.0)
    distances = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (plane, points)]
    np.testing.assert_allclose(*distances, atol=1e-9)


def test_confusions_are_counted_over_seeds(run):
    pair = arms.choose_pair(run)
    assert (pair.before, pair.after) == ("base", "arm")
    counts = arms.count_confusions(pair.second, 3)
    assert counts.sum() == tiny_report.EXAMPLES * len(tiny_report.SEEDS)
    rights = [(one.labels == one.guesses).sum() for one in pair.second.values()]
    assert np.trace(counts) == sum(rights)


def test_examples_are_in_one_group_and_sorted_by_their_change(run):
    pair = arms.choose_pair(run)
    groups = examples.group_names(pair)
    names = [name for found in groups.values() for name in found]
    assert len(names) == len({*names})
    before, after = (examples.mean_losses(arm) for arm in (pair.first, pair.second))
    best = min(after, key=lambda name: after[name] - before[name])
    assert groups["Most improved"][0] == best
    assert all(after[name] > before[name] for name in groups["Most hurt"])


def test_pictures_of_examples_that_are_gone_are_left_out(run):
    names = ["image_000.png"]
    assert pictures.show_examples(run, "arm", names) == {}
    stages = [dict(stage, eval=None) for stage in run.config["stages"]]
    moved = logs.plain(run.config)
    moved["stages"][-1]["eval"]["data"]["source"] = "folder:nowhere"
    assert stages
    assert (
        pictures.show_examples(dataclasses.replace(run, config=moved), "arm", names)
        == {}
    )


def test_data_of_a_run_of_an_earlier_version_is_opened(run):
    """Its sections lack the fields that were added since."""
    old = logs.plain(run.config)
    section = old["stages"][0]["data"]
    for name in ("cache_bytes", "jpeg_draft", "fit", "bits", "window"):
        del section[name]
    assert len(backbones.open_section(run, configs.build(section))) > 0


def test_an_image_in_the_page_has_its_pixels():
    import base64
    import io

    from PIL import Image

    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    head, _, text = pictures.to_data_uri(pixels).partition(",")
    assert head == "data:image/png;base64"
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    np.testing.assert_array_equal(found, pixels[..., 0])


def test_rows_are_spread_from_the_first_to_the_last():
    assert pictures.spread_rows(100, 4) == [0, 33, 66, 99]
    assert pictures.spread_rows(3, 8) == [0, 1, 2]


def test_a_mask_takes_the_place_of_the_middle_word():
    text = tiny.text_of((6, 4), (8,), length=12)
    places = texts.choose_places(text.words_BL)
    assert (text.words_BL[[0, 1], places] >= 0).all()
    hidden = texts.hide(text, places, tiny.MASK)
    assert (hidden.tokens_BL[[0, 1], places] == tiny.MASK).all()
    assert (hidden.tokens_BL != text.tokens_BL).sum() == 2


def test_moves_are_shares_of_the_first_length():
    first = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    last = np.array([[3.0, 5.0], [1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(texts.measure_moves(first, last), [0.2, 0.0, 0.0])


def test_a_transfer_matrix_is_shown_as_differences_with_intervals(run, tmp_path):
    stored = {
        "finetune": dict(rows=["pretrained", "task"], columns=["digits"], matrix=[[0.6], [0.95]]),
        "knn": dict(rows=["pretrained", "task"], columns=["digits"], matrix=[[0.5], [0.4]]),
    }  # fmt: skip
    logs.write_json(tmp_path / "transfer.json", stored)
    section = dict(finetuned=[["base"], ["arm"]], sources=["builtin:digits"])
    config = {**run.config, "transfer": section}
    predictions = {name: run.predictions(name) for name in ("base", "arm")}

    class Here(workdir.Run):
        def predictions(self, name):
            return predictions[name]

    here = Here(tmp_path, config, run.rows, [], [])
    tuned, knn = transfers.matrices(here)["matrices"]
    (cell,) = tuned["rows"][0]["cells"]
    row = next(row for row in run.rows if row["stage"] == "arm")
    low = row["verdict"]["low"]
    assert (cell["text"], cell["tone"]) == ("+0.3500", "good")
    assert cell["interval"].startswith(f"{low:+.4f} to ")
    (cell,) = knn["rows"][0]["cells"]
    assert (cell["text"], cell["tone"], cell["interval"]) == ("-0.1000", "bad", "")
    # `eval` has verdicts on frozen features: of the same stage, data, domain and metric.
    known = dict(difference=-0.1, low=-0.2, high=-0.05, word="hurt")
    right = dict(
        stage="task", against="pretrained", domain="target", data="builtin:digits"
    )
    right["metrics"] = {"knn": known}
    others = (dict(stage="x"), dict(against="x"), dict(domain="source"), dict(data="x"))
    wrong = [{**right, **one} for one in (*others, dict(metrics={"probe": known}))]
    for entries, expected in (
        ([*wrong, right], "-0.2000 to -0.0500"),
        (wrong, ""),
        ([dict(right, stage="task/seed_0"), dict(right, stage="task/seed_1")], ""),
    ):
        logs.write_json(tmp_path / "eval_verdicts.json", entries)
        tuned, knn = transfers.matrices(here)["matrices"]
        (cell,) = knn["rows"][0]["cells"]
        assert (cell["text"], cell["interval"]) == ("-0.1000", expected)
        assert tuned["rows"][0]["cells"][0]["interval"].startswith(f"{low:+.4f} to ")


def test_verdicts_on_frozen_features_are_cells_with_intervals(run):
    found = dict(difference=-0.1, low=-0.2, high=-0.05, word="hurt")
    entry = dict(stage="further", against="pretrained", domain="source", data="x:y")
    row = {**run.rows[0], "features": [{**entry, "metrics": {"knn": found}}]}
    shown = transfers.features(dataclasses.replace(run, rows=[row]))
    assert shown["columns"] == ["knn"]
    (one,) = shown["rows"]
    assert one["name"] == "further on source x:y"
    assert one["cells"][0] == dict(
        **dict(tone="bad", strength=0.6, text="-0.1000", word="hurt"),
        interval="-0.2000 to -0.0500",
    )
    assert transfers.features(run) is None
    source = {**entry, "data": "x:y", "metrics": {"knn": found}}
    target = {
        **source,
        "domain": "target",
        "metrics": {"knn": {**found, "difference": 0.2}},
    }
    both = dataclasses.replace(run, rows=[{**row, "features": [source, target]}])
    drawn = stages.over_stages(both)
    assert drawn["text"].endswith("differences to pretrained.")
    (chart,) = drawn["charts"]
    assert (chart["title"], "target: x:y" in chart["svg"]) == ("kNN", True)
    assert html_page.Page(page.render("x", {"stages": drawn})).problems == []
    assert stages.over_stages(run) is None
    text = page.render("x", {"features": shown})
    assert html_page.Page(text).problems == []
    assert "-0.2000 to -0.0500" in text


def test_weights_between_start_and_adapted_are_a_table(run, tmp_path):
    values = dict(knn=0.5, probe=0.7)
    half = dict.fromkeys(("start", "best", "adapted"), values)
    best = dict(a=0.5, rule="the highest", on_the_other_half=half)
    rows = [dict(a=a, knn=0.5 + a / 10, probe=0.8) for a in (0.0, 0.5, 1.0)]
    record = dict(stage="further", rows=rows, best=best)
    path = interpolate.record_of(tmp_path, "further")
    path.parent.mkdir()
    logs.write_json(path, record)
    every = stages.interpolated(dataclasses.replace(run, folder=tmp_path))
    (shown,) = every["tables"]
    assert shown["columns"] == ["knn", "probe"]
    shades = [[cell["strength"] > 0 for cell in row["cells"]] for row in shown["rows"]]
    assert shades == [[False] * 2, [True] * 2, [False] * 2]
    found = html_page.Page(page.render("x", {"interpolated": every}))
    assert found.problems == []
    assert "a = 0.5 0.5500 0.8000" in found.words
    assert stages.interpolated(run) is None


def test_folders_whose_files_have_other_sizes_look_different(run, tmp_path):
    section = run.config["stages"][0]["data"]
    for sizes in ("cd", "ef"):
        found = facts.describe_data({"names": "ab", "sizes": sizes}, section)
        assert found["digests"] == ["names ab", f"sizes {sizes}"]


def test_a_pool_with_test_examples_is_said_beside_the_verdict(run):
    shared = dict(pools=["further"], examples=5, of=60)
    rows = [{**row, "transductive": shared} for row in run.rows]
    assert outcomes.notes(run, "arm") == []
    (note,) = outcomes.notes(dataclasses.replace(run, rows=rows), "arm")
    assert note.startswith("transductive: the pool of further holds 5 of the 60")
