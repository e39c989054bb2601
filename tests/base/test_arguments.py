"""Config arguments: NAME=VALUE,... of the types of their defaults, commas in quotes."""

import re

import pytest

from flax_adapt.base import config
from flax_adapt.base.errors import UserError

DEFAULTS = dict(rounds=1, rate=0.5, init="", compare=True)


def test_arguments_take_the_type_of_their_default():
    args = config.parse_arguments("rounds=3,init=a=b,compare=False,rate=2", **DEFAULTS)
    assert args.to_dict() == dict(rounds=3, rate=2.0, init="a=b", compare=False)
    assert type(args.rate) is float
    assert config.parse_arguments("", **DEFAULTS).to_dict() == DEFAULTS


def test_parsed_arguments_are_locked():
    with pytest.raises(AttributeError):
        config.parse_arguments("", **DEFAULTS).round = 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("round=1", "'round=1' is unknown; there are: rounds=1, rate=0.5, init=''"),
        ("rounds", "'rounds' is unknown"),
        ("rounds=x", "rounds='x' must be of type int"),
        ("rounds=1.5", "rounds='1.5' must be of type int"),
        ("rate=x", "rate='x' must be of type float"),
        ("compare=1", "compare='1' is unknown; choose one of ['False', 'True']"),
    ],
)
def test_a_wrong_argument_says_what_is_right(text, told):
    with pytest.raises(UserError, match=re.escape(told)):
        config.parse_arguments(text, **DEFAULTS)


@pytest.mark.parametrize(
    ("text", "init"),
    [
        ('init="folder:/data/a,b",rounds=2', "folder:/data/a,b"),
        ("rounds=2,init='a,b'", "a,b"),
        ("init='say \"a\", b',rounds=2", 'say "a", b'),
        ("init=it's,rounds=2", "it's"),
        ('init="",rounds=2', ""),
        ('init="a=1,b=2",rounds=2', "a=1,b=2"),
    ],
)
def test_a_value_in_quotes_may_have_commas(text, init):
    args = config.parse_arguments(text, **DEFAULTS)
    assert (args.init, args.rounds) == (init, 2)


def test_a_comma_that_is_not_quoted_is_told_how_to_be_written():
    with pytest.raises(UserError, match='in quotes: init="folder:/data/a,b" '):
        config.parse_arguments("rounds=2,init=folder:/data/a,b", **DEFAULTS)
