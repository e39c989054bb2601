"""The commands: what they write, and that a mistake is one line and exit code 2."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from support import html_page, tiny_files

from flax_adapt import __main__, models, weights
from flax_adapt.base import config
from flax_adapt.experiment import provenance

BACKBONES = Path(__file__).parents[1] / "parity/goldens/backbones"
CONFIG = '''"""Two small stages."""
from support import tiny

def get_config():
    model = {**tiny.MODEL, "depth": 1}
    return tiny.experiment(tiny.pretrain(), tiny.finetune(), model=model)
'''


@pytest.fixture(scope="module", autouse=True)
def settings_of_this_process():
    """Compiles fast. `main` expects a process of its own: what it sets is put back."""
    precision = jax.config.jax_default_matmul_precision
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_default_matmul_precision", precision)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with images, models, a config and things that are broken."""
    root = tmp_path_factory.mktemp("files")
    tiny_files.image_folder(root / "images")
    tiny_files.mae_folder(root / "mae")
    shutil.copytree(root / "mae", root / "broken")
    (root / "broken/model.safetensors").write_bytes(b"no tensors")
    (root / "tiny.py").write_text(CONFIG)
    (root / "__pycache__").mkdir()  # as where the config was imported: it is no data
    (root / "file").write_text("in the way")
    return root


def refused(found, told):
    code, out, error = found
    assert code == 2
    assert out == ""
    assert error.count("\n") == 1, error
    assert error.startswith("flax-adapt: ")
    assert told in error


