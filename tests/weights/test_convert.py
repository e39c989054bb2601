"""Weights from any format to any other: exact, streamed, and nothing overwritten."""

import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from support import tiny_text
from support.hf_folders import (
    CONFIG,
    EPS,
    SIZES,
    assert_same,
    build,
    build_text,
    random_params,
    save,
    tensors_of,
)

from flax_adapt import __main__, models, weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import convert


def run(source, target, target_format="huggingface", **options):
    """`convert.convert` with nothing known but what is given."""
    fields = dict(source_format=None, task=None, known={}, changes={})
    fields |= dict(fresh=(), num_classes=0, seed=0) | options
    return convert.convert(source, target, target_format=target_format, **fields)


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("mae", {}),
        ("encoder", dict(pooler=True, decoder=None)),
        ("encoder", dict(decoder=None)),
        ("classify", dict(decoder=None, qkv_bias=False, gelu="tanh")),
    ],
)
def test_a_folder_becomes_the_same_folder(tmp_path, task, changes):
    """All that it has is needed by the task that is found."""
    save(tmp_path / "a", task, **changes)
    done = run(tmp_path / "a", tmp_path / "b")
    assert (done.task, done.left_out) == (task, ())
    assert not done.report.ignored
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("task", ["mlm", "classify", "encoder"])
def test_a_folder_of_text_becomes_the_same_with_its_tokenizer(tmp_path, task):
    model = build_text(task, vocab_size=len(tiny_text.VOCABULARY))
    tokenizer = tiny_text.bert_folder(tmp_path / "tokenizer")
    params = random_params(model)
    weights.save_pretrained(tmp_path / "a", model, params, tokenizer=tokenizer)
    assert run(tmp_path / "a", tmp_path / "b").task == task
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert len(files) > 2
    assert files == {file.name for file in (tmp_path / "b").iterdir()}
    for name in files:
        again = (tmp_path / "b" / name).read_bytes()
        assert again == (tmp_path / "a" / name).read_bytes(), name


WAYS = {
    # format: (name of the file or folder, changes of the config, known of it)
    "huggingface": ("model", {}, {}),
    "timm": ("timm", {}, {}),
    "facebook_mae": ("fb.safetensors", {}, dict(heads=2)),
    "big_vision": ("bv.npz", dict(gelu="tanh"), {}),
    "orbax": ("orbax", {}, {}),
}


@pytest.mark.parametrize("target", WAYS)
@pytest.mark.parametrize("source", WAYS)
def test_weights_go_from_any_format_to_any(tmp_path, source, target):
    (name, changes, known), (there, needed, told) = WAYS[source], WAYS[target]
    params = save(tmp_path / name, "encoder", source, **SIZES, **changes)
    to = tmp_path / f"to_{there}"
    fields = dict(source_format=source, known=known, changes={"gelu": "erf"} | needed)
    done = run(tmp_path / name, to, target, **fields)
    assert done.task == "encoder"
    known = dict(known=told, format=target, pooling=None)
    config, loaded, _ = weights.load(to, "encoder", **known)
    assert_same(loaded, params)
    assert config == {**CONFIG, **SIZES, "gelu": "erf", **needed}


def test_a_decoder_goes_through_facebooks_format(tmp_path):
    params = save(tmp_path / "a", "mae", **EPS)
    done = run(tmp_path / "a", tmp_path / "b.safetensors", "facebook_mae")
    assert done.left_out == ("preprocessor",)
    known = dict(heads=2, decoder_heads=2)
    assert run(tmp_path / "b.safetensors", tmp_path / "c", known=known).task == "mae"
    assert_same(weights.from_pretrained(tmp_path / "c", "mae")[1], params)


