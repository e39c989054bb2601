"""Mistakes in a config that can be seen before anything runs, so that none shows up hours
later. What only the data or the weights can tell is checked when a stage starts.
"""

from collections.abc import Callable
from typing import Any

from flax_adapt import objectives, weights
from flax_adapt.base.errors import UserError, choose
from flax_adapt.data import drawing, replay
from flax_adapt.objectives import ema, penalties
from flax_adapt.stage import check_model
from flax_adapt.surgery import lora
from flax_adapt.train import fisher, optim

_MAX_SEED = 2**31 - 1


def experiment(config: Any) -> None:
    """Raises UserError for the first mistake in a config."""
    names = [section.name for section in config.stages]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UserError(f"stages: every stage needs a name of its own; twice: {twice}")
    earlier: list[str] = []
    for section in config.stages:
        try:
            _seeds(config, section)
            _numbers(section)
            _names(section)
            check_model.check(config, section)
            _contrast(section)
            _anchors(section)
            _penalties(section)
            objectives.check(section.objective, config.model, section.model)
            _pairs(section)
            if section.replay is not None:
                replay.check(section.data, section.replay)
            _references(config, section, earlier)
        except UserError as error:
            raise UserError(f"stage {section.name}: {error}") from None
        earlier += labels(section)


def labels(section: Any) -> list[str]:
    """What `stage:` may name once this stage is done."""
    return [label(section, seed) for seed in section.seeds]


def label(section: Any, seed: int) -> str:
    """NAME, or NAME/seed_S where the stage has several seeds."""
    return section.name if len(section.seeds) == 1 else f"{section.name}/seed_{seed}"


def _seeds(config: Any, section: Any) -> None:
    seeds = section.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={seeds} must be one or more different numbers")
    for seed in seeds:
        if not 0 <= config.seed + seed <= _MAX_SEED:
            raise UserError(f"seed={config.seed} + {seed} must lie in [0, {_MAX_SEED}]")


def _numbers(section: Any) -> None:
    fields = {
        "num_steps": section.num_steps,
        "batch_size": section.batch_size,
        "optim.accum_steps": section.optim.accum_steps,
    }
    for name, value in fields.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    optim.check(section.optim, section.num_steps)
    optim.check_sweep(section)


def _names(section: Any) -> None:
    objective = section.objective.name
    choose("objective.name", objective, objectives.OBJECTIVES)
    objectives.task_of(section.objective)
    weights.reshape.check(section.model.reshape)
    measured = dict.fromkeys(objectives.metrics_of(section.objective))
    for name in ("eval", "sweep"):
        if section[name] is not None:
            choose(f"{name}.metric", section[name].metric, measured)
            choose(f"{name}.mode", section[name].mode, dict.fromkeys(("max", "min")))


def _anchors(section: Any) -> None:
    """What holds on to a start needs one, of something that trains."""
    if section.ema is not None:
        ema.check(section.ema)
    if section.model.lora is not None:
        lora.check(section.model.lora, section.init_from)
    fields = {
        "recadam": section.optim.recadam,
        "mars_radius": section.optim.mars_radius,
    }
    for name in (name for name, value in fields.items() if value):
        if section.init_from == "scratch":
            raise UserError(
                f"optim.{name} needs weights to stay near, but init_from='scratch'"
            )
        if section.model.lora is not None:
            raise UserError(
                f"optim.{name} and model.lora do not fit: all that trains is new"
            )


def _penalties(section: Any) -> None:
    penalties.check(section)
    named = penalties.references(section).get("der")
    if named is not None:
        count = len(drawing.sections(section.replay))
        if len(named) != count:
            raise UserError(
                f"penalties: `of` of 'der' names {len(named)} stages for {count} sources of "
                "replay.data: one for each, that learnt it"
            )
    if section.fisher is None:
        return
    fisher.check(section.fisher)
    if not check_model.keeps_classifier(section):
        raise UserError(
            "fisher is of the predictions of a classifier that is kept: objective "
            f"{section.objective.name!r} must be 'classify', model.projector and "
            "model.adaptor None"
        )


def _contrast(section: Any) -> None:
    """Contrast needs two views of an image and whole batches; others none."""
    contrast = section.objective.name == "contrast"
    if contrast and section.optim.accum_steps > 1:
        raise UserError(
            f"optim.accum_steps={section.optim.accum_steps} must be 1: 'contrast' "
            "compares all examples of a batch with each other"
        )
    objectives.build_carry(section.objective, section.num_steps)
    if contrast and section.data.modality == "text":
        _dropout(section.model)
    for data in check_model.measured_sections(section):
        if data.modality == "image" and len(data.views) != (2 if contrast else 0):
            raise UserError(
                f"data.views of {data.source} has {len(data.views)} augmentations; "
                f"objective {section.objective.name!r} needs {2 if contrast else 0}"
            )


def _dropout(model: Any) -> None:
    """The two views of a text differ by nothing else."""
    if model.dropout == 0 and model.drop_path == 0:
        raise UserError(
            "model.dropout=0 and drop_path=0 make the two views of a text the same; "
            "set one of them above 0, such as dropout=0.1"
        )


def _pairs(section: Any) -> None:
    """A partner from the source needs a source."""
    mixing = objectives.mixing_of(section.objective)
    if (
        mixing is None
        or mixing.pairing != "target_source"
        or section.replay is not None
    ):
        return
    raise UserError(
        "objective.mixing.pairing='target_source' needs source examples in the batch: "
        "give the stage a `replay`, or pair 'target_target' or 'any'"
    )


def _references(config: Any, section: Any, earlier: list[str]) -> None:
    if (section.objective.name == "distill") != (section.teacher != "none"):
        raise UserError(
            f"objective {section.objective.name!r} and teacher={section.teacher!r} do not "
            "fit: 'distill' needs a teacher, the others have 'none'"
        )
    fields = [(field, section[field]) for field in ("init_from", "teacher")]
    for penalty, named in penalties.references(section).items():
        fields += [(f"penalties: `of` of {penalty!r}", text) for text in named]
    for field, text in fields:
        if text.startswith("stage:") and text.removeprefix("stage:") not in earlier:
            raise UserError(
                f"{field}={text!r} is no earlier stage; there are: {', '.join(earlier)}"
            )
        if text == "pretrained" and not config.init:
            raise UserError(
                f"{field}='pretrained' but the config's `init` is empty; give init=PATH "
                "of a Hugging Face folder"
            )
    _left(config, section)


def _has_fisher(stage: Any) -> bool:
    return stage is not None and stage.fisher is not None


def _may_have_classifier(stage: Any) -> bool:
    """Of weights that no stage has made only they can tell."""
    return stage is None or check_model.keeps_classifier(stage)


_CLASSIFIER = (
    _may_have_classifier,
    "keeps no classifier: name a stage of objective 'classify' with model.projector and "
    "model.adaptor None",
)
# Whether what `of` names (None: no stage) has left what a penalty compares with.
_NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ewc": (_has_fisher, "must be 'stage:NAME' of a stage with a section `fisher`"),
    "lwf": _CLASSIFIER,
    "der": _CLASSIFIER,
}


def _left(config: Any, section: Any) -> None:
    """What penalties compare with is left by the stages that they name."""
    stages = {
        f"stage:{name}": stage for stage in config.stages for name in labels(stage)
    }
    for penalty, named in penalties.references(section).items():
        has_left, problem = _NEEDS[penalty]
        for text in named:
            if not has_left(stages.get(text)):
                raise UserError(f"penalties: `of` of {penalty!r}, {text!r}, {problem}")
