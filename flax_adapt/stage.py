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

from flax_adapt import check, data, models, objectives, rules, stage_resize, weights
from flax_adapt import config as configs
from flax_adapt.errors import UserError, reworded
from flax_adapt.models import batch_stats
from flax_adapt.surgery import adaptors, heads
from flax_adapt.types import Params
from flax_adapt.weights import strict

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
        """The model config of the stage: its last block resized, adaptors added."""
        return models.of_stage(
            configs.plain(self.experiment.model), configs.plain(self.config.model)
        )

    @property
    def task(self) -> str:
        return objectives.task_of(self.config.objective)

    @property
    def kept_task(self) -> str:
        """The task whose weights the stage starts from and exports.

        Where there is a projector, or adaptors, only the encoder (and what was trained
        beside): what stands on them is dropped with them.
        """
        options = self.config.model
        if options.projector is None and options.adaptor is None:
            return self.task
        return objectives.beside_of(self.config.objective) or "encoder"


def resolve(stage: Stage, field: str) -> Path:
    """The folder or file that `init_from` or `teacher` refers to (see `check`)."""
    text = stage.config[field]
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
    pretrained = stage.config[field] == "pretrained"
    return told_of_init(stage.experiment) if pretrained else {}


def told_of_init(config: Any) -> dict[str, Any]:
    """What a config says of its `init`."""
    return weights.told(config.init_format, config.init_known)


def check_architecture(
    stage: Stage,
    found: dict[str, Any],
    path: Path,
    task: str,
    *,
    is_teacher: bool = False,
) -> None:
    """Weights only mean something in the model they were made for.

    `model.reshape` names what may differ, and an ordinary last block can become what
    `model.resize` asks for; adaptors may be new. A file without a decoder, or a decoder
    that shall be new, is left to `weights.adopt`.
    """
    options = stage.config.model
    skipped = {"pooler", *weights.reshape.may_differ(options.reshape)}
    skipped |= weights.reshape.free(found["kind"])
    if resizes(stage, found) and not is_teacher:
        skipped.add("last_block")
    if found.get("adaptor") is None:
        skipped.add("adaptor")
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


def build_model(stage: Stage, classes: int) -> nn.Module:
    """The model of the stage's task."""
    return _build(stage, stage.architecture, stage.task, classes)


def build_beside(stage: Stage) -> nn.Module | None:
    """The model of what is trained beside the stage's task, on the same parameters."""
    task = objectives.beside_of(stage.config.objective)
    if task is None:
        return None
    return _build(stage, {**stage.architecture, "adaptor": None}, task, 0)


def _build(stage: Stage, config: dict[str, Any], task: str, classes: int) -> nn.Module:
    options = stage.config.model
    return models.build(
        config,
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


def init_params(stage: Stage, model: nn.Module) -> dict[str, Any]:
    """Fresh parameters of the stage's seed, of the model and of what is trained beside."""
    key, beside = jax.random.key(stage.seed), build_beside(stage)
    params = dict(models.init_params(model, key))
    # Both have the encoder; the model's has the adaptors.
    return params if beside is None else {**models.init_params(beside, key), **params}


@reworded(FIELDS)
def warm_start(
    stage: Stage, model: nn.Module, examples: data.Examples, mesh: Mesh
) -> tuple[Params, Params, weights.Report | None]:
    """Returns (parameters, running statistics, report) that a stage begins with.

    Of `init_from`, new leaves from the seed. examples: of the stage, which a last block
    may be fitted to. Statistics: {} of a model without batch norm.
    """
    init = init_params(stage, model)
    if stage.config.init_from == "scratch":
        return *batch_stats.split(init), None
    path, known = resolve(stage, "init_from"), told(stage, "init_from")
    options, fresh = stage.config.model, stage.config.model.fresh
    try:
        found, loaded, report = weights.load(
            path, stage.kept_task, pooling=options.pooling, **known
        )
        check_architecture(stage, found, path, stage.kept_task)
        if stage.kept_task != stage.task:
            loaded, without = _without_pooler(loaded)
            report = report.merge(without)
        wanted = stage.architecture
        loaded, reshaped = weights.fit(found, loaded, wanted, options.reshape)
        report = report.merge(reshaped)
        if resizes(stage, found):
            loaded, resized, new = _resize(stage, loaded, init, examples, mesh)
            report, fresh = report.merge(resized), (*fresh, *new)
        if options.grow_head:
            loaded, grown = _grow(path, loaded, init, examples)
            report = report.merge(grown)
        adapted = adaptors.leaves_of(rules.names(init))
        fresh = (*fresh, *(adapted if found.get("adaptor") is None else ()))
        stored, adopted = weights.adopt(init, loaded, fresh)
    except UserError as error:
        raise UserError(f"stage {stage.label}: {path}: {error}") from None
    return *batch_stats.split(stored), report.merge(adopted)


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


def _grow(
    path: Path, loaded: Params, init: Params, examples: data.Examples
) -> tuple[dict[str, Any], weights.Report]:
    """The head that comes with the weights, for the classes of the stage's data."""
    names = weights.class_names(path)
    if "head" not in loaded or names is None:
        raise UserError("model.grow_head needs weights with a head and class names")
    flat = (strict.flatten(loaded), strict.flatten(init))
    leaves, done = heads.grow(*flat, names, examples.class_names)
    return strict.unflatten(leaves), weights.Report(reshaped=done)


def _without_pooler(
    loaded: dict[str, Any],
) -> tuple[dict[str, Any], weights.Report]:
    """A projector stands on the encoder; a pooler that comes with that is not used."""
    kept = {name: leaves for name, leaves in loaded.items() if name != "pooler"}
    unused = {*loaded} - {*kept}
    rule = "pooler dropped: there is a projector"
    return kept, weights.Report(ignored=dict.fromkeys(unused, rule))


def frozen(stage: Stage, start: Params) -> dict[str, Params]:
    """What the objective compares with, by name; `start`: the parameters of `warm_start`.

    teacher: the encoder that `teacher` refers to. start: the encoder as it starts.
    """
    found = {} if stage.config.teacher == "none" else {"teacher": _teacher(stage)}
    if objectives.keeps_start(stage.config.objective):
        found["start"] = adaptors.drop({"encoder": start["encoder"]})
    return found


@reworded(FIELDS)
def _teacher(stage: Stage) -> Params:
    path, known = resolve(stage, "teacher"), told(stage, "teacher")
    found = weights.model_config(path, **known)
    check_architecture(stage, found, path, "encoder", is_teacher=True)
    sizes = weights.reshape.sizes_of(stage.experiment.model)
    fit = dict(reshape=stage.config.model.reshape, **sizes)
    _, params, _ = weights.from_pretrained(path, "encoder", **fit, **known)
    return params


def _kept(stage: Stage, model: nn.Module, params: Params) -> tuple[nn.Module, Params]:
    """The model of `kept_task`, without what was there for training alone.

    params: as they are stored.
    """
    if stage.kept_task == stage.task:
        return model, params
    config = models.bare(stage.architecture)
    kept = _build(stage, config, stage.kept_task, 0)
    names = weights.shapes(kept)
    return kept, adaptors.drop({name: params[name] for name in names})


def export(
    stage: Stage, model: nn.Module, params: Params, examples: data.Examples
) -> Path:
    """Writes the Hugging Face folder of the stage (process 0 writes, all take part).

    params: as they are stored, see `models.batch_stats`.
    """
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    model, params = _kept(stage, model, params)
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
