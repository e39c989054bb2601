"""`show`: every argument with its type, default and line; every field; what was meant."""

import json

import pytest

from flax_adapt.base import arguments
from flax_adapt.base import config as configs
from flax_adapt.commands.table import COMMANDS


@pytest.mark.parametrize("name", configs.list_shipped())
def test_every_argument_of_every_config_has_a_type_a_default_and_a_line(name):
    found = arguments.arguments_of(name)
    assert {one.name: one.default for one in found} == configs.argument_defaults(name)
    assert [
        one.name for one in found if not one.help or "as in " in one.help[:20]
    ] == []
    assert {one.type for one in found} <= {"str", "int", "float", "bool"}


def test_an_entry_of_a_docstring_may_have_several_names_and_lines(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        '"""Ours.\n\nRun     flax-adapt run\n        steps, lr  of training,\n'
        "                  in all stages\n        init, heads ...: as in vit_finetune\n"
        'Expect  init  nothing\n"""\nfrom flax_adapt.base import config as configs\n'
        "def get_config(arguments=''):\n"
        "    return configs.parse_arguments(arguments, steps=1, lr=0.1, init='', x=True)\n"
    )
    steps, lr, init, x = arguments.arguments_of(str(file))
    assert steps == ("steps", "int", 1, "of training, in all stages")
    assert lr.help == steps.help
    assert (
        init.help
        == {a.name: a.help for a in arguments.arguments_of("vit_finetune")}["init"]
    )
    assert x == ("x", "bool", True, "")


def test_show_lists_arguments_without_weights_or_data_and_takes_values(main):
    code, out, _ = main("show", "--config=vit_finetune:per_class=3")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("per_class"))
    assert row.split()[:4] == ["per_class", "int", "0", "3"]
    assert "number of labelled images" in row


def test_show_lists_the_fields_as_a_table_and_as_json(main):
    code, out, _ = main("show", "--config=small_pretrain:steps=7", "--fields")
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[2:])
    assert rows["stages.0.num_steps"] == "7"
    code, out, _ = main("show", "--config=small_pretrain:steps=7", "--fields", "--json")
    whole = json.loads(out)
    assert code == 0
    assert {name: repr(value) for name, value in whole["fields"].items()} == rows
    assert next(one for one in whole["arguments"] if one["name"] == "steps") == {
        **dict(name="steps", type="int", default=1500, value=7),
        "help": "optimizer steps of 256 images",
    }


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("shwo", "show"),
        ("show --config=vit_finetun", "vit_finetune"),
        ("show --config=VIT_FINETUNE", "vit_finetune"),
        ("show --config=vit_finetune:pre_class=1", "per_class"),
        ("run --workdir=w --config=quickstart:stepz=1", "steps"),
        ("run --workdir=w --config=quickstart:zzz=1", ""),
        (
            "run --workdir=w --config=quickstart --config.stages.0.num_stps=1",
            "num_steps",
        ),
        ("run --workdir=w --config=quickstart --config.sed=1", "seed"),
        ("features --init=x --data=y --out=z.npz --splitt=a", "split"),
        ("features --init=x --data=y --out=z.npz --pooling=men", "mean"),
    ],
)
def test_a_name_that_is_spelled_alike_is_suggested(main, line, meant):
    code, _, error = main(*line.split())
    assert code == 2
    assert (
        f"did you mean '{meant}'?" in error
        or f"Did you mean: {meant}" in error
        or not meant
    )
    assert ("id you mean" in error) == bool(meant)


def test_what_is_spelled_unlike_everything_is_no_suggestion(main):
    assert "did you mean" not in main("qqq")[2]
    assert "show" in COMMANDS
