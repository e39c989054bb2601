"""Folders of text go to transformers and come back: run where torch and it are."""

import json

import goldens
import inputs
import numpy as np
import pytest
import text_inputs

from flax_adapt import weights

pytestmark = pytest.mark.parity

HEADS = {
    "ForMaskedLM": "mlm",
    "Model": "encoder",
    "ForSequenceClassification": "classify",
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs torch and transformers")


def make(transformers, head, name):
    """A transformers model with parameters from `inputs`; it drops nothing."""
    torch = pytest.importorskip("torch")
    prefix = text_inputs.STEMS[text_inputs.kind(name)]
    model_class = getattr(transformers, prefix + head)
    fields = text_inputs.hugging_face_config(name)
    model = model_class(model_class.config_class(**fields, num_labels=3)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(torch.from_numpy(inputs.tensor(key, value.shape, 0)))
    return model


def as_numpy(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def output_of(model, name):
    """The first output at the real tokens, or at all examples."""
    torch = pytest.importorskip("torch")
    arrays = text_inputs.batch(name)
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(arrays["tokens"]).long(),
            attention_mask=torch.from_numpy(arrays["real"]).long(),
            **(
                dict(token_type_ids=torch.from_numpy(arrays["token_types"]).long())
                if text_inputs.has_types(name)
                else {}
            ),
        )[0].numpy()
    return out[arrays["real"] == 1] if out.ndim == 3 else out


def our_output_of(path, task, name):
    model, params, _ = weights.from_pretrained(path, task)
    arrays = text_inputs.batch(name)
    text = goldens.text_of(arrays)
    every_BL = np.broadcast_to(np.arange(text.tokens_BL.shape[1]), text.tokens_BL.shape)
    places = (every_BL,) if task == "mlm" else ()
    out = model.apply({"params": params}, text, *places, None)
    out = np.asarray(out[0] if task == "encoder" else out)
    return out[arrays["real"] == 1] if out.ndim == 3 else out


# Functions have several names: "gelu_new" is written as "gelu_pytorch_tanh".
ACTIVATIONS = ("hidden_act", "activation", "hidden_activation")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", sorted(text_inputs.CONFIGS))
@pytest.mark.parametrize("head", HEADS)
def test_transformers_ours_transformers_is_the_same_model(
    tmp_path, transformers, head, name
):
    theirs, task = make(transformers, head, name), HEADS[head]
    theirs.save_pretrained(tmp_path / "theirs")
    model, params, report = weights.from_pretrained(tmp_path / "theirs", task)
    assert not report.fresh
    weights.save_pretrained(tmp_path / "ours", model, params)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [type(theirs).__name__]
    again, info = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    expected, found = as_numpy(theirs), as_numpy(again)
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    for field, value in text_inputs.hugging_face_config(name).items():
        if field in written and field not in ACTIVATIONS and "dropout" not in field:
            assert getattr(again.config, field) == value
    expected = output_of(theirs, name)
    ours = our_output_of(tmp_path / "ours", task, name)
    for found in (output_of(again.eval(), name), ours):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
