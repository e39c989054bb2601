"""Whole models in every form that we read, and what may come of a broken one."""

import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import orbax.checkpoint as ocp
import safetensors.numpy
from hypothesis import HealthCheck, settings
from support import torch_files
from support.depth import examples_of
from support.hf_folders import CONFIG, build, random_params, tensors_of

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights.files import npz as npz_file

INDEX, SHARD = "model.safetensors.index.json", "model-0000{n}-of-00002.safetensors"
STATISTICS = dict(mean=(0.5,) * 3, std=(0.2,) * 3)
# What a field of a stranger's config.json may hold.
VALUES = [
    *(0, -1, 1, 2, 7, 10**9, 2**31, 2**63, 10**400, 0.0, -0.5, 1.5, 1e308),
    *(float("nan"), float("inf"), True, None, "8", "", [], [8], [8, 9], {}),
    *({"a": 1}, {"0": 1}, "gelu", "x" * 10_000, [[[[[]]]]], [10**9, 10**9]),
]
STATE = "stages/one/checkpoints/7"


@dataclasses.dataclass(frozen=True)
class Form:
    """How a model is written: what of it is the path to load, and with what."""

    task: str = "mae"
    path: str = "."
    format: str = "huggingface"
    known: tuple = ()
    fields: tuple = ()

    def build(self):
        return build(self.task, **dict(self.fields))

    def load(self, folder):
        """Returns (model config, parameters, report); None is an error of one line."""
        return outcome(
            weights.load,
            folder / self.path,
            self.task,
            pooling=None,
            known=dict(self.known),
        )


THEIRS = (("layer_norm_eps", 1e-6),)
HEADS = (("heads", 2),)
ALONE = (("decoder", None), *THEIRS)
FORMS = {
    "safetensors": Form(),
    "zip": Form(),
    "legacy": Form(),
    "shards": Form(),
    "timm": Form("encoder", ".", "timm", (), ALONE),
    "facebook": Form(
        "mae",
        "a.safetensors",
        "facebook_mae",
        (*HEADS, ("decoder_heads", 2)),
        THEIRS,
    ),
    "facebook zip": Form("encoder", "a.pth", "facebook_mae", HEADS, ALONE),
    "big_vision": Form(
        "encoder", "a.npz", "big_vision", (), (*ALONE, ("gelu", "tanh"))
    ),
    "orbax": Form("mae", STATE, "orbax"),
}


def write(folder, form):
    """Writes the model of a form; returns its parameters."""
    how = FORMS[form]
    model = how.build()
    params = random_params(model)
    if form == "orbax":
        _write_run(folder, params)
        return params
    path = folder / how.path
    if form == "facebook zip":
        path = folder / "a.safetensors"
    folder_of_files = how.path != "."
    options = {} if folder_of_files else STATISTICS
    folder.parent.mkdir(exist_ok=True, parents=True)
    weights.save_pretrained(path, model, params, format=how.format, **options)
    if form == "shards":
        _to_shards(folder)
    elif form in ("zip", "legacy"):
        tensors = tensors_of(folder)
        torch_files.write(folder / "pytorch_model.bin", tensors, form)
        (folder / "model.safetensors").unlink()
    elif form == "facebook zip":
        tensors = safetensors.numpy.load_file(path)
        torch_files.write(folder / how.path, tensors, "zip")
        path.unlink()
    return params


def _to_shards(folder):
    tensors, weight_map = tensors_of(folder), {}
    for n, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        part = {name: tensors[name] for name in names}
        safetensors.numpy.save_file(part, folder / SHARD.format(n=n))
        weight_map |= dict.fromkeys(names, SHARD.format(n=n))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def _write_run(folder, params):
    """The workdir of a run of ours, as far as weights are concerned."""
    data = dict(modality="image", mean=[0.5] * 3, std=[0.2] * 3)
    stage = dict(name="one", model=dict(pooling="cls"), data=data)
    config = dict(model=CONFIG | dict(depth=1), stages=[stage])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    ocp.PyTreeCheckpointer().save(folder / STATE / "state", {"params": params})


def files_of(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def largest(folder):
    """The file that holds the tensors, or the first of them."""
    return max(files_of(folder), key=lambda file: file.stat().st_size)


def npz_arrays(path):
    """All arrays of a .npz file, in the dtype of the file."""
    with npz_file.open_tensors(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def outcome(function, *arguments, **options):
    """What `function` returns, or None after a UserError of one line."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        text = str(error)
        assert text.isprintable(), text[:1000]
        assert len(text) < 20_000, text[:1000]  # hundreds of leaves may be missing
        return None


def fuzz(examples):
    """Examples drawn the same way each time, all of them under --all; one may not hang."""
    return settings(
        max_examples=examples_of(examples),
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=20),
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
