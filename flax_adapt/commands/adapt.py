"""From own data to an adapted model: chooses the recipe, prints it, runs it, hands over."""

import contextlib
import functools
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from flax_adapt.base import config as configs
from flax_adapt.base import errors, logs
from flax_adapt.base.errors import UserError
from flax_adapt.commands import adapt_screen, values
from flax_adapt.commands.table import COMMANDS, MACHINE, REQUIRED
from flax_adapt.commands.workdir import name_path, open_workdir
from flax_adapt.data import source as sources
from flax_adapt.experiment import budget as budgets
from flax_adapt.experiment import (
    delivery,
    device_memory,
    forgetting,
    handover,
    recipe,
    verdicts,
)
from flax_adapt.experiment.measuring import leaks
from flax_adapt.report import page
from flax_adapt.train import precision as precisions
from flax_adapt.train.preemption import Preemption

RECORD = "adapt.json"
# What budget=auto watches: training without labels ends where it no longer gets better.
PATIENT = "held_out/loss"
# Arguments of the config in its errors -> flags.
_FLAGS = "|".join(COMMANDS["adapt"].flags)
_AS_FLAGS = {
    rf"(?<![\w.'\-,:])({_FLAGS})=": r"--\1=",
    "the config needs": "adapt needs",
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def adapt(
    init: str,
    unlabelled: str,
    labelled: str,
    test: str,
    source: str,
    method: str,
    budget: str,
    precision: str,
    workdir: str,
    data_dir: str,
    init_format: str,
    augment: str,
    fit: str,
    bits: int,
    window: str,
    image_field: str,
    label_field: str,
    split_field: str,
    text_field: str,
    seq_len: int,
    watch: str,
    on_hurt: str,
    seeds: int,
    near_copies: bool,
    dry_run: bool,
    report: bool,
    force: bool,
) -> None:
    """Adapts weights to own data within a budget; hands over what held-out labels choose."""
    run_recipe(**locals())


def adapt_model(**given: Any) -> Path | None:
    """Adapts weights to own data, as the command `flax-adapt adapt` does.

    given: flags of the command, such as init="facebook/vit-mae-base",
    unlabelled="folder:scans/Training", workdir="runs/x"; others have the command's
    defaults. Returns the folder of the adapted model, None for dry_run=True. Raises
    UserError for flags that are missing, unknown or do not fit together.
    """
    table = COMMANDS["adapt"].flags
    for name in given:
        errors.choose("adapt: the argument", name, table)
    defaults = {name: default for name, (default, _) in table.items()}
    whole = {**defaults, **given}
    missing = [name for name, value in whole.items() if value is REQUIRED]
    if missing:
        raise UserError(f"adapt needs {', '.join(missing)}")
    # What the command line alone needs: the process of a library is the user's.
    for name in ("stop_code", *MACHINE):
        del whole[name]
    return run_recipe(**whole)


def run_recipe(workdir: str, **given: Any) -> Path | None:
    """Runs `adapt` with all its flags; returns the folder of what it hands over."""
    with open_workdir(workdir, continues=True) as folder:
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"--workdir={workdir} is a file: give a folder, or a new name"
            )
        return _run_in(folder, workdir, **given)


@sources.keep_open()
def _run_in(
    folder: Path,
    workdir: str,
    budget: str,
    precision: str,
    near_copies: bool,
    dry_run: bool,
    report: bool,
    force: bool,
    **given: Any,
) -> Path | None:
    begun, parsed = time.perf_counter(), values.parse_budget(budget)
    flags = {**given, "budget": budget, "precision": precision}
    kept = read_record(folder, flags, force)
    # A begun run keeps its numbers, those of the machine that it began on included.
    name = kept.get("config") or _name_config(given, parsed, precision)
    with errors.reword_errors(_AS_FLAGS):
        config = configs.load(name)
    precisions.set_products(config.precision)
    work = kept.get("work")
    line = name_run(workdir, name)
    if not kept:
        note = functools.partial(_write_record, folder, flags, name, [])
        with errors.reword_errors(_AS_FLAGS), _name_run(line, parsed, budget, note):
            name, config, work = _size(name, config, parsed, folder, begun, budget)
    line = name_run(workdir, name)
    print(adapt_screen.describe(config, work, line), flush=True)
    if dry_run:
        return None
    _write_record(folder, flags, name, work)
    with _name_run(line, {}, budget):
        config = device_memory.keep_savings(config, folder) if kept else config
        rows, record, target = _train(config, folder, force)
    _print_results(folder, rows, record, target)
    if near_copies and jax.process_index() == 0:
        print("\n".join(leaks.list_few_copies(config, folder)))
    if report and (written := page.write_or_warn(folder)):
        print(f"page:    {name_path(written)}")
    return target


def name_run(workdir: str, name: str) -> str:
    """Returns the command that runs a config of this name in a workdir."""
    return (
        f"flax-adapt run --workdir={shlex.quote(workdir)} --config={shlex.quote(name)}"
    )


