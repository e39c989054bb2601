"""What the commands do; every one is a public function."""

import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_adapt import data as sources
from flax_adapt import models, weights
from flax_adapt.base import config as configs
from flax_adapt.base import errors, logs
from flax_adapt.base.errors import UserError
from flax_adapt.evals import embed
from flax_adapt.evals import fill as fill_mask
from flax_adapt.evals.features import Features
from flax_adapt.experiment import measure, recipe, transfer
from flax_adapt.train import sharding
from flax_adapt.weights import convert as converting
from flax_adapt.weights import fields
from flax_adapt.weights.formats import table as formats

# What errors of `weights` name -> the flags of the commands that take --init.
INIT_FLAGS = formats.words("--init_known=", "--init_format")
MATMUL_PRECISION = {"float32": "highest", "bfloat16": None}


def _join(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes."""
    _check_processes(coordinator, num_processes, process_id)
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        elif coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator={coordinator}: {error}") from None


def _set_jax_up(workdir: Path, precision: str) -> None:
    """Keeps compiled programs in the workdir for re-use; float32 is float32."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "xla_cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Accelerators multiply float32 in fewer bits unless told not to.
    precise = errors.choose("precision", precision, MATMUL_PRECISION)
    jax.config.update("jax_default_matmul_precision", precise)


def _check_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Refuses flags with which every process would run alone in the same workdir."""
    if coordinator in ("", "auto"):
        if (num_processes, process_id) != (1, 0):
            raise UserError(
                "--num_processes and --process_id need --coordinator=host:port"
            )
    elif not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} must be host:port or auto")
    elif not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must lie in 0 to {num_processes - 1} (there are "
            f"--num_processes={num_processes})"
        )


def run(
    config: Any,
    workdir: str,
    force: bool,
    coordinator: str,
    num_processes: int,
    process_id: int,
) -> None:
    """Runs every stage of a config in a workdir, or continues it; prints the results."""
    folder = Path(workdir)
    _join(coordinator, num_processes, process_id)
    _set_jax_up(folder, config.precision)
    done = recipe.is_done(config, folder)
    rows = recipe.run(config, folder, force=force)
    if jax.process_index() == 0:
        if done:
            print(f"{folder}: all stages were done before")
        print(recipe.table(rows))
        print(f"results: {folder / 'results.json'}")
        print(f"model:   {rows[-1]['export']}")


def list_configs() -> None:
    """Lists the shipped configs with the first line of their docstrings."""
    rows = [
        {"config": name, "what": configs.summary(path)}
        for name, path in configs.shipped().items()
    ]
    print(logs.format_table(rows, ("config", "what")))


def features(
    init: str,
    data: str,
    out: str,
    split: str,
    data_dir: str,
    pooling: str,
    batch_size: int,
    precision: str,
    max_bad_fraction: float,
    seq_len: int,
    text_fields: str,
    label_field: str,
    label_kind: str,
    init_format: str,
    init_known: str,
    mean: str,
    std: str,
) -> None:
    """Writes embeddings, labels and example names of a data set to an .npz file."""
    errors.choose("--pooling", pooling, models.POOLING)
    errors.choose("--precision", precision, models.DTYPES)
    target = Path(out)
    if target.suffix != ".npz" or not target.parent.is_dir():
        raise UserError(f"--out={out} must be a new .npz file in a folder that exists")
    common = dict(data_dir=data_dir, max_bad_fraction=max_bad_fraction)
    of_text = dict(
        seq_len=seq_len,
        text_fields=tuple(text_fields.split(",")),
        label_field=label_field,
        label_kind=label_kind,
    )
    pixels = (_numbers("--mean", mean), _numbers("--std", std)) if mean or std else None
    told = weights.told(init_format, _values("--init_known", init_known))
    with errors.reworded(INIT_FLAGS):
        kind = weights.model_config(init, **told)["kind"]
        if models.TASKS[kind]["encoder"].modality == "image":
            section = embed.image_section(
                Path(init), data, split, told=told, pixels=pixels, **common
            )
        elif pixels:
            raise UserError(f"--mean and --std are of images; {init} takes text")
        else:
            section = embed.text_section(Path(init), data, split, **common, **of_text)
        examples = sources.open_examples(section, "")
        embedder = embed.Embedder(
            Path(init),
            fit=told,
            pooling=pooling,
            batch_size=batch_size,
            precision=precision,
            mesh=sharding.one_device(),
        )
    rows = embedder.features(examples)
    _write_features(target, rows, examples)
    count, width = rows.embeddings.shape
    print(f"{out}: {count} embeddings of width {width}")
    if examples.bad_files:
        bad = ", ".join(examples.bad_files.names)
        print(f"left out, since they cannot be decoded: {bad}")


def _write_features(target: Path, rows: Features, examples: sources.Examples) -> None:
    """All of the file or nothing."""
    partial = target.with_suffix(".partial.npz")
    np.savez(
        partial,
        embeddings=rows.embeddings,
        labels=rows.labels,
        names=np.array([examples.names[index] for index in rows.indices]),
        class_names=np.array(examples.class_names),
    )
    partial.replace(target)


def convert(
    from_: str,
    to: str,
    from_format: str,
    format: str,
    task: str,
    known: str,
    change: str,
    fresh: list[str],
    num_classes: int,
    seed: int,
) -> None:
    """Writes weights in another format, tensor by tensor; prints what became of each."""
    done = converting.convert(
        Path(from_),
        Path(to),
        source_format=from_format or None,
        target_format=format,
        task=task or None,
        known=_values("--known", known),
        changes=_values("--change", change),
        fresh=tuple(name for given in fresh for name in given.split(",") if name),
        num_classes=num_classes,
        seed=seed,
    )
    print(done.report.overview())
    print(f"{to}: {format}, task {done.task}: {done.report.summary()}")
    if done.left_out:
        print(f"left out, since {format} has no place for it: {done.left_out}")


def _values(flag: str, text: str) -> dict[str, Any]:
    """`heads=6,gelu=tanh` as a dict, every value of its type."""
    pairs = [item.partition("=")[::2] for item in filter(None, text.split(","))]
    kinds = {name: errors.choose(flag, name, fields.KNOWN) for name, _ in pairs}
    try:
        return {name: kinds[name](value) for name, value in pairs}
    except ValueError:
        raise UserError(f"{flag}={text} must be NAME=VALUE,...") from None


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    """`0.5,0.4,0.3` as numbers."""
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 <= value <= 1 for value in values):
        raise UserError(
            f"{flag}={text} must be NUMBER,..., one a channel, of pixels in [0, 1]"
        )
    return values


def fill(init: str, text: str, top: int, init_format: str) -> None:
    """Prints the likeliest tokens for every mask token of a text."""
    with errors.reworded(INIT_FLAGS):
        masks = fill_mask.fill(Path(init), text, top, init_format or None)
    for number, guesses in enumerate(masks, start=1):
        rows = [{"token": token, "probability": p} for token, p in guesses]
        print(f"mask {number}")
        print(logs.format_table(rows, ("token", "probability")))


def evaluate(config: Any, workdir: str) -> None:
    """kNN, linear probe and drift of every finished stage of a workdir."""
    _set_jax_up(Path(workdir), config.precision)
    rows = measure.evaluate(config, Path(workdir))
    print(logs.format_table(rows, tuple(rows[0])))
    if config.transfer is not None:
        matrices = transfer.report(config, Path(workdir), rows)
        print(f"\n{transfer.text(matrices)}\n")
        print(f"matrices: {Path(workdir) / 'transfer.json'}")
    print(f"results: {Path(workdir) / 'eval.json'}")
