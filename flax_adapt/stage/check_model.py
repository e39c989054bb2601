"""Mistakes in what a stage makes of the model: its heads, adaptors and last block must fit
the objective, and the model its data.
"""

from typing import Any

from flax_adapt import models, objectives
from flax_adapt.base.errors import UserError, choose
from flax_adapt.objectives import classify, penalties
from flax_adapt.surgery import SURGERY
from flax_adapt.train import optim


def check(config: Any, section: Any) -> None:
    """Raises UserError for the first mistake in what a stage makes of the model."""
    _modality(config, section)
    _projector(section)
    _resize(config, section)
    _adaptor(config, section)
    _head(section)
    _batch_norm(config, section)


def measured_sections(section: Any) -> list[Any]:
    """What the stage trains on, and what it is evaluated on."""
    return [section.data, *([] if section.eval is None else [section.eval.data])]


def task_without(section: Any, *parts: str) -> str:
    """The task of a stage; where its model has one of `parts`, of the encoder alone; where
    another task is trained beside, that.
    """
    beside = objectives.beside_of(section.objective)
    has_part = any(section.model[part] is not None for part in parts)
    return beside or ("encoder" if has_part else objectives.task_of(section.objective))


def kept_task(section: Any) -> str:
    """The task whose weights a stage exports.

    Where there is a projector, or adaptors, only the encoder (and what was trained
    beside): what stands on them is dropped with them.
    """
    return task_without(section, "projector", "adaptor")


def keeps_classifier(section: Any) -> bool:
    """Whether a stage exports a head that tells classes."""
    tells_classes = section.objective.name in classify.OF_CLASSES
    return tells_classes and kept_task(section) == "classify"


def _modality(config: Any, section: Any) -> None:
    """Images go into a ViT, text into a BERT."""
    kind = config.model.kind
    tasks = choose("model.kind", kind, models.TASKS)
    task = objectives.task_of(section.objective)
    modality = choose(f"the task of model.kind={kind!r}", task, tasks).modality
    for data in measured_sections(section):
        if data.modality != modality:
            raise UserError(
                f"data.source={data.source!r} gives {data.modality}, but the model is a "
                f"{kind}, which takes {modality}"
            )


def _projector(section: Any) -> None:
    """Contrast needs one, a classifier may have one."""
    name, projector = section.objective.name, section.model.projector
    if name == "contrast" and projector is None:
        raise UserError(
            "model.projector must be given for objective 'contrast' (layers=0, "
            "predictor_layers=0: none)"
        )
    if projector is None or name == "contrast":
        return
    if name != "classify":
        raise UserError(
            f"model.projector must be None for objective {name!r}; 'contrast' and "
            "'classify' can have one"
        )
    if projector.batch_norm or projector.predictor_layers:
        raise UserError(
            "model.projector of objective 'classify' needs batch_norm=False (what an "
            "example is taken for must not depend on its batch) and predictor_layers=0"
        )


def _resize(config: Any, section: Any) -> None:
    if section.model.resize is not None:
        surgery = SURGERY[config.model.kind]
        surgery.check(section.model.resize, config.model, section.init_from)


def _batch_norm(config: Any, section: Any) -> None:
    """A ResNet, or `head_norm`, needs whole batches."""
    if config.model.kind == "resnet":
        optim.check_layer_decay(section.optim.layer_decay, True)
        choose("model.pooling", section.model.pooling, models.resnet.POOLING)
        _whole_batches(section, "a resnet")
    if section.model.head_norm:
        _head_norm(config, section)
        _whole_batches(section, "model.head_norm")


def _head_norm(config: Any, section: Any) -> None:
    name = section.objective.name
    if config.model.kind == "resnet" or name not in ("classify", "regress"):
        raise UserError(
            "model.head_norm is of a head on a transformer: it must be False for a "
            f"{config.model.kind} and objective {name!r}; 'classify' and 'regress' can have it"
        )
    if "head" not in section.model.fresh:
        raise UserError(
            "model.head_norm changes what the head is given, which must then be new: name "
            "'head' in model.fresh"
        )


def _whole_batches(section: Any, what: str) -> None:
    """Batch norm goes by all examples, once."""
    if section.optim.accum_steps > 1:
        raise UserError(
            f"optim.accum_steps={section.optim.accum_steps} must be 1: batch norm goes "
            "by all examples of a batch"
        )
    compares = [
        p.name for p in section.penalties if penalties.PENALTIES[p.name].classifies
    ]
    if compares or section.fisher is not None:
        raise UserError(
            f"penalties {compares} and fisher are not of {what}: they take examples out "
            "of the batch that its batch norm goes by"
        )


def _adaptor(config: Any, section: Any) -> None:
    """GLAD needs adaptors, a classifier may have them."""
    name, adaptor = section.objective.name, section.model.adaptor
    if name == "glad" and adaptor is None:
        raise UserError(
            "model.adaptor must be given for objective 'glad', such as "
            "dict(kind='vector', keywise=False, hidden=0)"
        )
    if adaptor is not None and config.model.kind == "resnet":
        raise UserError(
            "model.adaptor must be None: a resnet has no attention to adapt"
        )
    if adaptor is not None and name not in ("glad", "classify"):
        raise UserError(
            f"model.adaptor must be None for objective {name!r}; 'glad' and 'classify' "
            "can have adaptors"
        )


def _head(section: Any) -> None:
    """A head that grows is not new, and what it stands on is kept with it."""
    options = section.model
    dropped = options.projector is not None or options.adaptor is not None
    if options.grow_head and (
        section.objective.name != "classify" or dropped or "head" in options.fresh
    ):
        raise UserError(
            "model.grow_head is of objective 'classify' without projector and adaptor, "
            "whose head is not in model.fresh"
        )
