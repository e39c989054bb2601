"""What we write of DeiT, CLIP and DINOv3 loads in transformers and timm, with equal states."""

import backbone_inputs as inputs
import numpy as np
import pytest

from flax_adapt import weights

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")
timm = pytest.importorskip("timm", reason="needs the extra parity")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
DEIT = "DeiTForImageClassificationWithTeacher"
# (golden, task, class of transformers, what it computes of pixels, output of the golden)
FOLDERS = [
    ("deit_distilled", "classify", DEIT, "logits", "logits"),
    ("deit_distilled", "encoder", "DeiTModel", "last_hidden_state", "states"),
    ("clip", "encoder", "CLIPVisionModel", "pooler_output", "states"),
    ("dinov3", "encoder", "DINOv3ViTModel", "last_hidden_state", "states"),
    ("dinov3_gated", "encoder", "DINOv3ViTModel", "last_hidden_state", "states"),
    ("timm_dinov3_plus", "encoder", "DINOv3ViTModel", "last_hidden_state", "states"),
]
OF_TIMM = [
    ("timm_deit_distilled", "classify", "timm"),
    ("timm_deit3", "classify", "timm"),
    ("timm_dinov3", "classify", "timm_dinov3"),
    ("timm_dinov3_plus", "classify", "timm_dinov3"),
    ("dinov3_gated", "encoder", "timm_dinov3"),
]


def written(tmp_path, name, task, format):
    model, params, _ = weights.from_pretrained(inputs.FOLDER / name, task)
    weights.save_pretrained(tmp_path / "ours", model, params, format=format)
    return tmp_path / "ours"


def expected(name, key):
    with np.load(inputs.FOLDER / f"{name}.outputs.npz") as found:
        return found[key]


def pixels():
    return torch.from_numpy(inputs.images().transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(("name", "task", "kind", "output", "key"), FOLDERS)
def test_transformers_computes_the_same(tmp_path, name, task, kind, output, key):
    folder = written(tmp_path, name, task, "huggingface")
    found = getattr(transformers, kind).from_pretrained(
        folder, output_loading_info=True
    )
    model, info = found
    assert not info["unexpected_keys"]
    assert all(name.startswith("pooler.") for name in info["missing_keys"])
    with torch.no_grad():
        found = getattr(model.eval()(pixels()), output).numpy()
    theirs = expected(name, key)
    theirs = theirs[:, 0] if output == "pooler_output" else theirs
    np.testing.assert_allclose(found, theirs, atol=1e-5)


@pytest.mark.parametrize(("name", "task", "format"), OF_TIMM)
def test_timm_computes_the_same(tmp_path, name, task, format):
    folder = written(tmp_path, name, task, format)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        found = model.forward_features(pixels()).numpy()
    np.testing.assert_allclose(found, expected(name, "states"), atol=1e-5)
