"""An experiment: its stages in order, each once; continues wherever it stopped."""

import statistics
from pathlib import Path
from typing import Any

import jax

from flax_adapt import check, data, logs, loop, sharding, weights
from flax_adapt import config as configs
from flax_adapt.errors import UserError
from flax_adapt.evals import embed, knn, probe
from flax_adapt.preemption import Preemption
from flax_adapt.stage import Stage

COLUMNS = ("stage", "metric", "seeds", "mean", "std", "gain", "seconds")


def run(config: Any, workdir: Path, *, force: bool) -> list[dict[str, Any]]:
    """Runs every stage that is not finished; returns the rows of `results.json`.

    A row: {stage, metric, seeds, values, mean, std, seconds, gain, export}. A workdir
    that holds another config is refused with the difference, unless `force`.
    """
    check.experiment(config)
    _check_sources(config, workdir)
    _claim(config, workdir, force)
    results = []
    with Preemption() as preemption:
        for stage in stage_runs(config, workdir):
            results.append(loop.train_and_evaluate(stage, preemption))
            _write(workdir, rows := summarize(results, workdir))
    return rows


def stage_runs(config: Any, workdir: Path) -> list[Stage]:
    """Every stage with every one of its seeds, in order."""
    return [
        Stage(config, section, seed, workdir)
        for section in config.stages
        for seed in section.seeds
    ]


def is_done(config: Any, workdir: Path) -> bool:
    """True if there is nothing left to run."""
    runs = stage_runs(config, workdir)
    return all((stage.folder / loop.RESULT).exists() for stage in runs)


def _check_sources(config: Any, workdir: Path) -> None:
    """Opens what is left to be read: a missing split is told now, not hours later."""
    opened: list[Any] = []
    for stage in stage_runs(config, workdir):
        sections = [stage.config.data]
        if stage.config.eval is not None:
            sections.append(stage.config.eval.data)
        for section in sections:
            where = {name: section[name] for name in ("source", "data_dir", "split")}
            if where not in opened and not (stage.folder / loop.RESULT).exists():
                data.source.open_source(section)
                opened.append(where)


def _claim(config: Any, workdir: Path, force: bool) -> None:
    """Stores the config; the same command then continues, another is refused.

    Where nothing was trained yet there is nothing to protect.
    """
    path, new = workdir / "config.json", configs.plain(config)
    if path.exists() and any(workdir.glob("stages/**/checkpoints/*")) and not force:
        changes = configs.difference(logs.read_json(path), new)
        if changes:
            raise UserError(
                f"{workdir} was made with another config ({'; '.join(changes)}); use "
                "another --workdir, or --force to go on with the new config (finished "
                "stages stay as they are)"
            )
    if jax.process_index() == 0:
        logs.write_json(path, new)


def _row(name: str, results: list[dict[str, Any]], workdir: Path) -> dict[str, Any]:
    values = [result["value"] for result in results]
    folder = workdir / "stages" / name
    if not (folder / "export").is_dir():
        folder = folder / f"seed_{results[0]['seed']}"
    return {
        "stage": name,
        "metric": results[0]["metric"],
        "seeds": [result["seed"] for result in results],
        "values": values,
        "mean": statistics.fmean(values),
        # The spread over seeds: the sample's standard deviation (n - 1).
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seconds": sum(result["seconds"] for result in results),
        "export": str(folder / "export"),
    }


def summarize(results: list[dict[str, Any]], workdir: Path) -> list[dict[str, Any]]:
    """One row a stage.

    `gain`: how much better its mean is than that of the first stage with the same metric
    on the same data (of a loss or a perplexity: how much lower).
    """
    names = list(dict.fromkeys(result["stage"] for result in results))
    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for name in names:
        same = [result for result in results if result["stage"] == name]
        row = _row(name, same, workdir)
        if same[0]["eval"]:
            alike = f"{row['metric']} on {same[0]['eval_data']}"
            gain = row["mean"] - first.setdefault(alike, row["mean"])
            row["gain"] = gain if same[0]["mode"] == "max" else -gain
        rows.append(row)
    return rows


def _write(workdir: Path, rows: list[dict[str, Any]]) -> None:
    if jax.process_index() == 0:
        logs.write_json(workdir / "results.json", rows)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text: mean and spread over seeds, what a stage brought, its time."""
    shown = [
        {**row, "seeds": len(row["seeds"]), "seconds": round(row["seconds"], 1)}
        for row in rows
    ]
    return logs.format_table(shown, COLUMNS)


def evaluate(config: Any, workdir: Path) -> list[dict[str, Any]]:
    """kNN and linear-probe accuracy of `init` and of every finished stage.

    Written to `eval.json`. Features are the states after the final LayerNorm, pooled as
    `config.evaluate` says.
    """
    section = config.evaluate
    finished = [
        s for s in stage_runs(config, workdir) if (s.folder / loop.RESULT).exists()
    ]
    if not finished:
        raise UserError(
            f"{workdir} holds no finished stage of this config; run it first"
        )
    train, test = (_labelled(each) for each in (section.train, section.test))
    models = {"pretrained": Path(config.init)} if config.init else {}
    models |= {stage.label: stage.folder / "export" for stage in finished}
    rows = [
        {"stage": label, **_measure(config, folder, train, test)}
        for label, folder in models.items()
    ]
    logs.write_json(workdir / "eval.json", rows)
    return rows


def _labelled(config_data: Any) -> data.Examples:
    try:
        examples = data.open_examples(config_data, "")
    except UserError as error:
        raise UserError(
            f"eval needs the labelled data of the config's `evaluate`: {error}"
        ) from None
    if not examples.class_names:
        raise UserError(
            f"eval measures kNN and a linear probe by class, but {config_data.source} "
            "has no classes"
        )
    return examples


def _measure(config: Any, folder: Path, *both: data.Examples) -> dict[str, float]:
    section = config.evaluate
    sizes = {n: config.model[n] for n in weights.reshape.FIELDS if n in config.model}
    # The original weights are made to fit the images as the stages make them fit.
    rules = dict.fromkeys(rule for s in config.stages for rule in s.model.reshape)
    features = [
        embed.extract(
            folder,
            examples,
            fit=dict(reshape=tuple(rules), **sizes),
            pooling=section.pooling,
            batch_size=section.batch_size,
            precision=config.precision,
            mesh=sharding.one_device(),
        )
        for examples in both
    ]
    arrays = [array for rows in features for array in (rows.embeddings, rows.labels)]
    nearest = knn.accuracy(
        *arrays, k=section.knn_k, temperature=section.knn_temperature
    )
    linear = probe.accuracy(
        *arrays, l2=section.probe_l2, max_iterations=section.probe_max_iterations
    )
    return {"knn": nearest, "probe": linear}
