"""A stage goes on with the data it began with, or says in one line what has changed."""

import json

import pytest
from PIL import Image
from support import tiny, tiny_text

from flax_adapt.base.errors import UserError
from flax_adapt.stage import data as inputs
from flax_adapt.stage import same_data
from flax_adapt.stage.stage import Stage


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / "data/train" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("L", (8, 8), number).save(folder / f"{number}.bmp")
    return tmp_path / "data"


@pytest.fixture
def begun(images, tmp_path):
    """A stage with a checkpoint, and what checks its data."""
    section = tiny.pretrain(data={**tiny.digits(), "source": f"folder:{images}"})
    config = tiny.experiment(section)
    stage = Stage(config, config.stages[0], 0, tmp_path / "run")
    (stage.folder / "checkpoints/1").mkdir(parents=True)

    def check():
        same_data.check(stage, inputs.open_training(stage), None)

    check()
    return stage, check


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda train: Image.new("L", (9, 9)).save(train / "a/0.bmp"), "sizes: "),
        (lambda train: (train / "a/0.bmp").rename(train / "a/5.bmp"), "names: "),
        (lambda train: (train / "a/0.bmp").unlink(), "rows: 4 -> 3"),
    ],
)
def test_a_file_that_changed_between_kill_and_resume_is_refused(
    begun, images, change, text
):
    begun[1]()
    change(images / "train")
    with pytest.raises(UserError, match=r"is not what the stage began with") as caught:
        begun[1]()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_of_the_version_before_goes_on_and_is_watched_from_then_on(begun):
    file = begun[0].folder / "data.json"
    now = json.loads(file.read_text())
    assert now.keys() == {"rows", "class_names", "names", "sizes"}
    file.write_text(json.dumps({name: now[name] for name in ("rows", "class_names")}))
    begun[1]()
    assert json.loads(file.read_text()) == now


def test_a_damaged_note_of_the_data_is_one_line(begun):
    (begun[0].folder / "data.json").write_text("[]")
    with pytest.raises(UserError, match=r"data\.json is damaged: put it back, or"):
        begun[1]()


@pytest.fixture
def evaluated(tmp_path):
    """A classifier of texts with a checkpoint, and what checks its two sets."""
    for split in ("train", "test"):
        lines = [f"good {number},a\nbad {number},b\n" for number in range(3)]
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join(lines))
    model = tiny_text.bert_folder(tmp_path / "bert")
    train, test = (
        tiny_text.section(f"csv:{tmp_path}", model, split=split)
        for split in ("train", "test")
    )
    measure = {**tiny.finetune()["eval"], "data": test}
    section = {**tiny.finetune(eval=measure, init_from="scratch"), "data": train}
    config = tiny.experiment(section, model=tiny.TEXT_MODEL)
    stage = Stage(config, config.stages[0], 0, tmp_path / "run")

    def check():
        opened = inputs.open_examples(stage, stage.config.eval.data)
        same_data.check(stage, inputs.open_training(stage), opened)

    check()
    (stage.folder / "checkpoints/1").mkdir(parents=True)
    return stage, check


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [("good 1", "gone 1", "contents: "), ("bad 1,b", "bad 1,a", "labels: ")],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_changed_texts_and_labels_to_train_and_to_evaluate_on_are_refused(
    evaluated, tmp_path, split, old, new, text
):
    stage, check = evaluated
    check()
    file = tmp_path / f"{split}.csv"
    file.write_text(file.read_text().replace(old, new))
    notes = {path: path.read_bytes() for path in stage.folder.glob("*.json")}
    where = "eval.data csv:.* test" if split == "test" else "csv:[^ ]*"
    with pytest.raises(UserError, match=rf"finetune: {where} is not what") as caught:
        check()
    assert text in str(caught.value)
    assert {path: path.read_bytes() for path in notes} == notes


def test_evaluation_data_of_the_version_before_are_watched_from_then_on(evaluated):
    stage, check = evaluated
    (stage.folder / "eval_data.json").unlink()
    check()
    now = json.loads((stage.folder / "eval_data.json").read_text())
    assert {"rows", "class_names", "names", "contents", "labels"} == now.keys()
