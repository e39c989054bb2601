"""What a file does not tell is taken from a table, and the report names it."""

import json

import numpy as np
import pytest
import safetensors.numpy
from support import torch_files
from support.format_files import GOLDENS, inputs, tensors_of
from support.hf_folders import assert_same, build, random_params

from flax_adapt import models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.formats import table as formats
from flax_adapt.weights.strict import Report

PLAIN = dict(gelu="erf", layer_norm_eps=1e-6)
ASSUMED = [
    ("deit.pth", "classify", dict(heads=2), PLAIN | dict(pooling="cls")),
    ("deit.pth", "encoder", dict(heads=2, gelu="erf"), dict(layer_norm_eps=1e-6)),
    ("facebook_pooled.pth", "classify", dict(heads=2, gelu="erf", layer_norm_eps=1e-6),
     dict(pooling="mean_norm")),
    ("facebook_full.pth", "mae", inputs.KNOWN, PLAIN),
    ("timm_token", "classify", {}, PLAIN),
    ("timm_token", "classify", PLAIN, {}),
    ("big_vision.npz", "classify", {},
     dict(gelu="tanh", layer_norm_eps=1e-6, pooling="cls")),
    ("big_vision.npz", "encoder", dict(gelu="tanh"), dict(layer_norm_eps=1e-6)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "task", "known", "assumed"), ASSUMED)
def test_the_report_names_what_the_source_does_not_tell(name, task, known, assumed):
    path = GOLDENS / name
    config, _, report = weights.load(path, task, pooling=None, known=known)
    assert dict(report.assumed) == assumed
    told = {field: value for field, value in assumed.items() if field != "pooling"}
    assert {field: config[field] for field in told} == told


def test_a_pooling_that_is_given_is_no_assumption():
    path, known = GOLDENS / "deit.pth", dict(heads=2)
    _, _, report = weights.load(path, "classify", pooling="mean", known=known)
    assert dict(report.assumed) == PLAIN


def test_a_folder_of_hugging_face_assumes_only_what_its_config_leaves_out(tmp_path):
    model = build("mae")
    weights.save_pretrained(tmp_path / "a", model, random_params(model))
    _, _, report = weights.load(tmp_path / "a", "mae", pooling=None)
    assert not report.assumed
    file = tmp_path / "a" / "config.json"
    theirs = json.loads(file.read_text())
    for field in ("hidden_act", "layer_norm_eps", "decoder_num_attention_heads"):
        del theirs[field]
    file.write_text(json.dumps(theirs))
    _, _, report = weights.load(tmp_path / "a", "mae", pooling=None)
    assert dict(report.assumed) == dict(
        gelu="erf", layer_norm_eps=1e-12, decoder_heads=16
    )


def test_assumptions_are_printed_and_written():
    report = Report(used=("head/bias",), assumed=dict(heads=12, gelu="erf"))
    report = report.merge(Report(assumed=dict(pooling="cls")))
    assert "assumed heads=12, gelu=erf, pooling=cls" in report.summary()
    for text in (report.table(), report.overview()):
        rows = [line.split()[:3] for line in text.splitlines()]
        assert ["-", "heads=12", "assumed"] in rows
        assert ["-", "pooling=cls", "assumed"] in rows
    written = json.loads(json.dumps(report.to_json()))["assumed"]
    assert written == dict(heads=12, gelu="erf", pooling="cls")


def zeros(width, depth, mlp_dim, stack):
    shapes = {f"{stack}.{n}.norm1.weight": (width,) for n in range(depth)}
    shapes[f"{stack}.0.mlp.fc1.weight"] = (mlp_dim, width)
    return shapes


def file_of(folder, encoder, decoder):
    """A file with all that tells sizes; both are (width, depth, mlp_dim)."""
    width = encoder[0]
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        **zeros(*encoder, "blocks"),
    }
    if decoder:
        shapes |= {"decoder_embed.weight": (decoder[0], width)}
        shapes |= zeros(*decoder, "decoder_blocks")
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


TINY, PAPER, TI = (16, 2, 32), (512, 8, 2048), (192, 12, 768)


def test_heads_of_published_sizes_are_assumptions(tmp_path):
    path = file_of(tmp_path, TI, PAPER)
    _, _, report = weights.load(path, "mae", pooling=None)
    assert dict(report.assumed) == PLAIN | dict(heads=3, decoder_heads=16)
    _, _, report = weights.load(path, "encoder", pooling=None, known=dict(gelu="tanh"))
    assert dict(report.assumed) == dict(heads=3, layer_norm_eps=1e-6)


def test_the_decoder_s_heads_are_those_of_published_decoders_only(tmp_path):
    path = file_of(tmp_path, TINY, PAPER)
    config = weights.model_config(path, known=dict(heads=2))
    assert config["decoder"] == models.PAPER_DECODER
    with pytest.raises(UserError, match=r"known=\{'decoder_heads': NUMBER\}"):
        weights.model_config(file_of(tmp_path, TI, TI))


def test_the_encoder_s_heads_are_not_those_of_a_decoder_of_its_size(tmp_path):
    with pytest.raises(UserError, match=r"known=\{'heads': NUMBER\}"):
        weights.model_config(file_of(tmp_path, PAPER, None))


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("module.", ".pth"),
        ("_orig_mod.", ".safetensors"),
        ("module._orig_mod.", ".pth"),
        ("_orig_mod.module.", ".safetensors"),
        ("model.backbone.module.module.encoder._orig_mod.", ".pth"),
    ],
)
def test_prefixes_of_wrappers_are_left_out_and_reported(tmp_path, prefix, suffix):
    source, known = GOLDENS / "facebook_full.pth", inputs.KNOWN
    wrapped = {f"{prefix}{name}": t for name, t in tensors_of(source).items()}
    path = tmp_path / f"a{suffix}"
    write(path, wrapped)
    assert formats.detect(path) == "facebook_mae"
    _, expected, plain = weights.from_pretrained(source, "mae", known=known)
    _, params, report = weights.from_pretrained(path, "mae", known=known)
    assert_same(params, expected)
    assert dict(report.renamed) == {
        f"{prefix}{name}": leaf for name, leaf in plain.renamed.items()
    }
    assert f"{prefix}blocks.*.norm1.weight" in report.overview()
    _, _, report = weights.load(path, "encoder", pooling=None, known=known)
    assert f"{prefix}mask_token" in report.ignored


def write(path, tensors):
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    else:
        torch_files.write(path, tensors, "zip")


def test_a_prefix_that_not_all_names_have_is_a_part_of_the_name(tmp_path):
    tensors = tensors_of(GOLDENS / "deit.pth")
    tensors["module.norm.weight"] = tensors.pop("norm.weight")
    write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UserError, match=r"unexpected.*: module\.norm\.weight"):
        weights.from_pretrained(
            tmp_path / "a.safetensors", "encoder", known=dict(heads=2)
        )


def test_a_folder_of_hugging_face_may_be_wrapped_too(tmp_path):
    model = build("classify")
    params = random_params(model)
    weights.save_pretrained(tmp_path / "a", model, params)
    file = tmp_path / "a" / "model.safetensors"
    write(file, {f"_orig_mod.module.{k}": v for k, v in tensors_of(file).items()})
    _, loaded, report = weights.from_pretrained(tmp_path / "a", "classify")
    assert_same(loaded, params)
    assert "_orig_mod.module.classifier.bias" in report.renamed
