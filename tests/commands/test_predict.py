"""`predict`: the classifier's own probabilities, in every kind of file, on all devices."""

import csv
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from pyarrow import parquet
from support import tiny, tiny_files, tiny_runs, tiny_text

from flax_adapt import data, defaults, weights
from flax_adapt.base import errors
from flax_adapt.base.errors import UserError
from flax_adapt.commands import features
from flax_adapt.data.images import image
from flax_adapt.evals import outputs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A classifier of images with names of classes, a regression of texts, and their data."""
    root = tmp_path_factory.mktemp("predict")
    tiny_files.image_folder(root / "images", train=5, test=0)
    classifier = tiny.build(
        "classify", {**tiny_files.MODEL, "decoder": None}, num_classes=2
    )
    weights.save_pretrained(
        root / "vit",
        classifier,
        tiny.params_of(classifier),
        class_names=tiny_files.CLASSES,
        **tiny_files.PIXELS,
    )
    tokenizer = tiny_text.bert_folder(root / "tokenizer")
    regression = tiny.build(
        "classify", {**tiny_runs.TEXT_MODEL, "depth": 1}, num_classes=1
    )
    params = tiny.params_of(regression)
    weights.save_pretrained(root / "bert", regression, params, tokenizer=tokenizer)
    (root / "texts.jsonl").write_text(
        "".join(f'{{"text": "the cat {i}"}}\n' for i in range(3))
    )
    tiny_files.mae_folder(root / "mae")
    return root


def read(path):
    """The rows of a file as dicts, numbers as numbers."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("probability", "value", "labels", "embeddings")
    return [
        {k: float(v) if k.startswith(numbers) else v for k, v in row.items()}
        for row in rows
    ]


def logits_of(files):
    """By the library alone, one batch on one device."""
    model, params, _ = weights.from_pretrained(files / "vit", "classify")
    size = dict(image_size=model.config.image_size, channels=3, **tiny_files.PIXELS)
    section = ConfigDict(
        defaults.image_data(f"folder:{files / 'images'}", "train", **size)
    )
    examples = data.open_examples(section, "")
    (batch,) = data.eval_batches(examples, 10, 0, 1)
    pixels = image.preprocess(batch["image"], None, section, None)
    return examples, np.asarray(model.apply({"params": params}, pixels, None))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_file_has_names_classes_and_probabilities(main, files, tmp_path, ending):
    assert len(jax.devices()) == 8  # 10 examples in batches of 4 on all of them
    out = tmp_path / f"out.{ending}"
    source = f"--data=folder:{files / 'images'}"
    code, said, error = main(
        "predict", f"--init={files / 'vit'}", source, f"--out={out}", "--batch_size=4"
    )
    assert (code, "10 predictions" in said) == (0, True), error
    examples, logits = logits_of(files)
    expected = np.asarray(jax.nn.softmax(logits))
    rows = read(out)
    assert [row["name"] for row in rows] == list(examples.names)
    assert [row["predicted"] for row in rows] == [
        tiny_files.CLASSES[i] for i in logits.argmax(axis=-1)
    ]
    found = [
        [row[f"probability_{name}"] for name in tiny_files.CLASSES] for row in rows
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]  # nothing beside it


def test_a_regression_has_numbers(main, files, tmp_path):
    out = tmp_path / "out.csv"
    source = f"--data=jsonl:{files / 'texts.jsonl'}"
    flags = (f"--init={files / 'bert'}", source, f"--out={out}", "--seq_len=16")
    code, _, error = main("predict", *flags)
    assert code == 0, error
    rows = read(out)
    assert [row["name"] for row in rows] == [f"texts.jsonl:{i}" for i in (1, 2, 3)]
    assert {*rows[0]} == {"name", "value"}
    assert np.isfinite([row["value"] for row in rows]).all()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_features_are_the_same_in_every_file(main, files, tmp_path, ending):
    common = (f"--init={files / 'vit'}", f"--data=folder:{files / 'images'}")
    for name in ("out.npz", f"out.{ending}"):
        assert main("features", *common, f"--out={tmp_path / name}")[0] == 0
    whole, rows = np.load(tmp_path / "out.npz"), read(tmp_path / f"out.{ending}")
    assert [row["names"] for row in rows] == whole["names"].tolist()
    assert [int(row["labels"]) for row in rows] == whole["labels"].tolist()
    if ending == "csv":
        width = whole["embeddings"].shape[1]
        found = [[row[f"embeddings_{i}"] for i in range(width)] for row in rows]
    else:
        found = [row["embeddings"] for row in rows]
    np.testing.assert_allclose(found, whole["embeddings"], rtol=1e-6)


