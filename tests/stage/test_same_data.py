"""A stage goes on with the data it began with, or says in one line what has changed."""

import json

import pytest
from PIL import Image
from support import tiny

from flax_adapt.base.errors import UserError
from flax_adapt.stage import data as inputs
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
        inputs.check_same_data(stage, inputs.open_training(stage))

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
