"""Says what would fit where a device has no memory left for a run of a stage."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
from ml_collections import ConfigDict

from flax_adapt.base import errors, logs
from flax_adapt.base.errors import UserError
from flax_adapt.plan import fitting, report
from flax_adapt.plan.fitting import Fit
from flax_adapt.stage import data as inputs
from flax_adapt.stage.draws import change_fields
from flax_adapt.stage.stage import Stage

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class DoesNotFitError(UserError):
    """A run of a stage that does not fit into the devices, with what would.

    what: the stage, its batch and the devices. flags: settings that fit, "" for none. why:
    what is known of them, or why there are none.
    """

    def __init__(self, what: str, flags: str, why: str, *, same: bool = True):
        self.what, self.flags, self.why, self.same = what, flags, why, same
        super().__init__(f"{what}; {self._advise()}")

    def _advise(self) -> str:
        if not self.flags:
            return self.why
        how = "add it to the same command, which goes on"
        how = how if self.same else "give it with another --workdir"
        return f"{self.flags} fits ({self.why}): {how}"

    def reword(self, command: str, then: str) -> UserError:
        """Returns the error for a command without such flags: `command` takes them."""
        if not self.flags:
            return self
        return UserError(
            f"{self.what}; `{command} {self.flags}` fits ({self.why}): {then}"
        )


def explain(
    function: Callable[Concatenate[Stage, P], T],
) -> Callable[Concatenate[Stage, P], T]:
    """Returns a function of a stage that raises DoesNotFitError where a device is full."""

    @functools.wraps(function)
    def explained(stage: Stage, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(stage, *args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            full_disk = errors.full_disk(error) is not None
            if errors.OUT_OF_MEMORY not in str(error) or full_disk:
                raise
        # The arrays of the run are free by now: only the error's traceback held them.
        raise _find_advice(stage)

    return explained


def name_devices() -> str:
    """Returns the number and kind of the devices."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def read_limit() -> int:
    """Returns the bytes that a program may use on a device, 0 where it does not tell."""
    return int((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0))


def keep_savings(config: Any, workdir: Path) -> Any:
    """Returns a config whose stages save memory as the run of a workdir did.

    So a command without such settings goes on with those of `flax-adapt run`.
    """
    path = workdir / "config.json"
    stored = logs.read_json(path) if path.exists() else None
    stages = stored.get("stages") if isinstance(stored, dict) else None
    if not isinstance(stages, list):  # a damaged file is told by `recipe.run`
        return config
    known = {one["name"]: one for one in stages}

    def keep(section: Any) -> Any:
        one = known.get(section.name)
        if one is None:
            return section
        parts = one["optim"]["accum_steps"]
        optim = change_fields(section.optim, accum_steps=parts)
        saved = ConfigDict({**section.memory, **(one.get("memory") or {})})
        return change_fields(section, optim=optim, memory=saved)

    return change_fields(config, stages=tuple(map(keep, config.stages))).lock()


def _find_advice(stage: Stage) -> DoesNotFitError:
    what = (
        f"stage {stage.label}: batch_size={stage.config.batch_size} does not fit into the "
        f"memory of {name_devices()}"
    )
    more = "`flax-adapt plan --search` tries other batches and meshes"
    if jax.process_count() > 1:
        # The others may not have stopped, nor compile with this one.
        return DoesNotFitError(what, "", more)
    # An error, so that a sweep or a timing that is quiet says it, too.
    log.error("stage %s does not fit; compiling what may, for minutes", stage.label)
    try:
        fit = _find_fit(stage)
    except Exception as error:
        # Of any compiler: the batch is what the user must know of.
        reason = " ".join(str(error).split())[:200]
        return DoesNotFitError(
            what, "", f"the search for what fits failed ({reason}); {more}"
        )
    if fit is None:
        return DoesNotFitError(what, "", f"nothing that was tried fits; {more}")
    flags = " ".join(f"--config.{name}={value}" for name, value in fit.changes.items())
    return DoesNotFitError(what, flags, _describe(fit), same=fit.same)


def _find_fit(stage: Stage) -> Fit | None:
    classes = inputs.num_classes(stage, inputs.open_training(stage))
    return fitting.find_fit(stage, _number_of(stage), read_limit(), classes)


def _number_of(stage: Stage) -> int:
    """Returns the number in the config of the stage that a run belongs to.

    Runs of a sweep or of a fold are named as NAME/lr_0.1 or FIRST/held_out/NAME.
    """
    names = [section.name for section in stage.experiment.stages]
    known = [part for part in stage.config.name.split("/") if part in names]
    if not known:
        raise UserError(f"the config has no stage {stage.config.name}")
    return names.index(known[-1])


def _describe(fit: Fit) -> str:
    need = f"needs {report.format_size(fit.bytes)}"
    if fit.limit and not 0 < fit.before <= fit.limit:
        text = f"{need} of {report.format_size(fit.limit)}"
    else:
        text = (
            f"{need} instead of {report.format_size(fit.before)}"
            if fit.before
            else need
        )
    same = "the results stay, but for rounding"
    return f"{text}; {same if fit.same else 'a smaller batch changes the results'}"
