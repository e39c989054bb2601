"""Methods against forgetting, for a stage in a sequence of tasks of any length.

Each method changes the penalties, the replay and the section `fisher` of a stage; values are
those of `baselines`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax_adapt.base import checks
from flax_adapt.base.checks import Row
from flax_adapt.base.errors import UserError, choose
from flax_adapt.defaults import baselines, sections

MASKED, CLASSIFY, GROW, GLAD = "masked", "classify", "grow", "glad"


class Tasks(NamedTuple):
    """The tasks before a stage.

    of: references to their stages. data: their data sections. is_masked: they are learnt
    without labels. is_last: no task follows the stage. ratio, buffer_size: of replay, see
    `sections.replay`. weight: of the method's penalty; 0: the value of `baselines`.
    """

    of: tuple[str, ...]
    data: tuple[dict[str, Any], ...]
    is_masked: bool
    is_last: bool
    ratio: float
    buffer_size: int
    weight: float

    def replay(self) -> dict[str, Any]:
        """Returns the section `replay` of all earlier tasks."""
        ratio, size = self.ratio or 1.0, self.buffer_size
        return sections.replay(self.data, ratio, buffer_size=size)

    def set_weight(self, penalty: dict[str, Any]) -> dict[str, Any]:
        """Returns the penalty with `weight`; 0: with its own weight."""
        return {**penalty, "weight": self.weight or penalty["weight"]}


def _none(tasks: Tasks) -> dict[str, Any]:
    return {}


def _er(tasks: Tasks) -> dict[str, Any]:
    """Returns replay of earlier tasks; without labels their loss is that of new examples."""
    if not tasks.of:
        return {}
    own = () if tasks.is_masked else (tasks.set_weight(baselines.er()),)
    return dict(replay=tasks.replay(), penalties=own)


def _der(tasks: Tasks) -> dict[str, Any]:
    """Returns DER++: replay of earlier tasks, by their logits and their labels."""
    if not tasks.of:
        return {}
    both = (tasks.set_weight(baselines.der(tasks.of)), baselines.er(weight=0.5))
    return dict(replay=tasks.replay(), penalties=both)


def _lwf(tasks: Tasks) -> dict[str, Any]:
    last = tasks.of[-1:]
    return dict(penalties=tuple(tasks.set_weight(baselines.lwf(of)) for of in last))


def _ewc(tasks: Tasks) -> dict[str, Any]:
    """Returns a penalty for each earlier task, around its weights (Kirkpatrick et al. 2017)."""
    return _ewc_fields(tasks, tasks.of, decay=0.0)


def _online_ewc(tasks: Tasks) -> dict[str, Any]:
    """Returns one penalty around the weights of the last task (Schwarz et al. 2018).

    Its Fisher information is the sum of those of all earlier tasks.
    """
    return _ewc_fields(tasks, tasks.of[-1:], decay=1.0)


def _ewc_fields(tasks: Tasks, of: tuple[str, ...], decay: float) -> dict[str, Any]:
    """Returns the penalty of EWC, and the section `fisher` for the tasks that follow.

    of: stages with a penalty each. decay: factor of the earlier Fisher information in that
    of this stage; 0: only its own.
    """
    labels = "empirical" if tasks.is_masked else "model"
    fisher = None if tasks.is_last else baselines.fisher(labels=labels, decay=decay)
    penalties = (tasks.set_weight(baselines.ewc(of)),) if of else ()
    return dict(penalties=penalties, fisher=fisher)


class Method(NamedTuple):
    """A method against forgetting.

    fields: earlier tasks -> fields of the stage. learns: the objectives that it supports.
    replays: whether it replays examples of earlier tasks. all_classes: whether the head has
    the classes of the whole sequence from the first task on, since stored logits have as
    many (Buzzega et al. 2020).
    """

    fields: Callable[[Tasks], dict[str, Any]]
    learns: tuple[str, ...]
    replays: bool = False
    all_classes: bool = False


METHODS = {
    "none": Method(_none, (MASKED, CLASSIFY, GROW, GLAD)),
    "er": Method(_er, (MASKED, GROW), replays=True),
    "der": Method(_der, (GROW,), replays=True, all_classes=True),
    "lwf": Method(_lwf, (GROW,)),
    "ewc": Method(_ewc, (MASKED, CLASSIFY, GROW)),
    "online_ewc": Method(_online_ewc, (MASKED, CLASSIFY, GROW)),
}
# Objective -> why a method that compares predictions or weights does not support it.
_WHY = {
    MASKED: "has no predictions of classes to compare",
    CLASSIFY: "drops the head of their classes",
    GLAD: "drops the head of their classes and the adaptors that it stands on",
}


def method_of(args: Any) -> Method:
    """Returns the method that the arguments choose; rho alone means experience replay.

    Raises UserError for an unknown method.
    """
    method = choose("method", args.method, METHODS)
    return METHODS["er"] if args.rho and args.method == "none" else method


def check(args: Any, learns: str) -> None:
    """Raises UserError for method, rho, buffer_size or penalty that do not fit together.

    learns: MASKED, or the objective of a supervised sequence, which the method must support.
    """
    method = method_of(args)
    what = f"method={args.method}" if args.method != "none" else f"rho={args.rho}"
    if learns not in method.learns:
        others = "|".join(name for name, one in METHODS.items() if learns in one.learns)
        ways = [f"objective={way}" for way in (CLASSIFY, GROW) if way in method.learns]
        raise UserError(
            f"{what} holds on to earlier domains, but objective={args.objective} "
            f"{_WHY[learns]}: use {' or '.join(ways)}, or method={others} without rho"
        )
    checks.run(_ROWS, args)


_ROWS = (
    Row(lambda it: it.rho >= 0, "rho={0.rho} must be at least 0"),
    Row(
        lambda it: it.buffer_size >= 0, "buffer_size={0.buffer_size} must be at least 0"
    ),
    Row(
        lambda it: method_of(it).replays or not (it.rho or it.buffer_size),
        "rho={0.rho} and buffer_size={0.buffer_size} are of replay, which "
        "method={0.method} has not: give method=er or der, or leave them at 0",
    ),
    Row(
        lambda it: it.penalty >= 0 and (it.method != "none" or not it.penalty),
        "penalty={0.penalty} is the weight of a method's penalty: give it a number above 0 "
        "and a method, such as method=ewc",
    ),
)
