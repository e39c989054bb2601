"""Every kind of source against the same misfortunes, opened and through `features`.

Either the right number of examples comes out and exit code 0, or one line that names what
is wrong and exit code 2: never a traceback.
"""

import tarfile

import numpy as np
import pyarrow
import pytest
from ml_collections import ConfigDict
from PIL import Image
from pyarrow import parquet
from support import tiny, tiny_files, tiny_text

from flax_adapt import data
from flax_adapt.base import errors

TEXTS = ("the cat sat", "a dog ran", "cold rain", "the sea")
LABELS = ("animal", "animal", "weather", "weather")
HEADERS = {"csv": "text,label\n", "tsv": "text\tlabel\n", "jsonl": "", "text": ""}
# Images in one file or by a pattern.
IMAGES = ("folder", "builtin", "images csv", "parquet", "hf", "tar")
LINES = {
    "csv": "{0},{1}\n",
    "tsv": "{0}\t{1}\n",
    "jsonl": '{{"text": "{0}", "label": "{1}"}}\n',
    "text": "{0}\n",
}
# Of text files: contents, made of the good ones, and what comes out: a number of
# examples, or what the line says.
GOOD = 4
FILES = {
    "good": (lambda kind, good: good, GOOD),
    "BOM": (lambda kind, good: b"\xef\xbb\xbf" + good, GOOD),
    "CR alone": (lambda kind, good: good.replace(b"\n", b"\r"), GOOD),
    "empty": (lambda kind, good: b"", "has no text at all"),
    "one item": (lambda kind, good: table(kind, 1), 1),
    "one class": (lambda kind, good: table(kind, 2), 2),
    "UTF-16": (lambda kind, good: good.decode().encode("utf-16"), "save it as UTF-8"),
    "a row that is not UTF-8": (
        lambda kind, good: good + b"\xff\n",
        "5 examples cannot",
    ),
    "only rows that are not UTF-8": (lambda kind, good: b"\xff\n\xfe\n", "not UTF-8"),
    "empty texts": (lambda kind, good: table(kind, 4, text=" "), "no t"),
}
# Of a folder of images: what is done to it, and what comes out.
FOLDERS = {
    "good": (lambda folder: None, GOOD),
    "one item": (lambda folder: keep(folder, "animal/0.png"), 1),
    "one class": (lambda folder: keep(folder, "animal/0.png", "animal/1.png"), 2),
    "empty": (lambda folder: keep(folder), "no image in"),
    "no folder for a class": (lambda folder: (folder / "other").mkdir(), GOOD),
    "other endings": (lambda folder: rename(folder, ".heic"), "4 .heic"),
    "broken metadata": (lambda folder: exif(folder / "animal/0.png"), GOOD),
    "damaged": (lambda folder: cut(folder / "animal/0.png"), "1 of 4 examples cannot"),
    "empty file": (lambda folder: empty(folder / "animal/0.png"), "1 of 4 examples"),
    "a folder named as a file": (lambda folder: block(folder / "x.png"), GOOD),
    "a link to nowhere": (
        lambda folder: (folder / "animal/x.png").symlink_to("gone"),
        "1 of 5 examples cannot",
    ),
}
# Whatever the kind: fields of the section, and what the line says.
SETTINGS = {
    "another split": (dict(split="val"), "split='val'"),
    "another modality": (dict(), "is unknown; choose one of ["),
    "missing": (dict(), "there is no such"),
    "no scheme": (dict(source="nowhere"), "must be SCHEME:WHAT"),
    "unknown home": (dict(), "is nobody's home directory"),
}


def table(kind, count, text=None):
    lines = (LINES[kind].format(text or TEXTS[i], LABELS[i]) for i in range(count))
    return (HEADERS[kind] + "".join(lines)).encode()


def keep(folder, *names):
    for file in folder.rglob("*.png"):
        if file.relative_to(folder).as_posix() not in names:
            file.unlink()


def rename(folder, ending):
    for file in list(folder.rglob("*.png")):
        file.rename(file.with_suffix(ending))


def exif(file):
    with Image.open(file) as opened:
        opened.save(file, exif=b"Exif\0\0" + b"\xff" * 30)


def cut(file):
    file.write_bytes(file.read_bytes()[:60])


def empty(file):
    file.write_bytes(b"")


def block(folder):
    (folder / "more").mkdir(parents=True)


def image_folder(root):
    rng = np.random.default_rng(0)
    for number, label in enumerate(LABELS):
        (root / label).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    image, text = root / "mae", root / "bert"
    return dict(image=tiny_files.mae_folder(image), text=tiny_files.bert_folder(text))


