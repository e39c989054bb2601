"""What the commands do; every one is a public function."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_adapt import config as configs
from flax_adapt import data as images
from flax_adapt import errors, logs, models, recipe, sharding
from flax_adapt.evals import embed


def _start_jax(workdir: Path, coordinator: str, num_processes: int, process_id: int):
    """Joins the other processes; compiled programs are kept in the workdir for re-use."""
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    jax.config.update("jax_compilation_cache_dir", str(workdir / "xla_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


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
    _start_jax(folder, coordinator, num_processes, process_id)
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
) -> None:
    """Writes embeddings, labels and example names of a data set to an .npz file."""
    errors.choose("--pooling", pooling, models.POOLING)
    section = embed.data_for(Path(init), data, split, data_dir)
    examples = images.open_examples(section, "")
    rows = embed.extract(
        Path(init),
        examples,
        pooling=pooling,
        batch_size=batch_size,
        precision=precision,
        mesh=sharding.one_device(),
    )
    np.savez(
        out,
        embeddings=rows.embeddings,
        labels=rows.labels,
        names=np.array([examples.names[index] for index in rows.indices]),
        class_names=np.array(examples.class_names),
    )
    count, width = rows.embeddings.shape
    print(f"{out}: {count} embeddings of width {width}")


def evaluate(config: Any, workdir: str) -> None:
    """kNN and linear probe of every finished stage of a workdir."""
    rows = recipe.evaluate(config, Path(workdir))
    print(logs.format_table(rows, ("stage", "knn", "probe")))
    print(f"results: {Path(workdir) / 'eval.json'}")
