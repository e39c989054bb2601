"""`fill` and `features` on text: what they print and write; a mistake is one line."""

import shutil

import jax
import numpy as np
import pytest
import tokenizers
from support import tiny_files, tiny_text

from flax_adapt import data, weights
from flax_adapt.base.types import Text

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    tiny_files.bert_folder(root / "bert")
    tiny_files.mae_folder(root / "mae")
    tiny_text.corpus_folder(root / "texts")
    shutil.copytree(root / "bert", root / "added")
    tokenizer = tokenizers.Tokenizer.from_file(str(root / "added/tokenizer.json"))
    tokenizer.add_tokens(["zzz"])
    tokenizer.save(str(root / "added/tokenizer.json"))
    model, params, _ = weights.from_pretrained(root / "bert", "encoder")
    weights.save_pretrained(
        root / "encoder", model, params, tokenizer=root / "bert_tokenizer"
    )
    return root


def test_fill_prints_the_likeliest_tokens_of_every_mask(main, files):
    text = "the [MASK] sat on the [MASK]"
    code, out, _ = main("fill", f"--init={files}/bert", f"--text={text}", "--top=3")
    assert code == 0
    tables = out.split("mask ")[1:]
    assert [table[0] for table in tables] == ["1", "2"]
    model, params, _ = weights.from_pretrained(files / "bert", "mlm")
    tokenizer = data.open_tokenizer(files / "bert")
    ids = [[tiny_text.VOCABULARY.index(token) for token in
            ("[CLS]", *text.split(), "[SEP]")]]  # fmt: skip
    logits = logits_alone(model, params, np.array(ids, np.int32))
    for table, place in zip(tables, (2, 6), strict=True):
        probabilities = np.asarray(jax.nn.softmax(logits[0, place]))
        best = np.argsort(-probabilities)[:3]
        rows = [line.split() for line in table.splitlines()[3:6]]
        assert [row[0] for row in rows] == [tokenizer.token(int(i)) for i in best]
        printed = [float(row[1]) for row in rows]
        np.testing.assert_allclose(printed, probabilities[best], rtol=1e-3)


def logits_alone(model, params, ids):
    places = np.arange(ids.shape[1], dtype=np.int32)[None]
    text = Text(ids, ids * 0, ids * 0 + 1, places, places)
    return model.apply({"params": params}, text, places, None)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--init={f}/bert", "--text=the cat"], "holds no mask token; write [MASK]"),
        (
            ["--init={f}/bert", "--text=" + "[MASK] " * 40],
            "rows of 42 tokens (data.seq_len) are longer than the 16 positions",
        ),
        (["--init={f}/encoder", "--text=[MASK]"], "has no masked-language head"),
        (["--init={f}/added", "--text=zzz [MASK]"], "the tokenizer has 89 tokens but"),
        (["--init={f}/bert", "--text=[MASK]", "--top=0"], "--top=0 must lie in 1 to"),
        (["--init={f}/mae", "--text=[MASK]"], "{f}/mae has no masked-language head"),
        (["--init={f}/no", "--text=[MASK]"], "{f}/no"),
        (["--text=[MASK]"], "fill needs --init=..."),
    ],
)
def test_a_mistake_in_fill_is_one_line(main, files, flags, told):
    code, out, error = main("fill", *(flag.format(f=files) for flag in flags))
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    assert told.format(f=files) in error


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_of_texts_are_pooled_states_with_labels_and_names(
    main, files, tmp_path, pooling
):
    out = tmp_path / "features.npz"
    flags = [f"--init={files}/bert", f"--data=jsonl:{files}/texts", f"--out={out}"]
    code, printed, _ = main("features", *flags, f"--pooling={pooling}", "--seq_len=16")
    assert code == 0
    assert "5 embeddings of width 16" in printed
    with np.load(out) as stored:
        rows = dict(stored)
    assert list(rows["class_names"]) == ["animal", "weather"]
    assert rows["labels"].tolist() == [0, 0, 1, 1, 0]
    assert len(set(rows["names"])) == 5
    model, params, _ = weights.from_pretrained(files / "bert", "encoder")
    tokenizer = data.open_tokenizer(files / "bert")
    for row, (text, _) in zip(rows["embeddings"], tiny_text.CORPUS, strict=False):
        ids = tokenizer.encode([(text,)])[0].tokens[None, :]
        places = np.arange(ids.shape[1], dtype=np.int32)[None]
        alone = Text(ids, ids * 0, ids * 0 + 1, places, places)
        states = model.apply({"params": params}, alone, None, method="encode")[-1]
        expected = states[0, 0] if pooling == "cls" else states[0].mean(axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_features_of_a_tokenizer_that_is_not_the_models_are_refused(
    main, files, tmp_path
):
    flags = [f"--data=jsonl:{files}/texts", f"--out={tmp_path / 'x.npz'}"]
    code, _, error = main("features", f"--init={files}/added", *flags, "--seq_len=16")
    assert code == 2
    assert "the tokenizer has 89 tokens but the model 88" in error
    code, _, error = main("features", f"--init={files}/bert", *flags, "--seq_len=17")
    assert code == 2
    assert "rows of 17 tokens (--seq_len) are longer than the 16" in error


def test_numbers_as_labels_stay_numbers(main, files, tmp_path):
    rows = [dict(text="the cat", label=0.5), dict(text="a dog", label=-2.25)]
    source, out = tiny_text.jsonl(tmp_path / "train.jsonl", rows), tmp_path / "x.npz"
    flags = [f"--init={files}/bert", f"--data=jsonl:{source}", f"--out={out}"]
    assert main("features", *flags, "--label_kind=number", "--seq_len=16")[0] == 0
    with np.load(out) as stored:
        assert stored["labels"].tolist() == [0.5, -2.25]
