"""What one stage is made of: folders, references, model, weights, export.

A stage that runs once lives in `stages/NAME`, one with several seeds in
`stages/NAME/seed_S` each; `stage:NAME` and `stage:NAME/seed_S` refer to their exports.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_adapt import check, data, models, objectives, stage_resize, weights
from flax_adapt import config as configs
from flax_adapt.errors import UserError, reworded
from flax_adapt.types import Params

# What errors of `weights` name -> the fields of the config.
FIELDS = weights.formats.words("init=PATH and init_known.", "init=PATH and init_format")


class Stage(NamedTuple):
    """One run of one stage of an experiment: its config, with one of its seeds."""

    experiment: Any  # the whole config
    config: Any  # the stage's part of it
    run_seed: int
    workdir: Path

    @property
    def label(self) -> str:
        """NAME, or NAME/seed_S where the stage has several seeds."""
        return check.label(self.config, self.run_seed)

    @property
    def is_first(self) -> bool:
        """Whether it is the first of its seeds: what is alike for all is said by it."""
        return self.run_seed == self.config.seeds[0]

    @property
    def folder(self) -> Path:
        return self.workdir / "stages" / self.label

    @property
    def seed(self) -> int:
        """Seeds masks, dropout, the order of the data and new leaves."""
        return self.experiment.seed + self.run_seed

    @property
    def architecture(self) -> dict[str, Any]:
        """The model config of the stage: the experiment's, its last block resized."""
        model, resize = self.experiment.model, self.config.model.resize
        return models.with_resize(configs.plain(model), resize)

    @property
    def task(self) -> str:
        return objectives.task_of(self.config.objective)

    @property
    def kept_task(self) -> str:
        """The task whose weights the stage starts from and exports.

        Where there is a projector only the encoder: what stands on it is dropped with it.
        """
        return "encoder" if self.config.model.projector is not None else self.task


def resolve(stage: Stage, field: str) -> Path:
    """The folder or file that `init_from` or `teacher` refers to (see `check`)."""
    return locate(stage, field, stage.config[field])


def locate(stage: Stage, field: str, text: str) -> Path:
    """The folder or file that `text` refers to, which a field of the config has."""
    if text.startswith("stage:"):
        folder = stage.workdir / "stages" / text.removeprefix("stage:") / "export"
    else:
        folder = Path(stage.experiment.init if text == "pretrained" else text)
    if not folder.exists():
        raise UserError(
            f"stage {stage.label}: {field}={text!r}: there is no {folder}; give "
            "'pretrained' (the config's `init`), 'stage:NAME' or a folder or file of "
            "weights"
        )
    return folder


def told(stage: Stage, field: str) -> dict[str, Any]:
    """What the config says of the weights that a field refers to, see `weights.told`."""
    return told_of(stage, stage.config[field])


def told_of(stage: Stage, text: str) -> dict[str, Any]:
    """As `told`, of what `text` refers to."""
    return told_of_init(stage.experiment) if text == "pretrained" else {}


def told_of_init(config: Any) -> dict[str, Any]:
    """What a config says of its `init`."""
    return weights.told(config.init_format, config.init_known)


def check_architecture(
    stage: Stage, found: dict[str, Any], path: Path, task: str
) -> None:
    """Weights only mean something in the model they were made for.

    `model.reshape` names what may differ, and an ordinary last block can become what
    `model.resize` asks for. A file without a decoder, or a decoder that shall be new, is
    left to `weights.adopt`.
    """
    options = stage.config.model
    skipped = {"pooler", *weights.reshape.may_differ(options.reshape)}
    if resizes(stage, found) and task != "encoder":
        skipped.add("last_block")
    if task != "mae" or found["decoder"] is None or "decoder" in options.fresh:
        skipped.add("decoder")
    both = (found, stage.architecture)
    changes = configs.difference(
        *({name: a[name] for name in a if name not in skipped} for a in both)
    )
    if changes:
        raise UserError(
            f"stage {stage.label}: `model` is not what {path} holds: {'; '.join(changes)}"
            f"{_how_to_reshape(changes)}"
        )


def _how_to_reshape(changes: list[str]) -> str:
    fields = {change.partition(":")[0] for change in changes}
    if not fields <= set(weights.reshape.FIELDS):
        return ""
    rules = [rule for rule, may in weights.reshape.RULES.items() if fields & {*may}]
    return f"; to resize the weights, name in the stage's model.reshape one of {rules}"