def section_of(source, models, **changes):
    scheme = source.partition(":")[0]
    if scheme in IMAGES or source.endswith("/images.csv"):
        fields = dict(image_size=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
        return ConfigDict({**tiny.digits(), **fields, "source": source, **changes})
    label = {} if scheme != "text" else dict(label_field="")
    return tiny_text.section(source, models["text"], **{**label, **changes})


def outcome(section):
    """How many examples can be read, or what is said instead."""
    try:
        examples = data.open_examples(section, "")
        batches = list(data.eval_batches(examples, 4, 0, 1))
    except (errors.UserError, OSError) as error:
        return str(error)
    return int(sum(batch["weight"].sum() for batch in batches))


def check(found, wanted):
    if isinstance(wanted, int):
        assert found == wanted
    else:
        assert isinstance(found, str)
        assert wanted in found
        assert "\n" not in found


def through_features(main, source, models, out, kind="", **flags):
    """The same by the command; `features` allows one bad example in a hundred."""
    kind = kind or source.partition(":")[0]
    modality = "image" if kind in IMAGES else "text"
    label = ["--label_field="] if source.startswith("text:") else []
    more = [f"--{name}={value}" for name, value in flags.items()]
    code, _, error = main(
        "features",
        f"--init={models[modality]}",
        f"--data={source}",
        f"--out={out}",
        *("--batch_size=4", "--seq_len=16", *label, *more),
    )
    assert "Traceback" not in error
    if code == 0:
        return len(np.load(out)["embeddings"])
    assert code == 2
    last = error.strip().splitlines()[-1]
    assert last.startswith("flax-adapt: ")
    return last


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("case", FILES)
def test_text_files(main, tmp_path, models, kind, case):
    change, wanted = FILES[case]
    file = tmp_path / f"x.{kind}"
    file.write_bytes(change(kind, table(kind, GOOD)))
    check(outcome(section_of(f"{kind}:{file}", models)), wanted)
    found = through_features(main, f"{kind}:{file}", models, tmp_path / "out.npz")
    check(found, wanted)


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_of_images(main, tmp_path, models, case):
    change, wanted = FOLDERS[case]
    folder = image_folder(tmp_path / "images")
    change(folder)
    source = f"folder:{folder}"
    check(outcome(section_of(source, models)), wanted)
    check(through_features(main, source, models, tmp_path / "out.npz"), wanted)


def image_rows(folder):
    return [(file, file.parent.name) for file in sorted(folder.rglob("*.png"))]


def write_images(kind, root):
    """The images of `image_folder` as a source of another kind; returns its path."""
    rows = image_rows(image_folder(root / "images"))
    if kind == "images csv":
        lines = [f"{file},{label}" for file, label in rows]
        (root / "images.csv").write_text("\n".join(["image,label", *lines]))
        return root / "images.csv"
    if kind == "tar":
        with tarfile.open(root / "images.tar", "w") as tar:
            for file, label in rows:
                tar.add(file, f"{label}{file.stem}.png")
                (root / "cls").write_text(label)
                tar.add(root / "cls", f"{label}{file.stem}.cls")
        return root / "images.tar"
    columns = {
        "image": [file.read_bytes() for file, _ in rows],
        "label": [label for _, label in rows],
    }
    parquet.write_table(pyarrow.table(columns), root / "images.parquet")
    return root / "images.parquet"


# What is done to the bytes of a file of images, and what comes out.
WHOLE = {
    "good": (lambda body: body, GOOD),
    "empty file": (lambda body: b"", ""),
    "cut": (lambda body: body[: len(body) // 3], ""),
    "of another kind": (lambda body: b"\xff\xfe" * 400, ""),
}


@pytest.mark.parametrize("kind", IMAGES[2:])
@pytest.mark.parametrize("case", WHOLE)
def test_files_of_images(main, tmp_path, models, kind, case):
    change, wanted = WHOLE[case]
    file = write_images(kind, tmp_path)
    file.write_bytes(change(file.read_bytes()))
    source = f"{kind.removeprefix('images ')}:{file}"
    found = outcome(section_of(source, models))
    told = through_features(main, source, models, tmp_path / "out.npz", kind=kind)
    if wanted:
        assert found == told == wanted
    elif not (kind == "images csv" and case == "cut"):  # fewer rows are good rows
        check(found, str(file.name))
        check(told, str(file.name))


@pytest.mark.parametrize("kind", [*IMAGES, *LINES])
@pytest.mark.parametrize("case", SETTINGS)
def test_settings(main, tmp_path, models, kind, case):
    changes, wanted = SETTINGS[case]
    path, kind_of_path = "digits", kind
    if kind == "folder":
        path = image_folder(tmp_path / "images")
    elif kind in IMAGES and kind != "builtin":
        path = write_images(kind, tmp_path)
    elif kind in LINES:
        path = tmp_path / f"x.{kind}"
        path.write_bytes(table(kind, GOOD))
    kind = kind.removeprefix("images ")
    if case in ("missing", "unknown home"):
        gone = "gone/images.csv" if kind_of_path == "images csv" else "gone"
        path = tmp_path / gone if case == "missing" else "~nobody_here/x"
        wanted = "['digits', 'mnist5k']" if kind == "builtin" else wanted
    source = changes.get("source", f"{kind}:{path}")
    section = section_of(f"{kind}:{path}", models)
    if kind_of_path == "images csv":
        section = section_of("csv:/images.csv", models)
    is_image = section.modality == "image"
    if case == "another modality":
        source = f"{'text' if is_image else 'folder'}:{path}"
    section.update({**changes, "source": source})
    check(outcome(section), wanted)
    if case != "another modality":
        flags = {"split": changes["split"]} if "split" in changes else {}
        out = tmp_path / "out.npz"
        told = through_features(main, source, models, out, kind=kind_of_path, **flags)
        check(told, wanted)


@pytest.mark.parametrize("kind", ["folder", "csv", "text"])
def test_a_home_directory_is_expanded(main, tmp_path, models, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    if kind == "folder":
        image_folder(tmp_path / "x")
    else:
        (tmp_path / "x").write_bytes(table(kind, GOOD))
    check(outcome(section_of(f"{kind}:~/x", models)), GOOD)
    check(through_features(main, f"{kind}:~/x", models, tmp_path / "out.npz"), GOOD)
