"""`new_tokens`: words of a domain get embeddings that are trained alone first."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import tiny_files, tiny_text

from flax_adapt import data
from flax_adapt.base import config as configs
from flax_adapt.base.errors import UserError
from flax_adapt.experiment import recipe

pytestmark = pytest.mark.usefixtures("compile_fast")
TOKEN = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    (root / "words.txt").write_text("unseen\nrainwind\n")
    return dict(
        root=root,
        texts=f"jsonl:{tiny_text.corpus_folder(root / 'texts')}",
        bert=tiny_files.bert_folder(root / "bert"),
        words=root / "words.txt",
    )


def load(files, more="new_tokens_warmup=2"):
    return configs.load(
        "bert_further_pretrain:dataset={texts},init={bert},new_tokens={words},".format(
            **files
        )
        + more
    )


def test_new_embeddings_are_means_and_the_table_alone_is_warmed_up(files, tmp_path):
    config = load(files)
    assert config.init == load(files).init  # written once
    warmup, further = config.stages
    assert (warmup.name, further.init_from) == (
        "new_tokens_warmup",
        "stage:new_tokens_warmup",
    )
    assert warmup.num_steps == 2
    used, grown = (data.open_tokenizer(at) for at in (files["bert"], config.init))
    assert config.model.vocab_size >= grown.vocab_size == used.vocab_size + 2
    before = load_file(f"{config.init}/model.safetensors")
    pieces = used.encode([("unseen",)])[0].tokens[1:-1]
    np.testing.assert_allclose(
        before[TOKEN][used.vocab_size], before[TOKEN][pieces].mean(axis=0), rtol=1e-6
    )
    alone = ConfigDict({**tiny_files.shrink(config), "stages": (warmup,)})
    recipe.run(alone, tmp_path, force=False)
    export = tmp_path / "stages/new_tokens_warmup/export"
    after = load_file(export / "model.safetensors")
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert moved == {TOKEN}
    tokens = data.open_tokenizer(export).encode([("unseen",)])[0].tokens
    assert tokens[1:-1].tolist() == [used.vocab_size]


def test_wrong_new_tokens_are_one_line_and_leave_nothing_behind(files):
    there = set(files["root"].iterdir())
    with pytest.raises(UserError, match="new_tokens_warmup=0 must be at least 1"):
        load(files, "new_tokens_warmup=0")
    known = files["root"] / "known.txt"
    known.write_text("cat\n")
    with pytest.raises(UserError, match="all of its words are tokens already"):
        load({**files, "words": known})
    assert set(files["root"].iterdir()) <= {*there, known}