@pytest.mark.parametrize(
    ("init", "out", "told"),
    [
        ("mae", "x.csv", "has no classifier, so that it predicts nothing"),
        ("vit", "x.npz", "must be a new .csv or .jsonl or .parquet file"),
        ("vit", "no/x.csv", "in a folder that exists"),
        ("gone", "x.csv", "there is no such file"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    main, files, tmp_path, init, out, told
):
    source = f"--data=folder:{files / 'images'}"
    flags = (f"--init={files / init}", source, f"--out={tmp_path / out}")
    code, _, error = main("predict", *flags)
    assert code == 2
    assert told in error.splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_an_export_says_how_files_are_read_so_that_predict_need_not_be_told(
    files, main, tmp_path
):
    """12 bits of 16, padded: as the model was adapted, with the flags and without."""
    levels = np.random.default_rng(0).integers(0, 4096, (3, 8, 5), np.uint16)
    for number, pixels in enumerate(levels):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"new/{number}.png")
    model, params, _ = weights.from_pretrained(files / "vit", "classify")
    how = dict(fit="pad", bits=12)
    weights.save_pretrained(
        tmp_path / "export", model, params, reading=how, **tiny_files.PIXELS
    )
    found = []
    for init, more in (("export", ()), (files / "vit", ("--fit=pad", "--bits=12"))):
        out = tmp_path / f"{len(found)}.csv"
        code, _, error = main(
            *("predict", f"--init={tmp_path / init}", f"--out={out}"),
            *(f"--data=folder:{tmp_path / 'new'}", *more),
        )
        assert code == 0, error
        found.append([list(row.values())[2:] for row in read(out)])
    assert found[0] == found[1]
    assert weights.image_reading(tmp_path / "export") == how
    assert weights.image_reading(files / "vit") == {}


def test_a_window_that_is_given_comes_before_the_bits_of_an_export(tmp_path):
    weights_folder = tiny_files.vit_folder(tmp_path / "vit")
    file = weights_folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "flax_adapt_reading": {"bits": 12}}))
    given = dict(fit="", bits=0, window="0:9", image_field="", split_field="")
    found = features._read_as_init(weights_folder, given)
    assert found == {**given, "fit": "squash"}
    file.write_text(json.dumps({**content, "flax_adapt_reading": {"bits": "12"}}))
    with pytest.raises(UserError, match="must be an object of fit, bits and window"):
        weights.image_reading(weights_folder)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            "the devices",
        ),
        (MemoryError("Unable to allocate 9 GiB"), "this machine"),
    ],
)
def test_where_memory_is_too_small_one_line_names_the_batch(
    main, monkeypatch, files, tmp_path, error, where
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(outputs, "_share_apply", fail)
    source, out = f"--data=folder:{files / 'images'}", tmp_path / "out.csv"
    code, _, err = main("predict", f"--init={files / 'vit'}", source, f"--out={out}")
    assert code == 2
    line = err.strip().split("\n")[-1]
    assert f"the memory of {where} is too small ({error})" in line
    assert "`--batch_size`" in line
    assert not out.exists()


def test_a_quota_of_storage_is_no_lack_of_memory():
    assert (
        errors.no_memory(ValueError("RESOURCE_EXHAUSTED: HTTP 429 of gs://b/x")) == ""
    )
