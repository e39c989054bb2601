"""Finding, building, overriding and comparing configs, and what mistakes are told."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from support import tiny
from support.depth import examples_of

from flax_adapt.base import config
from flax_adapt.base.errors import UserError

GOOD = '''"""First line.

More.
"""
from ml_collections import ConfigDict

def get_config(arguments="none"):
    return ConfigDict({"arguments": arguments}).lock()
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_a_shipped_name_becomes_its_file_and_keeps_its_arguments():
    file = config.list_shipped()["vit_finetune"]
    assert file.name == "vit_finetune.py"
    assert config.resolve("vit_finetune") == str(file)
    colons = "dataset=folder:a/b,init=x"
    assert config.resolve(f"vit_finetune:{colons}") == f"{file}:{colons}"


def test_a_file_stays_as_it_is(file):
    assert config.resolve(f"{file}:a=b:c") == f"{file}:a=b:c"


def test_arguments_reach_get_config(file):
    assert config.load(str(file)).arguments == "none"
    assert config.load(f"{file}:a=1,b=c:d").arguments == "a=1,b=c:d"


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(
        UserError,
        match=r"--config='nope'.*\['adapt', 'baseline_f.*'quickstart'.*'vit_fin",
    ):
        config.load("nope")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--config=.*/no\.py: there is no such file"):
        config.load(f"{tmp_path}/no.py:a=1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("x = 1", "AttributeError: .*get_config"),
        ("def get_config(): return 1", "TypeError: .*1 was given"),
    ],
)
def test_a_file_that_does_not_work_is_a_user_error(file, text, told):
    file.write_text(text)
    with pytest.raises(UserError, match=told):
        config.load(f"{file}:a=1")


def test_the_summary_is_the_first_line_of_the_docstring(file):
    assert config.summary(file) == "First line."
    file.write_text("x = 1")
    assert config.summary(file) == ""


def test_a_built_config_and_its_stages_are_locked():
    built = config.build({"seed": 0, "stages": [{"name": "a", "optim": {"lr": 1.0}}]})
    assert built.stages[0].name == "a"
    with pytest.raises(AttributeError):
        built.seeds = 1
    with pytest.raises(AttributeError):
        built.stages[0].nam = "b"
    with pytest.raises(AttributeError):
        built.stages[0].optim.rate = 1


def test_plain_holds_what_json_holds():
    made = ConfigDict({"a": (1, {"b": None}), "c": ConfigDict({"d": "x"})})
    fields = config.plain(made)
    assert fields == {"a": [1, {"b": None}], "c": {"d": "x"}}
    assert json.loads(json.dumps(fields)) == fields


def test_flatten_names_every_value():
    fields = {"a": {"b": [1, {"c": 2}]}, "d": None}
    assert config.flatten(fields) == {"a.b.0": 1, "a.b.1.c": 2, "d": None}


def test_a_difference_names_old_and_new():
    old = {"seed": 0, "stages": [{"lr": 0.1}], "gone": 1}
    new = {"seed": 0, "stages": [{"lr": 0.2}, {"lr": 0.3}]}
    assert config.difference(old, new) == [
        "stages.0.lr: 0.1 -> 0.2",
        "gone: 1 -> -",
        "stages.1.lr: - -> 0.3",
    ]


@pytest.mark.parametrize(
    ("old", "new"), [([1], []), ({"b": 1}, {}), (None, []), (None, "None"), (0, "0")]
)
def test_a_difference_is_never_missed(old, new):
    assert config.difference({"a": old, "z": 0}, {"a": new, "z": 0})


@pytest.fixture
def added(monkeypatch):
    """A version that added a rate to the optimizer, a section, and a field of data."""
    table = {
        r"stages\.\d+\.optim\.rate": 0.5,
        r"stages\.\d+\.extra": None,
        r"(.*\.)?data\.size": [8, 8],
        r"whole": {"a": 1, "b": (2,)},
    }
    monkeypatch.setattr(config, "ADDED", table)


def staged(optim, **fields):
    return {"stages": [{"optim": {"lr": 1}}, {"optim": optim, **fields}]}


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("new", "changes"),
    [
        (staged({"lr": 1, "rate": 0.5}), []),
        (staged({"lr": 1, "rate": 0.6}), ["stages.1.optim.rate: 0.5 -> 0.6"]),
        (staged({"lr": 1}, extra=None), []),
        (
            staged({"lr": 1}, extra={"a": 1}),
            ["stages.1.extra: None -> -", "stages.1.extra.a: - -> 1"],
        ),
        (staged({"lr": 1, "other": 0.5}), ["stages.1.optim.other: - -> 0.5"]),
        ({**staged({"lr": 1}), "rate": 0.5}, ["rate: - -> 0.5"]),
        ({**staged({"lr": 1}), "whole": {"a": 1, "b": [2]}}, []),
        ({**staged({"lr": 1}), "whole": {"a": 3, "b": [2]}}, ["whole.a: 1 -> 3"]),
    ],
)
def test_a_field_that_was_added_since_counts_as_what_was_done_before(new, changes):
    assert config.difference(staged({"lr": 1}), new) == changes


@pytest.mark.usefixtures("added")
def test_an_added_field_is_known_wherever_its_section_lies():
    old = {"data": {}, "eval": {"data": {"x": 1}}, "list": [{"data": {}}, {"data": {}}]}
    size = {"size": [8, 8]}
    new = {"data": size, "eval": {"data": {"x": 1, **size}}, "list": [{"data": size}]}
    gone = {**old, "list": [{"data": {}}]}
    assert config.difference(gone, new) == []
    assert config.difference(old | {"list": [{"data": {}}, {"a": 1}]}, new) == [
        "list.1.a: 1 -> -"
    ]


@pytest.mark.usefixtures("added")
def test_a_field_that_was_stored_is_never_replaced():
    old, new = staged({"lr": 1, "rate": 0.7}), staged({"lr": 1, "rate": 0.5})
    assert config.difference(old, new) == ["stages.1.optim.rate: 0.7 -> 0.5"]


NAMES = st.text("abc", min_size=1, max_size=2)
LEAVES = st.one_of(st.integers(0, 2), st.sampled_from(["x", None]))
# That an empty section is there or not is no difference.
FIELDS = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=2)
            | st.dictionaries(NAMES, inner, min_size=1, max_size=2)
        ),
        max_leaves=6,
    ),
    max_size=3,
)


@settings(deadline=None, max_examples=examples_of(200))
@given(old=FIELDS, new=FIELDS)
def test_only_equal_configs_have_no_difference(old, new):
    assert not config.difference(old, json.loads(json.dumps(old)))
    if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
        assert config.difference(old, new)


@pytest.mark.parametrize(
    ("argument", "bracketed"),
    [
        ("--config.stages.0.lr=1", "--config.stages[0].lr=1"),
        ("-config.a.12=b.3.c", "-config.a[12]=b.3.c"),
        ("--config.a.0.1.b=1", "--config.a[0][1].b=1"),
        ("--config.a1.b2=1", "--config.a1.b2=1"),
        ("--config=x:a.0.b", "--config=x:a.0.b"),
        ("--out=a.0.b", "--out=a.0.b"),
    ],
)
def test_only_indices_of_an_override_are_bracketed(argument, bracketed):
    assert config.bracket_indices(argument) == bracketed


@pytest.fixture(scope="module")
def experiment():
    return tiny.experiment(tiny.pretrain(), tiny.finetune())


@pytest.mark.parametrize(
    "argument",
    [
        "--config.seed=1",
        "--config.stages.1.optim.lr=1",
        "--config.stages[1].optim.lr=1",
        "--config.stages.0.seeds=(1,2)",
        "--config.stages.0.eval=None",
        "--workdir=x.y",
        "--config=x",
    ],
)
def test_an_override_of_a_value_passes(experiment, argument):
    config.check_override(experiment, argument)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--config.sed=1", "--config.sed: the field='sed' is unknown; choose one of"),
        ("--config.stages.0.optim.rl=1", "'rl' is unknown; choose one of ['accum_st"),
        ("--config.stages.2.name=a", "the index='2' is unknown; choose one of ['0'"),
        ("--config.stages.x.name=a", "the index='x' is unknown"),
        ("--config.stages[-1].name=a", "the index='-1' is unknown"),
        ("--config.seed.x=1", "a value has no field 'x'"),
        ("--config.stages=1", "--config.stages is a section: give one of its fields"),
        ("--config.stages.0=1", "--config.stages.0 is a section"),
        ("--config.model=1", "--config.model is a section"),
    ],
)
def test_an_override_of_what_is_not_there_says_what_is(experiment, argument, told):
    with pytest.raises(UserError, match=re.escape(told)):
        config.check_override(experiment, argument)