MISTAKES = {
    "nope": "'nope' is no command; there are: run, ",
    "run --config=quickstart": "run needs --workdir=...; flags: --workdir, --coord",
    "run --workdir= --config=quickstart": "run needs --workdir=...",
    "run --workdir={w}": "run needs one --config=FILE or --config=NAME",
    "run --workdir={w} --config=quickstart --config=quickstart": "run needs one",
    "run --workdir={w} --config=nope": "choose one of ['adapt', 'baseline_finetune', 'bert_fur",
    "run --workdir={w} --config=quickstart:stepz=1": "'stepz=1' is unknown; there are",
    "run --workdir={w} --config=quickstart:pretrain_steps=x": "must be of type int",
    "run --workdir={w} --config=quickstart more": "run does not know ['more']",
    "run --workdir={w} --config=quickstart --wrong=1": "command line flag 'wrong'",
    "run --workdir={w} --config=quickstart --config.sed=1": "'sed' is unknown; choose",
    "run --workdir={w} --config=quickstart --config.stages.0.num_steps=x": "'x'",
    "run --workdir={w} --config=quickstart --config.seed=1.5": "'1.5'",
    "run --workdir={w} --config=quickstart --config.stages.9.num_steps=1": "'9'",
    "run --workdir={w} --config=quickstart --config.stages=1": "is a section",
    "run --workdir={w} --config=quickstart --num_processes=2": "need --coordinator",
    "run --workdir={w} --config=quickstart --coordinator=host": "must be host:port",
    "run --workdir={w} --config=quickstart --coordinator=h:1 --process_id=1": "0 to 0",
    "run --workdir=az://b/x --config={f}/tiny.py": "az://b/x: addresses here are gs://, ",
    "run --workdir={w} --config=vit_finetune:{i},init=az://b/x": "addresses here are gs://, ",
    "eval --workdir=az://b/x --config={f}/tiny.py": "az://b/x: addresses here are gs://, ",
    "run --workdir={f}/file --config={f}/tiny.py": "file",
    "run --workdir={w} --config=vit_finetune:{i},init={f}/no": "{f}/no",
    "run --workdir={w} --config=vit_finetune:{i},init={f}/broken": "not a readable",
    "run --workdir={w} --config=vit_finetune:dataset=folder:{f}/no,init={f}/mae": (
        "there is no such folder; {f} has ['broken', 'images', 'mae']"
    ),
    "eval --config={f}/tiny.py": "eval needs --workdir=...",
    "eval --workdir={w} --config={f}/tiny.py": "holds no finished stage",
    "features": "features needs --init=... --data=... --out=...",
    "features {m} --out={f}/x": "must be a new .npz or .csv or .parquet file",
    "features {m} --out={f}/no/x.npz": "in a folder that exists",
    "features {m} --out={w}.npz --pooling=max": "one of ['auto', 'cls', 'cls_dist',",
    "features {m} --out={w}.npz --precision=half": "'float32'",
    "features {m} --out={w}.npz --batch_size=0": "batch_size=0",
    "features {m} --out={w}.npz --batch_size=x": "'x'",
    "features {m} --out={w}.npz --split=val": "it has ['test', 'train']",
    "features --init={f}/no --data=builtin:digits --out={w}.npz": "{f}/no",
    "features --init={f}/mae --data=images --out={w}.npz": "SCHEME:WHAT",
    "features --init={f}/mae --data=builtin:digit --out={w}.npz": "'digits', 'mnist5k'",
    "configs --all": "command line flag 'all'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_that_helps_and_exit_code_2(main, files, tmp_path, line):
    images = f"folder:{files}/images"
    names = dict(f=files, w=tmp_path / "run", i=f"dataset={images}")
    names["m"] = f"--init={files}/mae --data={images}"
    refused(main(*line.format(**names).split()), MISTAKES[line].format(**names))
    assert not list(tmp_path.rglob("*.npz"))
    assert not list(tmp_path.rglob("checkpoints/*"))


@pytest.mark.parametrize("path", ["data.fit", "data.subset.draw", "memory.scan"])
def test_a_field_that_a_config_of_an_older_version_lacks_is_named(main, tmp_path, path):
    *sections, field = path.split(".")
    section = "".join(f"[{name!r}]" for name in ["stages", 0, *sections])
    lacking = CONFIG.replace("return tiny.", "config = tiny.")
    lacking += f"    config{section}.unlock()\n"
    lacking += f"    del config{section}[{field!r}]\n    return config\n"
    (tmp_path / "old.py").write_text(lacking)
    found = main("run", f"--config={tmp_path}/old.py", f"--workdir={tmp_path}/run")
    refused(found, f"a section of the config lacks the field {field!r}; one written by")


def test_the_module_is_the_command(tmp_path):
    """Without arguments it says what there is; a mistake shows no traceback."""
    command = [sys.executable, "-m", "flax_adapt"]
    both = [
        subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in ([], ["run", "--config=nope", f"--workdir={tmp_path}"])
    ]
    usage, mistake = ((each.communicate(timeout=120), each.returncode) for each in both)
    (out, error), code = usage
    assert (code, error) == (0, "")
    for name in __main__.COMMANDS:
        assert re.search(rf"^  {name} +[A-Zk]", out, re.MULTILINE)
    (out, error), code = mistake
    refused((code, out, error), "--config='nope' is unknown")


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_help_names_every_flag(main, command):
    code, out, error = main(command, "--help")
    assert (code, error) == (0, "")
    for flag in __main__.COMMANDS[command].flags:
        assert f"  --{flag} " in out


def test_configs_are_listed_with_their_first_line(main):
    code, out, _ = main("configs")
    assert code == 0
    for name, path in config.list_shipped().items():
        assert re.search(rf"^{name} +{re.escape(config.summary(path))}$", out, re.M)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run in which an override changed the first stage."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    command = ["run", f"--config={files}/tiny.py", f"--workdir={workdir}"]
    command += ["--config.stages.0.num_steps=3"]
    assert __main__.main(command) == 0
    return workdir, command


def test_an_override_changes_what_runs(finished):
    workdir, _ = finished
    stored = json.loads((workdir / "config.json").read_text())
    assert [stage["num_steps"] for stage in stored["stages"]] == [3, 4]
    result = json.loads((workdir / "stages/pretrain/result.json").read_text())
    assert result["num_steps"] == 3
    assert {p.name for p in (workdir / "stages/pretrain/checkpoints").iterdir()} == {
        "2",
        "3",
    }


def test_running_again_prints_the_same_table(finished, main):
    workdir, command = finished
    code, out, _ = main(*command)
    assert code == 0
    assert out.startswith(f"{workdir}: all stages were done before\n")
    assert f"results: {workdir}/results.json" in out
    assert f"model:   {workdir}/stages/finetune/export" in out
    assert re.search(r"^finetune +accuracy +1 ", out, re.MULTILINE)


def test_eval_measures_every_finished_stage(finished, main, tmp_path):
    workdir, command = finished
    report = workdir / "report.html"
    report.write_text("of before")
    code, out, _ = main("eval", *command[1:])
    assert code == 0
    # The report is written again, with what was measured and the command.
    assert out.endswith(f"report:  {report}\n")
    found = html_page.Page(report.read_text("utf-8"))
    assert {"Did it help?", "Target and source", "Frozen features"} < {*found.headings}
    assert len(provenance.read_starts(workdir)) > 1
    rows = json.loads((workdir / "eval.json").read_text())
    assert [row["stage"] for row in rows] == ["pretrain", "finetune"]
    for row in rows:
        assert 0.1 < row["knn"] <= 1
        assert 0.1 < row["probe"] <= 1
    assert f"results: {workdir}/eval.json" in out
    copy = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "stages/finetune/result.json").unlink()
    (copy / "report.html").write_text("of before")
    flags = (f"--workdir={copy}", "--noreport")
    assert main("eval", *command[1:], *flags)[0] == 0
    assert len(json.loads((copy / "eval.json").read_text())) == 1
    assert (copy / "report.html").read_text() == "of before"


