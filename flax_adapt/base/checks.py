"""Rules about a config, all in one form: a condition, and the message where it fails.

A module lists rules of the section that it owns, and says which stages have that section:

    ROWS = (
        one_of("ema.schedule", lambda ema: ema.schedule, SCHEDULES),
        Row(
            lambda ema: 0 <= ema.momentum <= 1,
            "ema.momentum={0.momentum} must lie in [0, 1]",
        ),
    )
    CHECKS = (Check(lambda at: present(at.section.ema), ROWS),)

`stage/check.py` runs the CHECKS of all modules over all stages before anything starts. A
function that builds something from such a section itself calls `run(ROWS, section)`.
Conditions on opened data or loaded weights are checked by the code that reads these.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax_adapt.base.errors import UserError, unknown


class Context(NamedTuple):
    """One stage of an experiment, with the whole config and the earlier stages.

    config: of the experiment. section: of the stage. earlier: {name: section} of the
    stages before it; names are those that follow `stage:` in a config (NAME, or
    NAME/seed_S).
    """

    config: Any
    section: Any
    earlier: Mapping[str, Any]


class Row(NamedTuple):
    """One rule: the condition `holds(subject)`, and the message where it is false.

    message: a `str.format` template of the subject, "{0.field}", or a function of it.
    """

    holds: Callable[[Any], Any]
    message: str | Callable[[Any], str]

    def mistake(self, subject: Any) -> str | None:
        """Returns the message about `subject`, or None where the rule holds."""
        if self.holds(subject):
            return None
        if isinstance(self.message, str):
            return self.message.format(subject)
        return self.message(subject)


class Check(NamedTuple):
    """Rules, and a function that returns the subjects a stage has for them, if any."""

    subjects: Callable[[Context], Iterable[Any]]
    rows: Sequence[Row]


def present(*sections: Any) -> list[Any]:
    """Returns the sections that a stage has: those that are not None."""
    return [section for section in sections if section is not None]


def stage(context: Context) -> list[Context]:
    """Returns the subject of rules about a stage as a whole: its context."""
    return [context]


def one_of(
    field: str,
    value_of: Callable[[Any], str],
    table: Mapping[str, Any] | Sequence[str],
) -> Row:
    """Returns the rule that a field must name an entry of a table."""
    return Row(
        lambda subject: value_of(subject) in table,
        lambda subject: unknown(field, value_of(subject), table),
    )


def builds(build: Callable[[Any], Any]) -> Row:
    """Returns the rule that `build(subject)` raises no UserError, whose text is the message."""

    def fault(subject: Any) -> str:
        try:
            build(subject)
        except UserError as error:
            return str(error)
        return ""

    return Row(lambda subject: not fault(subject), fault)


class Mistake(NamedTuple):
    """A rule that does not hold, and its message."""

    row: Row
    text: str


def first_mistake(checks: Iterable[Check], context: Context) -> Mistake | None:
    """Returns the first mistake of a stage, in the order of checks, subjects and rows.

    Later ones are not reported: rules may rely on those before them.
    """
    for check in checks:
        for subject in check.subjects(context):
            for row in check.rows:
                text = row.mistake(subject)
                if text is not None:
                    return Mistake(row, text)
    return None


def run(rows: Iterable[Row], subject: Any) -> None:
    """Raises UserError for the first rule that does not hold for `subject`."""
    for row in rows:
        text = row.mistake(subject)
        if text is not None:
            raise UserError(text)