def build_model(stage: Stage, classes: int, task: str) -> nn.Module:
    options = stage.config.model
    return models.build(
        stage.architecture,
        task,
        dtype=stage.experiment.precision,
        dropout=options.dropout,
        drop_path=options.drop_path,
        pooling=options.pooling,
        num_classes=classes,
        projector=options.projector,
    )


def resizes(stage: Stage, found: dict[str, Any]) -> bool:
    """Whether weights of the model config `found` are to get another last block."""
    return stage.config.model.resize is not None and found["last_block"] is None


@reworded(FIELDS)
def warm_start(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> tuple[Params, weights.Report | None]:
    """The parameters a stage begins with: of `init_from`, new leaves from the seed.

    examples: of the stage, which a last block may be fitted to.
    """
    params = models.init_params(model, jax.random.key(stage.seed))
    if stage.config.init_from == "scratch":
        return params, None
    path, known = resolve(stage, "init_from"), told(stage, "init_from")
    options, fresh = stage.config.model, stage.config.model.fresh
    try:
        found, loaded, report = weights.load(
            path, stage.kept_task, pooling=options.pooling, **known
        )
        check_architecture(stage, found, path, stage.task)
        if options.projector is not None:
            loaded, without = _without_pooler(loaded)
            report = report.merge(without)
        wanted = stage.architecture
        loaded, reshaped = weights.fit(found, loaded, wanted, options.reshape)
        report = report.merge(reshaped)
        if resizes(stage, found):
            loaded, resized, new = _resize(stage, loaded, params, examples, mesh)
            report, fresh = report.merge(resized), (*fresh, *new)
        params, adopted = weights.adopt(params, loaded, fresh)
    except UserError as error:
        raise UserError(f"stage {stage.label}: {path}: {error}") from None
    return params, report.merge(adopted)


def _resize(
    stage: Stage, loaded: Params, init: Params, examples: data.Examples, mesh: Mesh
) -> tuple[dict[str, Any], weights.Report, tuple[str, ...]]:
    section, old = stage.config.model.resize, configs.plain(stage.experiment.model)
    components_dD = stage_resize.components(
        old,
        loaded,
        section,
        examples,
        batch_size=stage.config.batch_size,
        precision=stage.experiment.precision,
        mesh=mesh,
    )
    return stage_resize.resize(old, loaded, init, section, components_dD, stage.seed)


def _without_pooler(
    loaded: dict[str, Any],
) -> tuple[dict[str, Any], weights.Report]:
    """A projector stands on the encoder; a pooler that comes with that is not used."""
    kept = {name: leaves for name, leaves in loaded.items() if name != "pooler"}
    unused = {*loaded} - {*kept}
    rule = "pooler dropped: there is a projector"
    return kept, weights.Report(ignored=dict.fromkeys(unused, rule))


@reworded(FIELDS)
def frozen(stage: Stage) -> dict[str, Params]:
    """{"teacher": params} of the model that `teacher` refers to, or nothing."""
    if stage.config.teacher == "none":
        return {}
    path, known = resolve(stage, "teacher"), told(stage, "teacher")
    task = objectives.teacher_task(stage.config.objective)
    check_architecture(stage, weights.model_config(path, **known), path, task)
    sizes = weights.reshape.sizes_of(stage.experiment.model)
    fit = dict(reshape=stage.config.model.reshape, **sizes)
    _, params, _ = weights.from_pretrained(path, task, **fit, **known)
    return {"teacher": params}


def _encoder_of(model: nn.Module, params: Params) -> tuple[nn.Module, Params]:
    """The model without heads."""
    config = {**models.config_of(model), "pooler": False}
    encoder = models.build(
        config,
        "encoder",
        dtype="float32",
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
    )
    return encoder, {"encoder": params["encoder"]}


def export(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples
) -> Path:
    """Writes the Hugging Face folder of the stage (process 0 writes, all take part)."""
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if stage.config.model.projector is not None:
        model, params = _encoder_of(model, params)
    folder, section = stage.folder / "export", stage.config.data
    if jax.process_index() == 0:
        classes = stage.kept_task == "classify" and examples.class_names
        beside: dict[str, Any] = {"class_names": classes or None}
        if section.modality == "text":
            beside |= {"tokenizer": section.tokenizer}
        else:
            beside |= {"mean": section.mean, "std": section.std}
        weights.save_pretrained(folder, model, jax.device_get(params), **beside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"export {stage.label}")
    return folder