def pixels(files, names):
    """Normalised float [n, Y, X, C]; the images have the size of the model."""
    images = [np.asarray(Image.open(files / "images" / name)) for name in names]
    mean, std = (np.float32(tiny_files.PIXELS[name]) for name in ("mean", "std"))
    return (np.stack(images) / np.float32(255) - mean) / std


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_are_the_states_of_the_model(main, files, tmp_path, pooling):
    out = tmp_path / "features.npz"
    code, text, _ = main(
        "features",
        f"--init={files}/mae",
        f"--data=folder:{files}/images",
        f"--out={out}",
        f"--pooling={pooling}",
        "--batch_size=6",  # 16 images: the last batch is not full
    )
    assert code == 0
    assert text == f"{out}: 16 embeddings of width 16, pooled by {pooling}\n"
    found = np.load(out)  # would refuse a pickle
    names = [f"train/{c}/{n}.png" for c in tiny_files.CLASSES for n in range(8)]
    assert found["names"].tolist() == names
    assert found["class_names"].tolist() == list(tiny_files.CLASSES)
    np.testing.assert_array_equal(found["labels"], [0] * 8 + [1] * 8)
    model, params, _ = weights.from_pretrained(files / "mae", "encoder")
    images = pixels(files, names)
    states = model.apply({"params": params}, images, None, method="encode")
    wanted = models.pool(states[-1], pooling)
    assert found["embeddings"].dtype == np.float32
    np.testing.assert_allclose(found["embeddings"], wanted, atol=1e-5)


def test_features_are_pooled_as_by_the_library_of_the_weights(main, files, tmp_path):
    """DINOv2's own features are CLS and the mean of the patches side by side."""
    out, weights_folder = tmp_path / "features.npz", BACKBONES / "dinov2"
    flags = f"--init={weights_folder}", f"--data=folder:{files}/images", f"--out={out}"
    code, text, _ = main("features", *flags, "--mean=0.5,0.5,0.5", "--std=1,1,1")
    printed = f"{out}: 16 embeddings of width 32, pooled by cls_mean\n"
    assert (code, text) == (0, printed)


@pytest.fixture(scope="module")
def with_bad_file(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad") / "images"
    shutil.copytree(files / "images", folder)
    (folder / "train/ant/bad.png").write_bytes(b"no image")
    return folder


def test_images_that_cannot_be_decoded_are_left_out_and_named(
    main, files, tmp_path, with_bad_file
):
    out = tmp_path / "features.npz"
    code, text, _ = main(
        "features",
        f"--init={files}/mae",
        f"--data=folder:{with_bad_file}",
        f"--out={out}",
        "--max_bad_fraction=0.1",
    )
    assert code == 0
    assert "16 embeddings" in text
    assert "cannot be decoded: train/ant/bad.png" in text
    assert not [name for name in np.load(out)["names"] if "bad" in name]


def test_too_many_of_them_are_a_mistake(main, files, tmp_path, with_bad_file):
    out = tmp_path / "features.npz"
    command = ["features", f"--init={files}/mae", f"--out={out}"]
    refused(main(*command, f"--data=folder:{with_bad_file}"), "train/ant/bad.png")
    assert not out.exists()
