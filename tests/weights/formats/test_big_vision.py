"""The layouts of big_vision, and what of them is refused."""

import jax
import numpy as np
import pytest
from support.format_files import (
    GOLDENS,
    ONE,
    apply,
    assert_close,
    inputs,
    outputs,
    tensors_of,
)

from flax_adapt import weights
from flax_adapt.base.errors import UserError


def npz(path, **tensors):
    """The stored file with other arrays; None takes one away."""
    found = tensors_of(GOLDENS / "big_vision.npz")
    found |= {name.replace("__", "/"): value for name, value in tensors.items()}
    np.savez(path, **{name: v for name, v in found.items() if v is not None})
    return path


NUMBERED_BY_KIND = {
    "LayerNorm_2": "LayerNorm_1",
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "MlpBlock_3": "MlpBlock_0",
}


def test_big_vision_s_own_layout_is_the_same_model(tmp_path):
    """Scanned blocks, numbered by kind, positions without CLS, under params/."""
    old = tensors_of(GOLDENS / "big_vision.npz")
    position = old.pop("Transformer/posembed_input/pos_embedding")
    cls = old.pop("cls") + position[:, :1]
    new = {"pos_embedding": position[:, 1:], "cls": cls}
    for name, tensor in old.items():
        if "encoderblock_0" in name:
            both = tensor, old[name.replace("block_0", "block_1")]
            _, _, module, rest = name.split("/", 3)
            module = NUMBERED_BY_KIND.get(module, module)
            new[f"Transformer/encoderblock/{module}/{rest}"] = np.stack(both)
        elif "encoderblock_1" not in name:
            new[name] = tensor
    path = tmp_path / "a.npz"
    np.savez(path, **{f"params/{k}": v for k, v in new.items()}, **{"opt/0/mu": ONE})
    model, params, report = weights.from_pretrained(path, "classify")
    assert_close(
        apply(model, params, inputs.images(), None), outputs("big_vision")["logits"]
    )
    assert dict(report.ignored) == {"opt/0/mu": "the state of the optimizer"}


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (dict(MAPHead_0__probe=ONE), "attention pooling"),
        (dict(cls=None), r"no cls token \(pool_type='gap'\)"),
        (dict(conv_root__kernel=ONE), "hybrid"),
        ({"embedding/kernel": None}, "embedding/kernel"),
    ],
)
def test_heads_and_stems_of_big_vision_are_refused_by_name(tmp_path, tensors, text):
    with pytest.raises(UserError, match=text):
        weights.load(npz(tmp_path / "a.npz", **tensors), "encoder", pooling=None)


@pytest.fixture
def with_tanh(tmp_path):
    """A file of ImageNet-21k: a tanh layer before the head."""
    square = np.eye(16, dtype=np.float32)
    layer = {"pre_logits/kernel": square, "pre_logits/bias": square[0]}
    return npz(tmp_path / "a.npz", **layer)


def test_pre_logits_is_the_pooler_of_an_encoder(with_tanh):
    model, params, _ = weights.from_pretrained(with_tanh, "encoder")
    _, pooled = apply(model, params, inputs.images(), None)
    states = outputs("big_vision")["states"]
    square = np.eye(16)
    assert_close(pooled, np.tanh(states[:, 0] @ square + square[0]))


def test_pre_logits_goes_with_the_head_where_that_is_new(with_tanh):
    fresh = dict(fresh=("head",), key=jax.random.key(0))
    model, params, report = weights.from_pretrained(
        with_tanh, "classify", num_classes=5, **fresh
    )
    assert report.ignored["head/pre_logits/kernel"] == "named fresh"
    assert params["head"]["bias"].shape == (5,)
    assert_close(
        apply(model, params, inputs.images(), None, method="encode")[-1],
        outputs("big_vision")["states"],
    )
    _, _, report = weights.load(with_tanh, "mae", pooling=None)
    assert report.ignored["pre_logits/kernel"] == "pooler dropped for task mae"


def test_a_head_on_pre_logits_is_refused(with_tanh):
    with pytest.raises(UserError, match=r"tanh layer \(pre_logits\)") as error:
        weights.from_pretrained(with_tanh, "classify")
    assert "name 'head' in `fresh`" in str(error.value)
    assert "\n" not in str(error.value)
