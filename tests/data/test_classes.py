"""Classes that cannot be learnt are refused before anything is trained or measured."""

import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import tiny, tiny_text

from flax_adapt import data
from flax_adapt.base import errors
from flax_adapt.data import classes


def images(root, **folders):
    """Examples of split -> classes, by split; two images a class."""
    for split, names in folders.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8)).save(root / split / name / f"{number}.png")
    section = {**tiny.digits(), "source": f"folder:{root}"}
    return [
        data.open_examples(ConfigDict({**section, "split": split}), "")
        for split in folders
    ]


def texts(root, kind, **labels):
    """Examples of split -> labels, by split."""
    model = tiny_text.bert_folder(root / "model")
    for split, names in labels.items():
        rows = [{"text": "the cat", "label": name} for name in names]
        if kind == "jsonl":
            tiny_text.jsonl(root / f"{split}.jsonl", rows)
        else:
            lines = "".join(f"the cat,{name}\n" for name in names)
            (root / f"{split}.csv").write_text(f"text,label\n{lines}")
    return [
        data.open_examples(tiny_text.section(f"{kind}:{root}", model, split=split), "")
        for split in labels
    ]


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (("n01", "n02"), ("images",), "'images' (2 examples); the training data have"),
        (("Cat", "Dog"), ("cat", "dog"), "'cat' (2 examples, is it 'Cat'?), 'dog' (2"),
        (("a_b", "c"), ("a b", "c"), "'a b' (2 examples, is it 'a_b'?); the training"),
        (("a", "b"), ("a", "b", "c"), "'c' (2 examples); the training data have ['a',"),
    ],
)
def test_a_class_that_only_the_test_images_have_is_refused(tmp_path, train, test, told):
    learnt, asked = images(tmp_path, train=train, test=test)
    assert learnt.class_names == asked.class_names
    with pytest.raises(errors.UserError) as caught:
        classes.check_same(learnt, asked)
    assert f"folder:{tmp_path} test has classes without a single example in" in str(
        caught.value
    )
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_class_that_only_the_test_texts_have_is_refused(tmp_path, kind):
    """pandas writes whole numbers beside a missing one as 1.0."""
    learnt, asked = texts(tmp_path, kind, train=("1", "0"), test=("1.0", "0.0"))
    with pytest.raises(errors.UserError, match=r"'0\.0' \(1 example, is it '0'\?\), "):
        classes.check_same(learnt, asked)


def test_a_class_without_a_test_example_and_many_names_are_fine(tmp_path):
    learnt, asked = images(tmp_path, train=("a", "b"), test=("b",))
    classes.check_same(learnt, asked)
    classes.check_several(learnt)
    names = [f"class{number}" for number in range(30)]
    learnt, asked = images(tmp_path / "many", train=("a",), test=names)
    with pytest.raises(errors.UserError, match="and 25 more; the training data have"):
        classes.check_known(learnt, asked)


def test_numbers_of_other_classes_are_refused(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    (learnt,) = images(first, train=("a", "b", "c"))
    (asked,) = images(second, test=("b", "c"))
    with pytest.raises(
        errors.UserError, match=r"list the same in data\.classes of both"
    ):
        classes.check_same(learnt, asked)


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        (
            ("train/cat", "train/dog", "test/cat"),
            "splits ['test', 'train']: is folder:",
        ),
        (("cat", "dog"), "folders ['cat', 'dog']: is folder:"),
    ],
)
def test_one_class_is_refused_and_a_level_down_is_proposed(tmp_path, inner, told):
    for name in inner:
        (tmp_path / "archive" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "archive" / name / "1.png")
    section = {**tiny.digits(), "source": f"folder:{tmp_path}"}
    examples = data.open_examples(ConfigDict(section), "")
    assert examples.class_names == ("archive",)
    with pytest.raises(errors.UserError) as caught:
        classes.check_several(examples)
    assert "are of the class 'archive', and a classifier needs two or more; " in str(
        caught.value
    )
    assert f"{told}{tmp_path / 'archive'} meant?" in str(caught.value)


def test_one_class_of_texts_is_refused(tmp_path):
    (examples,) = texts(tmp_path, "jsonl", train=("a", "a"))
    with pytest.raises(errors.UserError, match="all 2 labelled examples are of the cl"):
        classes.check_several(examples)
