"""Every reader under the same misfortunes: the right value, or one line and exit code 2.

Through `from_pretrained`, `convert` and `features`: never a traceback, never silence.
"""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from support import hostile, tiny_files, torch_files
from support.format_files import GOLDENS
from support.hf_folders import save_text

from flax_adapt import weights
from flax_adapt.base.errors import UserError
from flax_adapt.weights import strict
from flax_adapt.weights.files import npz, reading

# Beside the forms of `hostile`: a ResNet in a file and in a folder, a text model.
OTHERS = {
    "torchvision": hostile.Form("encoder", "a.safetensors", "torchvision"),
    "resnet": hostile.Form("encoder", ".", "timm"),
    "text": hostile.Form("mlm"),
}
FORMS = hostile.FORMS | OTHERS
# The end of the name of a patch embedding -> its axis of rows; that of columns follows.
PATCHES = {
    "patch_embed.proj.weight": 2,
    "patch_embeddings.projection.weight": 2,
    "embedding/kernel": 0,
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder of each form, and one of images."""
    root = tmp_path_factory.mktemp("intact")
    for name in hostile.FORMS:
        (root / name).parent.mkdir(exist_ok=True)
        folder = root / name.replace(" ", "_")
        if FORMS[name].path not in (".", hostile.STATE):
            folder.mkdir()
        hostile.write(folder, name)
    shutil.copytree(GOLDENS / "timm_resnet", root / "resnet")
    (root / "torchvision").mkdir()
    file = GOLDENS / "timm_resnet/model.safetensors"
    shutil.copyfile(file, root / "torchvision/a.safetensors")
    save_text(root / "text", "bert", "mlm")
    tiny_files.image_folder(root / "images", train=1, test=1)
    return root


def tensor_file(path):
    """The file that holds the tensors, or the largest of them."""
    return path if path.is_file() else hostile.largest(path)


def change_tensors(path, form, change):
    """Writes {name: change(name, array)} over the tensors; None is left out."""
    if form == "orbax":
        _, loaded, _ = weights.load(path, "mae", pooling=None)
        tree = strict.unflatten(_changed(strict.flatten(loaded), change))
        shutil.rmtree(path / "state")
        ocp.PyTreeCheckpointer().save((path / "state").absolute(), {"params": tree})
        return
    file = tensor_file(path)
    opened = npz.open_tensors if file.suffix == ".npz" else reading.open_tensors
    with opened(file) as tensors:
        arrays = {
            tensor.name or name: tensor.read() for name, tensor in tensors.items()
        }
    arrays = _changed(arrays, change)
    if file.suffix == ".npz":
        np.savez(file, **arrays)
    elif file.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, file)
    else:
        torch_files.write(file, arrays, "legacy" if form == "legacy" else "zip")


def _changed(arrays, change):
    arrays = {name: change(name, array) for name, array in arrays.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def missing(path, form):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty_file(path, form):
    tensor_file(path).write_bytes(b"")


def empty_folder(path, form):
    missing(path, form)
    path.mkdir()


def folder_for_file(path, form):
    file = tensor_file(path)
    file.unlink()
    file.mkdir()


def cut_short(path, form):
    file = tensor_file(path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def damaged_front(path, form):
    file = tensor_file(path)
    file.write_bytes(bytes(16) + file.read_bytes()[16:])


def one_tensor(path, form):
    first = []

    def keep(name, array):
        first.append(name)
        return array if name == first[0] else None

    change_tensors(path, form, keep)


def whole_numbers(path, form):
    change_tensors(path, form, lambda name, array: array.astype(np.int32))


def not_a_number(path, form):
    def spoil(name, array):
        return np.full_like(array, np.nan) if array.ndim in (2, 4) else array

    change_tensors(path, form, spoil)


def oblong(path, form):
    """Patches of 2 x 8 pixels for those of 4 x 4."""

    def widen(name, array):
        first = next(
            (axis for end, axis in PATCHES.items() if name.endswith(end)), None
        )
        if first is None:
            return array
        shape = list(array.shape)
        shape[first] //= 2
        shape[first + 1] *= 2
        return array.reshape(shape)

    change_tensors(path, form, widen)


def config_missing(path, form):
    config_of(path).unlink()


def config_of_nothing(path, form):
    config_of(path).write_text("")


def config_is_a_list(path, form):
    config_of(path).write_text("[]")


def config_of_wrong_types(path, form):
    file = config_of(path)
    theirs = json.loads(file.read_text())
    strange = {name: "strange" for name in theirs if name != "weight_map"}
    file.write_text(json.dumps(strange))


def config_of(path):
    """config.json beside the tensors, or of the run that a checkpoint is of."""
    folders = (path, *path.parents)
    return next(f / "config.json" for f in folders if (f / "config.json").is_file())


ANY = (missing, empty_file, empty_folder, folder_for_file, cut_short, damaged_front)
TENSORS = (one_tensor, whole_numbers, not_a_number)
CONFIG = (config_missing, config_of_nothing, config_is_a_list, config_of_wrong_types)
WITH_CONFIG = ("safetensors", "zip", "legacy", "timm", "orbax", "resnet", "text")
CASES = [
    (form, misfortune)
    for form in FORMS
    for misfortune in (
        *ANY,
        *(TENSORS if form != "shards" else ()),
        *(
            ()
            if form in ("shards", "orbax", "text", "resnet", "torchvision")
            else (oblong,)
        ),
        *(CONFIG if form in WITH_CONFIG else ()),
    )
]


def copy(intact, tmp_path, form):
    """Returns the path of a copy that a test may break."""
    shutil.copytree(intact / form.replace(" ", "_"), tmp_path / "a")
    return tmp_path / "a" / FORMS[form].path


def features_of(path, form, intact, tmp_path, main):
    """Runs `features`; returns exit code and standard error."""
    known = ",".join(f"{name}={value}" for name, value in FORMS[form].known)
    kind = "builtin:digits" if form == "text" else f"folder:{intact / 'images'}"
    out = tmp_path / "features.npz"
    flags = [f"--init={path}", f"--data={kind}", f"--out={out}"]
    if form != "text":  # else a line says which mean and std are taken
        flags += ["--mean=0.5,0.5,0.5", "--std=0.5,0.5,0.5"]
    code, _, error = main(
        "features", *flags, *([f"--init_known={known}"] if known else [])
    )
    assert not out.exists()
    return code, error


def converted(path, form, tmp_path, main):
    """Runs `convert`; returns exit code and standard error."""
    known = ",".join(f"{name}={value}" for name, value in FORMS[form].known)
    target = tmp_path / "converted"
    code, _, error = main(
        "convert", f"--from={path}", f"--to={target}", f"--known={known}"
    )
    assert target.exists() == (code == 0)
    return code, error


@pytest.mark.parametrize(
    ("form", "misfortune"), CASES, ids=lambda one: getattr(one, "__name__", one)
)
def test_a_misfortune_is_one_line(intact, tmp_path, main, form, misfortune):
    path = copy(intact, tmp_path, form)
    misfortune(path, form)
    task, known = FORMS[form].task, dict(FORMS[form].known)
    with pytest.raises(UserError) as raised:
        weights.from_pretrained(path, task, known=known)
    assert "\n" not in str(raised.value)
    for code, error in (
        converted(path, form, tmp_path, main),
        features_of(path, form, intact, tmp_path, main),
    ):
        assert (code, error.count("\n")) == (2, 1), error
        assert error.startswith("flax-adapt: ")
        assert len(error) < 20_000
    assert {p.name for p in tmp_path.iterdir()} <= {"a"}


@pytest.mark.parametrize("form", FORMS)
def test_without_one_the_weights_are_converted(intact, tmp_path, main, form):
    path = copy(intact, tmp_path, form)
    code, error = converted(path, form, tmp_path, main)
    assert (code, error) == (0, "")
    task, known = FORMS[form].task, dict(FORMS[form].known)
    expected = weights.load(path, task, pooling=None, known=known)[1]
    found = weights.load(tmp_path / "converted", task, pooling=None)[1]
    expected, found = strict.flatten(expected), strict.flatten(found)
    assert expected.keys() == found.keys()
    for leaf, array in expected.items():
        np.testing.assert_array_equal(found[leaf], array)


@pytest.mark.parametrize("form", ["safetensors", "timm", "orbax", "text"])
def test_a_mark_before_a_config_is_no_misfortune(intact, tmp_path, form):
    path = copy(intact, tmp_path, form)
    file = config_of(path)
    expected = weights.model_config(path)
    file.write_bytes("\ufeff".encode() + file.read_bytes())
    assert weights.model_config(path) == expected


def test_a_place_that_cannot_be_written_to_is_one_line(intact, tmp_path, main):
    path = copy(intact, tmp_path, "safetensors")
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file/b", "/proc/nothing/b"):
        code, _, error = main("convert", f"--from={path}", f"--to={target}")
        assert (code, error.count("\n")) == (2, 1)
