"""Strict loading, the same laws for every family of models."""

import jax
import ml_dtypes
import numpy as np
import pytest
from support.hf_folders import build, build_text, random_params, rewrite, tensors_of

from flax_adapt import weights
from flax_adapt.base.errors import UserError

# family -> (task, how to build it, where its first block starts in files).
FAMILIES = {
    "vit": ("mae", build, "vit.encoder.layer.0.attention.attention."),
    "bert": ("mlm", build_text, "bert.encoder.layer.0.attention.self."),
    "roberta": (
        "mlm",
        lambda task: build_text(task, kind="roberta"),
        "roberta.encoder.layer.0.attention.self.",
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def task(family):
    return family[0]


@pytest.fixture
def query(family):
    """The name of a tensor [8, 8]."""
    return f"{family[2]}query.weight"


@pytest.fixture
def model(family, task):
    return family[1](task)


@pytest.fixture
def params(model):
    return random_params(model)


@pytest.fixture
def folder(tmp_path, model, params):
    weights.save_pretrained(tmp_path / "model", model, params)
    return tmp_path / "model"


def test_all_problems_are_named_at_once_with_shapes(folder, task, query):
    tensors = tensors_of(folder)
    del tensors[query.replace("weight", "bias")]
    tensors["some.extra.weight"] = np.zeros(3, np.float32)
    tensors[query] = np.zeros((8, 7), np.float32)
    rewrite(folder, tensors)
    with pytest.raises(UserError) as error:
        weights.from_pretrained(folder, task)
    text = str(error.value)
    assert "missing in the source: encoder/block_00/attention/query/bias;" in text
    assert "unexpected in the source: some.extra.weight;" in text
    assert "encoder/block_00/attention/query/kernel (7, 8) -> (8, 8)" in text
    assert "\n" not in text


@pytest.mark.parametrize("shape", [(8,), (8, 8, 1), (8, 8, 1, 1)])
def test_a_tensor_of_another_rank_is_named(folder, task, query, shape):
    rewrite(folder, tensors_of(folder) | {query: np.zeros(shape, np.float32)})
    with pytest.raises(UserError, match="block_00/attention/query/kernel"):
        weights.from_pretrained(folder, task)


def test_what_is_named_fresh_is_replaced_and_the_report_says_so(params):
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    adopted, report = weights.adopt(other, params, ("encoder/block_00/norm1",))
    np.testing.assert_array_equal(
        adopted["encoder"]["block_00"]["norm1"]["bias"],
        other["encoder"]["block_00"]["norm1"]["bias"],
    )
    np.testing.assert_array_equal(
        adopted["encoder"]["block_00"]["norm2"]["bias"],
        params["encoder"]["block_00"]["norm2"]["bias"],
    )
    assert report.fresh == (
        "encoder/block_00/norm1/bias",
        "encoder/block_00/norm1/scale",
    )
    assert dict(report.ignored) == dict.fromkeys(report.fresh, "named fresh")


@pytest.mark.parametrize(
    ("fresh", "text"),
    [
        (("head",), "named fresh but not in the model: head"),
        (("encoder/block_0",), "named fresh but not in the model: encoder/block_0"),
    ],
)
def test_a_wrong_fresh_name_is_an_error(params, fresh, text):
    with pytest.raises(UserError, match=text):
        weights.adopt(params, params, fresh)


def test_a_decoder_may_be_fresh_as_a_whole_or_in_part_of_one_that_there_is():
    params = random_params(build("mae"))
    alone = {"encoder": params["encoder"]}
    for fresh in (
        (),
        ("decoder/predict",),
        tuple(f"decoder/{k}" for k in params["decoder"]),
    ):
        with pytest.raises(
            UserError, match=r"without the decoder .*fresh=\('decoder',\)"
        ):
            weights.adopt(params, alone, fresh)
    _, report = weights.adopt(params, alone, ("decoder",))
    assert all(leaf.startswith("decoder/") for leaf in report.fresh)
    _, report = weights.adopt(params, params, ("decoder/predict",))
    assert report.fresh == ("decoder/predict/bias", "decoder/predict/kernel")


def test_half_precision_is_converted_and_reported(folder, task, query):
    tensors = tensors_of(folder)
    tensors[query] = tensors[query].astype(ml_dtypes.bfloat16)
    rewrite(folder, tensors)
    _, loaded, report = weights.from_pretrained(folder, task)
    assert dict(report.converted) == {query: "bfloat16"}
    assert "1 converted from bfloat16 to float32" in report.summary()
    kernel = loaded["encoder"]["block_00"]["attention"]["query"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, tensors[query].astype(np.float32).T)
