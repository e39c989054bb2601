"""One stage of an experiment: its folder, the weights it refers to, its model.

The folder of a stage with one seed is `stages/NAME`; with several seeds it is
`stages/NAME/seed_S` for each. `stage:NAME` and `stage:NAME/seed_S` refer to their exports.
"""

from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from flax_adapt import models, objectives, weights
from flax_adapt.base import checks, hub
from flax_adapt.base import config as configs
from flax_adapt.base.checks import Check, Context, Row
from flax_adapt.base.errors import UserError
from flax_adapt.objectives import exported
from flax_adapt.stage import references
from flax_adapt.train import precision
from flax_adapt.weights.formats import table as formats

# Names in error messages of `weights` -> the fields of the config.
FIELDS = formats.rewordings("init=PATH and init_known.", "init=PATH and init_format")


_MAX_SEED = 2**31 - 1


class _Seed(NamedTuple):
    """The seeds of the experiment and of one run of a stage; their sum is used."""

    experiment: int
    stage: int


def _seeds(at: Context) -> list[_Seed]:
    return [_Seed(at.config.seed, seed) for seed in at.section.seeds]


_SEEDS = (
    Row(
        lambda at: 0 < len(at.section.seeds) == len({*at.section.seeds}),
        "seeds={0.section.seeds} must be one or more different numbers",
    ),
)
_SEED = (
    Row(
        lambda seed: 0 <= seed.experiment + seed.stage <= _MAX_SEED,
        f"seed={{0.experiment}} + {{0.stage}} must lie in [0, {_MAX_SEED}]",
    ),
)
_NUMBERS = (
    Row(
        lambda at: at.section.num_steps >= 1,
        "num_steps={0.section.num_steps} must be at least 1",
    ),
    Row(
        lambda at: at.section.batch_size >= 1,
        "batch_size={0.section.batch_size} must be at least 1",
    ),
)
CHECKS = (
    Check(checks.stage, _SEEDS),
    Check(_seeds, _SEED),
    Check(checks.stage, _NUMBERS),
)


class Stage(NamedTuple):
    """One run of one stage of an experiment: its config, with one of its seeds."""

    experiment: Any  # the whole config
    config: Any  # the stage's part of it
    run_seed: int
    workdir: Path

    @property
    def label(self) -> str:
        """The name of this run, NAME or NAME/seed_S, as `stage:` refers to it."""
        return references.label(self.config, self.run_seed)

    @property
    def is_first(self) -> bool:
        """Whether this is the run of the first seed, which logs messages common to all."""
        return self.run_seed == self.config.seeds[0]

    @property
    def folder(self) -> Path:
        """The folder of this run, `stages/LABEL` in the workdir."""
        return self.workdir / "stages" / self.label

    @property
    def seed(self) -> int:
        """The seed of masks, dropout, the order of the data and new leaves."""
        return self.experiment.seed + self.run_seed

    @property
    def dtype(self) -> str:
        """The dtype of activations, a key of `models.DTYPES`."""
        return precision.dtype_of(self.experiment.precision)

    @property
    def architecture(self) -> dict[str, Any]:
        """The model config of the stage, with its resized last block and its adaptors."""
        return models.of_stage(
            configs.plain(self.experiment.model), configs.plain(self.config.model)
        )

    @property
    def task(self) -> str:
        """The task that the stage's objective trains."""
        return objectives.task_of(self.config.objective)

    @property
    def exported_task(self) -> str:
        """The task whose weights the stage exports."""
        return exported.exported_task(self.config)

    @property
    def start_task(self) -> str:
        """The task of the stage's initial weights.

        With a projector it is the encoder alone. With adaptors a head can be loaded, too, as
        new adaptors change nothing.
        """
        return exported.task_without(self.config, "projector")


def resolve_field(stage: Stage, field: str) -> Path:
    """Returns the path that `init_from` or `teacher` refers to, see `locate_weights`."""
    return locate_weights(stage, field, stage.config[field])


def locate_weights(stage: Stage, field: str, text: str) -> Path:
    """Returns the folder or file that `text` refers to.

    text: "pretrained", "stage:NAME" or a path. Raises UserError, which names `field`, if it
    does not exist.
    """
    if text.startswith("stage:"):
        folder = stage.workdir / "stages" / text.removeprefix("stage:") / "export"
    else:
        own = stage.experiment.init if text == "pretrained" else text
        folder = hub.weights_path(own)
    if not folder.exists():
        raise UserError(
            f"stage {stage.label}: {field}={text!r}: there is no {folder}; give "
            "'pretrained' (the config's `init`), 'stage:NAME' or a folder or file of "
            "weights"
        )
    return folder


def known_options_of(stage: Stage, text: str) -> dict[str, Any]:
    """Returns `weights.source_options` of the weights that `text` refers to."""
    return known_options_of_init(stage.experiment) if text == "pretrained" else {}


def known_options_of_init(config: Any) -> dict[str, Any]:
    """Returns `weights.source_options` of the `init` of a config."""
    return weights.source_options(config.init_format, config.init_known)


def check_architecture(
    stage: Stage,
    loaded_config: dict[str, Any],
    path: Path,
    task: str,
    *,
    is_teacher: bool = False,
) -> None:
    """Raises UserError where weights are of another model than the stage's.

    loaded_config: that of the weights at `path`. The fields that `model.reshape` names
    may differ. So may an ordinary last block that `model.resize` replaces, and adaptors
    that are new. A decoder that is missing, or is to be new, is checked by `weights.adopt`.
    """
    options = stage.config.model
    skipped = {"pooler", *weights.reshape.may_differ(options.reshape)}
    if replaces_last_block(stage, loaded_config) and not is_teacher:
        skipped.add("last_block")
    if loaded_config.get("adaptor") is None:
        skipped.add("adaptor")
    if task != "mae" or loaded_config["decoder"] is None or "decoder" in options.fresh:
        skipped.add("decoder")
    both = map(weights.reshape.fixed_fields, (loaded_config, stage.architecture))
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
    """Returns the model of the stage's task; classes: the number of classes of its head."""
    return build_for_task(stage, stage.architecture, stage.task, classes)


def build_second_model(stage: Stage) -> nn.Module | None:
    """Returns the model of a second task on the same encoder (GLAD), None without one."""
    task = objectives.second_task_of(stage.config.objective)
    if task is None:
        return None
    return build_for_task(stage, {**stage.architecture, "adaptor": None}, task, 0)


def build_for_task(
    stage: Stage, config: dict[str, Any], task: str, classes: int
) -> nn.Module:
    """Returns a model of a task, built from a model config and the stage's options."""
    options = stage.config.model
    return models.build(
        config,
        task,
        dtype=stage.dtype,
        dropout=options.dropout,
        drop_path=options.drop_path,
        pooling=options.pooling,
        num_classes=classes,
        projector=options.projector,
        head_norm=options.head_norm,
    )


def replaces_last_block(stage: Stage, loaded_config: dict[str, Any]) -> bool:
    """Returns whether `model.resize` replaces the last block of weights.

    loaded_config: the model config of the weights.
    """
    return stage.config.model.resize is not None and loaded_config["last_block"] is None
