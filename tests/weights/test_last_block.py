"""Another last block in folders: kept by ours, refused by others, checked when read."""

import json

import jax
import numpy as np
import pytest
from support import tiny
from support.tiny_resized import MODELS, WIDTH, resized

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.mark.parametrize("kind", ["resized", "linear", "extra"])
@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_a_folder_keeps_the_last_block(tmp_path, name, kind, format):
    changes = dict(extra=dict(width=WIDTH, mlp_dim=8)).get(kind, dict(width=24))
    _, _, new, made, _ = resized(name, kind=kind, init="random", **changes)
    made = tiny.params_of(new)
    weights.save_pretrained(tmp_path / "a", new, made, format=format)
    task = models.task_of(new)
    again, params, report = weights.from_pretrained(tmp_path / "a", task)
    assert again.config == new.config
    assert not report.fresh
    jax.tree.map(np.testing.assert_array_equal, params, made)


def test_the_folder_says_that_transformers_cannot_build_it(tmp_path):
    _, _, new, made, _ = resized("vit", width=WIDTH)
    weights.save_pretrained(tmp_path, new, made)
    theirs = json.loads((tmp_path / "config.json").read_text())
    assert theirs["model_type"] == "vit_resized"
    assert theirs["last_block"]["norm_width"] == WIDTH
    assert "transformers cannot build it" in theirs["flax_adapt_note"]


@pytest.mark.parametrize("format", ["timm", "big_vision", "facebook_mae"])
def test_other_formats_refuse_it(tmp_path, format):
    _, _, new, made, _ = resized("classify", width=24)
    ending = {"big_vision": ".npz", "facebook_mae": ".safetensors"}.get(format, "")
    with pytest.raises(UserError, match=r"cannot hold .*last_block=") as error:
        weights.save_pretrained(tmp_path / f"a{ending}", new, made, format=format)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(last_block=3), "last_block=3 must be an object"),
        (dict(last_block={"kind": "resized"}), "must be an object of kind, width"),
        (dict(width="24"), "last_block.width='24' must be a int"),
        (dict(width=1 << 40), r"last_block.width=\d+ must be a int in \[0, 131072\]"),
        (dict(kind="wide"), "last_block.kind='wide' is unknown"),
        (dict(norm_width=25), "norm_width=25 must lie in 0 to width=24"),
        (dict(mlp_dim=2), "mlp_dim=2 must be given for kind='extra', 0 for others"),
    ],
)
def test_a_last_block_that_cannot_be_built_is_named(tmp_path, change, text):
    _, _, new, made, _ = resized("vit", width=24)
    weights.save_pretrained(tmp_path, new, made)
    file = tmp_path / "config.json"
    theirs = json.loads(file.read_text())
    if "last_block" in change:
        theirs |= change
    else:
        theirs["last_block"] |= change
    file.write_text(json.dumps(theirs))
    with pytest.raises(UserError, match=text) as error:
        weights.from_pretrained(tmp_path, "encoder")
    assert "\n" not in str(error.value)
