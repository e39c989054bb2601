"""Messages name what the user typed: an argument, a flag, a field by its whole flag."""

import pytest
from support.mistakes import MISTAKES, spoilt

from flax_adapt.base.errors import UserError
from flax_adapt.commands import typed
from flax_adapt.stage import check


def test_a_field_that_a_flag_set_is_named_by_that_flag():
    """Over the whole table of checks: what is said of a field, is said of `--config.FIELD`."""
    named = 0
    for text, (_, changes, experiment) in MISTAKES.items():
        with pytest.raises(UserError) as caught:
            check.experiment(spoilt(text))
        number = 0 if experiment else 1
        for field, value in changes.items():
            path = f"stages.{number}.{field}"
            told = typed.Typed({}, {}, {path: str(value)}).reword(str(caught.value))
            if f"{field}={value!r}" in str(caught.value):
                assert f"--config.{path}={value!r}" in told
                named += 1
    assert named > 50


# What is said, what was typed of which arguments, and what is said then.
SAID = [
    ("data.split='val': no", dict(test_split="val"), "test_split='val': no"),
    ("data.split='test': no", {}, "test_split='test': no"),  # by its default
    # Of no argument's value, and there is one argument alone for the field.
    ("data.split='odd': no", {}, "test_split='odd': no"),
    ("optim.lr=2.0: no", {}, "optim.lr=2.0: no"),  # advice is of data alone
    ("data.source='folder:x': no", dict(dataset="folder:x"), "dataset='folder:x': no"),
    ("data.source: x is UTF-16", dict(dataset="csv:x"), "dataset: x is UTF-16"),
    ("stage a: optim.lr=-1.0 must", dict(lr="-1"), "stage a: lr=-1.0 must"),
    ("num_steps=0 must be", dict(finetune_steps="0"), "finetune_steps=0 must be"),
    ("data.subset.per_class=9: no", dict(per_class="9"), "per_class=9: no"),
    ("see metadata.split='val'", dict(test_split="val"), "see metadata.split='val'"),
    (
        "hold some out with data.subset and part='rest'",
        {},
        "hold some out with per_class=NUMBER,test_split=rest",
    ),
]


@pytest.mark.parametrize(("message", "given", "said"), SAID)
def test_a_field_that_an_argument_set_is_named_by_that_argument(message, given, said):
    defaults = dict(dataset="", lr=0.1, steps=5, finetune_steps=7, per_class=0)
    known = {**defaults, "test_split": "test"}
    assert typed.Typed(given, known, {}).reword(message) == said


def test_a_command_line_is_reworded_as_a_whole(main, tmp_path):
    (tmp_path / "ant").mkdir()
    run = ("run", f"--workdir={tmp_path / 'w'}")
    source = f"dataset=folder:{tmp_path}"
    code, _, error = main(*run, f"--config=small_pretrain:{source}")
    assert (code, f"dataset='folder:{tmp_path}': no image in" in error) == (2, True)
    zero = "--config.stages[0].num_steps=0"
    code, _, error = main(*run, f"--config=small_pretrain:{source}", zero)
    assert (code, "--config.stages.0.num_steps=0 must be" in error) == (2, True)
    out = f"--out={tmp_path / 'x.npz'}"
    code, _, error = main(
        "features", "--init=/nowhere", f"--data=folder:{tmp_path}", out
    )
    assert (code, "data.source" in error) == (2, False)
