"""Weights from any format to any other: exact, streamed, and nothing overwritten."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny_text
from hf_folders import CONFIG, assert_same, build, build_text, random_params, tensors_of

from flax_adapt import __main__, convert, weights
from flax_adapt.errors import UserError

# What a file of a format must have; its width, depth and mlp_dim are of no published
# model, so the heads must be told.
EPS = dict(layer_norm_eps=1e-6)
SIZES = dict(**EPS, depth=2, decoder=None)
PIXELS = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))


def run(source, target, target_format="huggingface", **options):
    """`convert.convert` with nothing known but what is given."""
    fields = dict(source_format=None, task=None, known={}, changes={}) | options
    return convert.convert(source, target, target_format=target_format, **fields)


def save(path, task, format="huggingface", **changes):
    """A model with random values; returns its parameters."""
    model = build(task, **changes)
    params = random_params(model)
    config = {**CONFIG, "depth": 1, **changes}
    images = weights.preprocessor(config, **PIXELS) if format == "huggingface" else None
    weights.save(
        path,
        config,
        params,
        task,
        pooling="cls",
        preprocessor=images,
        tokenizer=None,
        class_names=None,
        format=format,
    )
    return params


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
        (dict(target_format="timm"), "cannot hold layer_norm_eps=1e-12"),
        (dict(target_format="timm", task="mae", changes=EPS), "timm has no decoder"),
        (dict(task="mlm"), "task of a vit model: task='mlm' is unknown"),
        (dict(changes=dict(size=3)), "has no size"),
        (dict(source_format="timm"), "has no patch_embed.proj.weight"),
        (dict(known=dict(heads=2)), "known='heads' cannot be given"),
        (dict(task="classify"), "missing in the source: head/bias, head/kernel"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, options, told):
    save(tmp_path / "a", "mae")
    with pytest.raises(UserError, match=told) as error:
        run(tmp_path / "a", tmp_path / "b", **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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
    assert __main__.main(["convert", *arguments]) == 2
    assert __main__.main(["convert", *arguments, "--known=heads=x"]) == 2
    assert __main__.main(["convert", *arguments, "--known=eyes=2"]) == 2
    assert __main__.main(["convert", arguments[0]]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 4
    assert "is there already" in err[0]
    assert "must be NAME=NUMBER" in err[1]
    assert "needs --to=..." in err[3]


# The peak that `getrusage` tells is at least that of the process that started this one.
MEASURE = """
import sys
from pathlib import Path
from flax_adapt import __main__

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith(name)]
    return int(found) * 1024

def run(source, to):
    flags = [f"--from={source}", f"--to={to}", f"--format={form}"]
    assert __main__.main(["convert", *flags, "--change=gelu=tanh"]) == 0

small, large, to, form = sys.argv[1:]
run(small, str(Path(to).with_stem("other")))
before = status("VmRSS")
run(large, to)
print("PEAK", before, status("VmHWM"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("source", "name", "target"),
    [
        ("huggingface", "a", "big_vision"),
        ("timm", "b", "huggingface"),
        ("big_vision", "c.npz", "timm"),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path, source, name, target):
    """Of a file of 120 MB the process needs less than half beside its own memory.

    What a process has at its start, with JAX, is that of the same command before.
    """
    for size, width in (("small", 8), ("large", 512)):
        changes = dict(width=width, mlp_dim=2 * width, depth=14, heads=8)
        changes |= dict(gelu="tanh" if source == "big_vision" else "erf")
        (tmp_path / size).mkdir()
        save(tmp_path / size / name, "encoder", source, **{**SIZES, **changes})
    files = [path for path in (tmp_path / "large").rglob("*") if path.is_file()]
    largest = max(file.stat().st_size for file in files)
    assert largest > 100e6
    paths = [str(tmp_path / size / name) for size in ("small", "large")]
    to = str(tmp_path / "to") + ".npz" * (target == "big_vision")
    command = [sys.executable, "-c", MEASURE, *paths, to, target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split("PEAK")[1].split())
    print(f"{source} -> {target}: {largest} bytes, peak {before} + {after - before}")
    assert after - before < largest / 2
