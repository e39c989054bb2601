"""A folder of images: what is not read is named, and no folder is taken for another."""

import time
import tracemalloc

import pytest
from ml_collections import ConfigDict
from PIL import Image

from flax_adapt.base import errors
from flax_adapt.data import source


def open_folder(path, split="train", label_field="label"):
    fields = dict(modality="image", classes=(), data_dir="", label_field=label_field)
    section = ConfigDict({**fields, "source": f"folder:{path}", "split": split})
    return source.open_source(section)


def paint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5)).save(path)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", ".thumbnails"])
def test_folders_that_other_programs_leave_are_no_classes_and_named(
    tmp_path, caplog, name
):
    for folder in ("cat", "dog", name, f"dog/{name}"):
        paint(tmp_path / folder / "1.png")
    opened = open_folder(tmp_path)
    assert opened.class_names == ("cat", "dog")
    assert list(opened.names) == ["cat/1.png", "dog/1.png"]
    assert f"not read: ['{name}'], which other programs leave behind" in caplog.text
    # Said once, however often the folder is opened.
    caplog.clear()
    open_folder(tmp_path)
    assert caplog.text == ""


def test_images_and_folders_that_are_not_read_are_named_in_one_line(tmp_path, caplog):
    for name in "ab":
        paint(tmp_path / "train" / name / "1.png")
    for file in ("a/1.heic", "b/2.PSD", "b/3.heic", "b/notes.txt", "d/1.jp2"):
        (tmp_path / "train" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / file).write_bytes(b"?")
    assert open_folder(tmp_path).class_names == ("a", "b")
    (line,) = caplog.messages
    assert "files of other endings (2 .heic, 1 .psd, 1 .txt, 1 .jp2; read are" in line
    assert "the folders ['d'], which hold no file that is read" in line
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a" / "1.HEIC").write_bytes(b"?")
    with pytest.raises(errors.UserError, match=r"no image in .*only .*\(1 \.heic;"):
        open_folder(tmp_path, "val")


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_named_as_a_split_is_not_taken_for_it(tmp_path, name):
    for folder in ("bus", name):
        paint(tmp_path / folder / "1.png")
    with pytest.raises(errors.UserError) as caught:
        open_folder(tmp_path, name)
    assert (
        f"{name!r} holds images, no class folders, and so do ['bus'] beside it"
        in str(caught.value)
    )
    assert f"a folder {name}/{name}, {name}/bus, ...;" in str(caught.value)
    # Either way out is open.
    assert open_folder(tmp_path / name).class_names == ()
    for folder in ("bus", name):
        paint(tmp_path / "sorted" / "train" / folder / "1.png")
    assert open_folder(tmp_path / "sorted").class_names == tuple(sorted(("bus", name)))


def test_an_unlabelled_split_beside_other_splits_or_labels_is_read(tmp_path):
    paint(tmp_path / "train/1.png")
    paint(tmp_path / "test/1.png")
    paint(tmp_path / "more/cat/1.png")
    assert list(open_folder(tmp_path).names) == ["train/1.png"]


def test_an_image_beside_class_folders_is_named_unless_no_labels_are_asked_for(
    tmp_path,
):
    for file in ("b/1.png", "b/2.png", "c/3.png", "stray.png"):
        paint(tmp_path / "train" / file)
    with pytest.raises(
        errors.UserError, match=r"1 of 4 images lie in no class.*'stray"
    ):
        open_folder(tmp_path)
    whole = open_folder(tmp_path, label_field="")
    assert whole.labels.tolist() == [-1] * 4
    assert whole.class_names == ()


@pytest.mark.parametrize("names", [("Training", "Testing"), ("eval_set", "TRAIN")])
def test_split_folders_may_have_any_name_and_are_never_classes(tmp_path, names):
    for name in names:
        paint(tmp_path / name / "cat/1.png")
        paint(tmp_path / name / "dog/2.png")
    whole = open_folder(tmp_path, names[0])
    assert list(whole.names) == [f"{names[0]}/cat/1.png", f"{names[0]}/dog/2.png"]
    assert whole.class_names == ("cat", "dog")
    with pytest.raises(
        errors.UserError, match=rf"it has .*{names[0]}.*give one of these"
    ):
        open_folder(tmp_path, "val")


def test_a_split_may_be_any_folder_that_is_named(tmp_path):
    paint(tmp_path / "2023/cat/1.png")
    paint(tmp_path / "2024/cat/2.png")
    assert list(open_folder(tmp_path, "2024").names) == ["2024/cat/2.png"]


@pytest.mark.long
def test_100_000_files_open_in_seconds_and_only_their_names_stay_in_memory(tmp_path):
    for number in range(10):
        folder = tmp_path / "train" / f"class_{number}"
        folder.mkdir(parents=True)
        for file in range(10_000):
            (folder / f"{file:06d}.png").touch()
    start = time.perf_counter()
    whole = open_folder(tmp_path)
    seconds = time.perf_counter() - start
    assert len(whole) == 100_000
    del whole
    tracemalloc.start()
    whole = open_folder(tmp_path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A text of Python has 49 bytes beside its letters; 8 for its place, 4 for the label.
    assert kept < 1.2 * sum(len(name) + 49 + 8 + 4 for name in whole.names)
    assert seconds < 5