def _train(
    config: Any, folder: Path, force: bool
) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    """Returns the rows of a run, the record of what it hands over, and its folder."""
    rows = recipe.run(config, folder, force=force)
    with recipe.only_run(folder), Preemption() as preemption:
        record = handover.choose(config, folder, preemption)
        source = forgetting.judge(config, folder, record["stage"])
        record = {**record, "source": source}
        target = delivery.deliver(config, folder, record, rows, preemption)
    return rows, record, target


@contextlib.contextmanager
def _name_run(
    line: str,
    parsed: dict[str, str],
    budget: str,
    note: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Rewords the advice for a stage that does not fit: `adapt` has no flags for it.

    parsed: of a budget that is not settled yet. note: writes the record by which the same
    command goes on after that run; a time gives no steps, so it cannot.
    """
    try:
        yield
    except device_memory.DoesNotFitError as error:
        if "time" in parsed:
            then = (
                f"run that instead, with steps by the rule auto, not --budget={budget}"
            )
            raise error.reword(line, then) from None
        note()
        then = "run that, then the same adapt command again"
        raise error.reword(line, then) from None


def _write_record(
    folder: Path, flags: dict[str, Any], name: str, work: list[Any] | None
) -> None:
    if jax.process_index() == 0:
        logs.write_json(folder / RECORD, dict(flags=flags, config=name, work=work))


def read_record(folder: Path, flags: dict[str, Any], force: bool) -> dict[str, Any]:
    """Returns what adapt.json of a begun workdir has; {} for a new one.

    Raises UserError where it was begun with other flags, unless `force`.
    """
    path = folder / RECORD
    if not path.exists() or force or not any(folder.glob("stages/**/checkpoints/*")):
        return {}
    found = logs.read_json(path)
    if not isinstance(found, dict) or not {"flags", "config", "work"} <= {*found}:
        raise UserError(f"{path} is damaged: use another --workdir, or --force")
    changes = configs.difference({**flags, **found["flags"]}, flags)
    if changes:
        raise UserError(
            f"{folder} was begun with other flags (--{'; --'.join(changes)}); use another "
            "--workdir, or --force to go on with the new ones (finished stages stay)"
        )
    return found


def _name_config(given: dict[str, Any], parsed: dict[str, str], precision: str) -> str:
    """Returns `adapt:init=...,...` for the flags that differ from the config's defaults."""
    defaults = configs.argument_defaults("adapt")
    arguments = {k: v for k, v in given.items() if v != defaults[k]}
    arguments |= {"precision": precisions.settle(precision, field="--precision")}
    sizes = {"rule": "sizes", "steps": "steps", "epochs": "epochs"}
    arguments |= {sizes[k]: v for k, v in parsed.items() if k in sizes}
    trains = given["unlabelled"] and given["method"] != "none"
    if parsed.get("rule") == "auto" and trains and not given["watch"]:
        arguments["watch"] = PATIENT
    if "steps" in parsed and not given["unlabelled"]:  # then there is fine-tuning alone
        arguments["finetune_steps"] = parsed["steps"]
    arguments = {k: v for k, v in arguments.items() if v != defaults[k]}
    return join_arguments(arguments)


def join_arguments(arguments: dict[str, Any]) -> str:
    """Returns the config's name with its arguments; values with a comma are quoted."""
    pairs = (
        f'{k}="{v}"' if "," in str(v) else f"{k}={v}" for k, v in arguments.items()
    )
    return f"adapt:{','.join(pairs)}"


def _size(
    name: str,
    config: Any,
    parsed: dict[str, str],
    folder: Path,
    begun: float,
    typed: str,
) -> tuple[str, Any, list[Any]]:
    """Returns (config's name, config, work) with the steps that a time is enough for."""
    with Preemption() as preemption:
        work = budgets.list_work(config, folder, preemption)
    if "time" not in parsed:
        return name, config, [list(one) for one in work]
    whole = float(parsed["time"]) * _SECONDS[parsed["unit"]]
    spent = time.perf_counter() - begun
    counts = budgets.share(work, whole - spent, spent, typed)
    name = ",".join([name, *(f"{k}={v}" for k, v in counts.items())])
    config = configs.load(name)
    steps = {section.name: section.num_steps for section in config.stages}
    work = [one._replace(steps=steps[one.name] if one.steps else 0) for one in work]
    return name, config, [list(one) for one in work]


def _print_results(
    folder: Path, rows: list[dict[str, Any]], record: dict[str, Any], target: Path
) -> None:
    if jax.process_index():
        return
    print(recipe.table(rows))
    for line in verdicts.text(rows):
        print(line)
    for line in record["source"]:
        print(line)
    print(f"handed over: {record['stage']}, {record['why']}")
    print(f"report:  {name_path(folder / delivery.REPORT)}")
    print(f"model:   {name_path(target)}")
