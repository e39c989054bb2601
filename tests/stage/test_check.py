"""One pass over the stages finds what is wrong with a config; each of its rows can speak."""

import importlib
import pkgutil
import types

import pytest
from support import tiny
from support.mistakes import MISTAKES, spoilt

import flax_adapt
from flax_adapt.base.checks import Check, Row, one_of
from flax_adapt.base.errors import UserError
from flax_adapt.objectives import ema
from flax_adapt.stage import check


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_stage_before_anything_runs(text):
    with pytest.raises(UserError) as caught:
        check.experiment(spoilt(text))
    message = str(caught.value)
    assert message.startswith(f"stage {spoilt(text).stages[-1].name}: ")
    assert text in message
    assert "\n" not in message


def test_every_row_finds_its_mistake_and_no_two_mistakes_are_alike():
    found = [check.first_mistake(spoilt(text)) for text in MISTAKES]
    rows = {row for gathered in check.gather() for row in gathered.rows}
    silent = rows - {mistake.row for mistake in found}
    assert [str(row.message) for row in silent] == []
    assert len({mistake.text for mistake in found}) == len(MISTAKES)


def modules():
    """All modules of the package."""
    prefix = f"{flax_adapt.__name__}."
    names = [info.name for info in pkgutil.walk_packages(flax_adapt.__path__, prefix)]
    return [importlib.import_module(n) for n in names if not n.endswith("__main__")]


def test_whatever_module_lists_checks_is_asked():
    owners = [module for module in modules() if "CHECKS" in vars(module)]
    assert {owner.__name__ for owner in owners} == {
        owner.__name__ for owner in check.OWNERS
    }
    assert len(check.OWNERS) == len(owners)


def test_a_row_beside_the_code_of_a_feature_is_all_that_a_rule_takes(monkeypatch):
    """A planted row, of a module that is there and of a new one."""
    even = Row(lambda at: at.section.num_steps % 2 == 0, "{0.section.num_steps} is odd")
    planted = Check(lambda at: [at], (even,))
    config = tiny.experiment(tiny.pretrain(num_steps=7))
    check.experiment(config)
    with monkeypatch.context() as patch:
        patch.setattr(ema, "CHECKS", (*ema.CHECKS, planted))
        with pytest.raises(UserError, match="stage pretrain: 7 is odd"):
            check.experiment(config)
        check.experiment(tiny.experiment(tiny.pretrain(num_steps=8)))
    patch = types.SimpleNamespace(CHECKS=(planted,))
    monkeypatch.setattr(check, "OWNERS", [*check.OWNERS, patch])
    with pytest.raises(UserError, match="stage pretrain: 7 is odd"):
        check.experiment(config)


def test_the_first_mistake_in_the_order_of_stages_and_rows_is_told():
    config = tiny.experiment(
        tiny.pretrain(batch_size=0, num_steps=0), tiny.pretrain("later", seeds=())
    )
    with pytest.raises(UserError, match=r"^stage pretrain: num_steps=0 must"):
        check.experiment(config)


def test_a_message_shows_values_as_they_are():
    """Braces in a value are no template, and a name that is unknown lists the choices."""
    row = Row(lambda subject: False, "found {0.value!r}")
    assert row.mistake(types.SimpleNamespace(value="{0.x}")) == "found '{0.x}'"
    named = one_of("field", lambda subject: subject, {"b": 1, "a": 2})
    assert named.mistake("a") is None
    assert named.mistake("c") == "field='c' is unknown; choose one of ['a', 'b']"


def test_stages_need_names_of_their_own():
    for stages in ((), (tiny.pretrain(), tiny.pretrain())):
        with pytest.raises(UserError, match="every stage needs a name of its own"):
            check.experiment(tiny.experiment(*stages))
