"""The page of a workdir of texts: real weights, tokenizer and data, and no training."""

import jax
import pytest
from support import html_page, tiny_bert, tiny_report, tiny_runs

from flax_adapt import models, weights
from flax_adapt.report import page, texts, workdir

OPTIONS = tiny_bert.OPTIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`pretrain` and `distill` as a run leaves them; the second has larger numbers."""
    root = tmp_path_factory.mktemp("texts")
    config = tiny_report.write(
        root, {"finetune": 0.6}, tiny_runs.texts(root / "files")
    )  # fmt: skip
    run = workdir.read(root)
    model = models.build(config.model.to_dict(), "mlm", **OPTIONS)
    params = tiny_bert.params_of(model)
    for name in ("pretrain", "distill"):
        weights.save_pretrained(run.export(name), model, params)
        params = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    return root


def test_the_page_of_texts_has_its_sections_and_none_of_images(folder, caplog):
    caplog.set_level("INFO", "flax_adapt")
    found = html_page.Page(page.write(folder).read_text("utf-8"))
    assert found.problems == []
    assert "is left out" not in caplog.text
    assert {"Curves", "Examples", "Filled masks", "Features", "Data"} < {
        *found.headings
    }
    assert "Tokens that moved most" in found.headings
    assert not {"Reconstructions", "Attention"} & {*found.headings}


def test_masks_are_filled_before_and_after_with_words_of_the_vocabulary(folder):
    shown = texts.filled_masks(workdir.read(folder))
    assert shown["columns"] == ["pretrain", "distill"]
    assert {row["truth"] for row in shown["rows"]} <= {*tiny_runs.VOCABULARY}
    for row in shown["rows"]:
        before, after = (
            [one["share"] for one in guess["tokens"]] for guess in row["guesses"]
        )
        assert before != after


def test_all_tokens_moved_by_half_of_their_length(folder):
    shown = texts.moved_tokens(workdir.read(folder))
    assert (shown["before"], shown["after"]) == ("pretrain", "distill")
    assert {one["moved"] for one in shown["tokens"]} == {"0.500"}
    assert {one["token"] for one in shown["tokens"]} <= {*tiny_runs.VOCABULARY}