def test_what_the_task_does_not_need_is_reported(tmp_path):
    save(tmp_path / "a", "mae")
    done = run(tmp_path / "a", tmp_path / "b", task="encoder")
    assert set(done.report.ignored.values()) == {"decoder dropped for task encoder"}
    assert not any(name.startswith("decoder") for name in tensors_of(tmp_path / "b"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(target_format="onnx"), "--format='onnx' is unknown"),
        (dict(source_format="onnx"), "--from_format='onnx' is unknown"),
        (dict(task="mlm"), "holds a vit: --task='mlm' is unknown"),
        (dict(changes=dict(size=3)), "--change: its model config has no size"),
        (dict(source_format="timm"), "has no patch_embed.proj.weight"),
        (dict(known=dict(heads=2)), "--known=heads cannot be given"),
        (dict(task="classify"), "needs --fresh=head and --num_classes=NUMBER"),
        (dict(task="classify", num_classes=2), "name leaves .* new in --fresh"),
        (dict(task="encoder", fresh=("head",)), "fresh but not in the model: head"),
        (
            dict(target_format="timm", task="mae", changes=EPS),
            "timm has no decoder; give --task=encoder",
        ),
        (
            dict(target_format="timm", task="encoder"),
            "cannot hold .*; give --change=NAME=VALUE if it is meant",
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, options, told):
    save(tmp_path / "a", "mae")
    with pytest.raises(UserError, match=told) as error:
        run(tmp_path / "a", tmp_path / "b", **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith((f"{tmp_path}/", "--"))
    assert not re.search(r"`|(?<!-)known[={ ]", str(error.value))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_source_that_needs_more_is_told_by_flags(tmp_path):
    save(tmp_path / "a.safetensors", "mae", "facebook_mae", **EPS)
    with pytest.raises(UserError, match="give --known=heads=NUMBER"):
        run(tmp_path / "a.safetensors", tmp_path / "b")
    save(tmp_path / "timm", "encoder", "timm", **SIZES)
    (tmp_path / "timm/7/state").mkdir(parents=True)
    with pytest.raises(UserError, match=r"could be any of .* give --from_format"):
        run(tmp_path / "timm", tmp_path / "b")
    save(tmp_path / "c", "encoder", decoder=None)
    with pytest.raises(UserError, match=r"without the decoder .* --fresh=decoder"):
        run(tmp_path / "c", tmp_path / "b", task="mae")


def test_what_is_fresh_is_drawn_and_the_rest_is_exact(tmp_path):
    """As `from_pretrained` draws it from the same key."""
    params = save(tmp_path / "a", "encoder", decoder=None)
    options = dict(fresh=("head",), num_classes=3, seed=5)
    done = run(tmp_path / "a", tmp_path / "b", **options)
    assert (done.task, done.report.fresh) == ("classify", ("head/bias", "head/kernel"))
    _, expected, _ = weights.from_pretrained(
        tmp_path / "a",
        "classify",
        fresh=("head",),
        key=jax.random.key(5),
        num_classes=3,
    )
    _, loaded, _ = weights.load(tmp_path / "b", "classify", pooling=None)
    assert_same(loaded, expected)
    assert_same(loaded["encoder"], params["encoder"])
    assert np.any(loaded["head"]["kernel"])
    # The size of a head that there is.
    again = run(tmp_path / "b", tmp_path / "c", fresh=("head/bias",), seed=1)
    assert again.report.ignored == {"head/bias": "named fresh"}
    done = run(tmp_path / "a", tmp_path / "d", fresh=("decoder",))
    assert done.task == "mae"
    decoder = weights.model_config(tmp_path / "d")["decoder"]
    assert decoder == models.PAPER_DECODER


def test_a_new_head_does_not_keep_the_names_of_the_old_one(tmp_path):
    model, names = build("classify", decoder=None), ("ant", "bee")
    weights.save_pretrained(
        tmp_path / "a", model, random_params(model), class_names=names
    )
    assert weights.class_names(tmp_path / "a")[:2] == names
    run(tmp_path / "a", tmp_path / "b", fresh=("head",))
    assert weights.class_names(tmp_path / "b") is None


def test_nothing_that_is_there_is_overwritten(tmp_path):
    save(tmp_path / "a", "mae")
    before = tensors_of(tmp_path / "a")
    (tmp_path / "file").write_text("years of work")
    for name in ("a", "file"):
        with pytest.raises(UserError, match="is there already"):
            run(tmp_path / "a", tmp_path / name)
    assert (tmp_path / "file").read_text() == "years of work"
    assert_same(tensors_of(tmp_path / "a"), before)


def test_broken_weights_are_not_half_written(tmp_path):
    save(tmp_path / "a", "mae")
    file = tmp_path / "a/model.safetensors"
    tensors = tensors_of(tmp_path / "a")
    name = sorted(tensors)[-1]  # read last, when the others are written
    tensors[name] = tensors[name].astype(np.int32)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match="int32 is no weight"):
        run(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command_prints_what_became_of_the_tensors(tmp_path, capsys):
    save(tmp_path / "a", "mae")
    arguments = [f"--from={tmp_path / 'a'}", f"--to={tmp_path / 'b'}"]
    more = ["--task=encoder", "--change=layer_norm_eps=1e-6", "--format=timm"]
    assert __main__.main(["convert", *arguments, *more]) == 0
    out = capsys.readouterr().out
    assert "decoder dropped for task encoder" in out
    assert "vit.encoder.layer.*.layernorm_before.bias" in out
    assert weights.model_config(tmp_path / "b")["layer_norm_eps"] == 1e-6
    fresh = ["--fresh=head,encoder/norm", "--fresh=encoder/patch_embed"]
    more = [f"--to={tmp_path / 'c'}", "--task=classify", "--num_classes=2"]
    assert __main__.main(["convert", arguments[0], *more, *fresh]) == 0
    drawn = weights.load(tmp_path / "c", "classify", pooling=None)[1]
    assert drawn["head"]["bias"].shape == (2,)
    np.testing.assert_array_equal(drawn["encoder"]["norm"]["scale"], 1)
    capsys.readouterr()
    assert __main__.main(["convert", *arguments]) == 2
    assert __main__.main(["convert", *arguments, "--known=heads=x"]) == 2
    assert __main__.main(["convert", *arguments, "--known=eyes=2"]) == 2
    assert __main__.main(["convert", arguments[0]]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 4
    assert "is there already" in err[0]
    assert "must be NAME=VALUE" in err[1]
    assert "needs --to=..." in err[3]
