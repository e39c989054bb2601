"""Builds models from a table of kinds and tasks: `build(config.model, task, ...)`.

A model config is a plain mapping whose `kind` names the architecture. "vit": the fields
of `ViTConfig`, and `decoder`, the fields of `DecoderConfig` or None. "bert", "roberta":
those of `BertConfig`. `last_block`, `adaptor` and `traits` are the fields of FORMS, or
None. "resnet": the fields of `ResNetConfig`. See `published` for all of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flax_adapt.base.errors import UserError, choose
from flax_adapt.models import batch_stats, resnet, text, vit
from flax_adapt.models.adaptors import AdaptorConfig
from flax_adapt.models.architecture import (
    GELU,
    LastBlock,
    ViTConfig,
    complete,
    encoder_config,
    num_blocks,
    of_stage,
    with_resize,
)
from flax_adapt.models.contrast import Contrast, TextContrast
from flax_adapt.models.fresh import init_params
from flax_adapt.models.heads import ProjectorConfig
from flax_adapt.models.layers import ATTENTIONS, SUMS
from flax_adapt.models.mae import MAE, DecoderConfig
from flax_adapt.models.published import (
    PAPER_DECODER,
    SIZES,
    bert_config,
    mae_config,
    resnet_config,
    vit_config,
)
from flax_adapt.models.resnet import ResNet, ResNetClassifier, ResNetContrast
from flax_adapt.models.resnet_config import ResNetConfig, output_width
from flax_adapt.models.text import Bert, MaskedLM, TextClassifier
from flax_adapt.models.textual.config import BertConfig, check_fits
from flax_adapt.models.textual.traits import TextTraits
from flax_adapt.models.visual.patches import patchify, sincos_position, unpatchify
from flax_adapt.models.visual.pooling import POOLING, pool
from flax_adapt.models.visual.traits import Traits
from flax_adapt.models.vit import Classifier, Encoder, ViT

__all__ = [
    "ATTENTIONS",
    "CLASSIFIER_POOLING",
    "DTYPES",
    "GELU",
    "KEPT_TASKS",
    "MAE",
    "PAPER_DECODER",
    "POOLING",
    "SIZES",
    "SUMS",
    "TASKS",
    "AdaptorConfig",
    "Bert",
    "BertConfig",
    "Classifier",
    "Contrast",
    "DecoderConfig",
    "Encoder",
    "LastBlock",
    "MaskedLM",
    "ProjectorConfig",
    "ResNet",
    "ResNetClassifier",
    "ResNetConfig",
    "ResNetContrast",
    "TextClassifier",
    "TextContrast",
    "Traits",
    "ViT",
    "ViTConfig",
    "batch_stats",
    "bert_config",
    "build",
    "check_fits",
    "check_resize",
    "complete",
    "config_of",
    "encoder_config",
    "init_params",
    "mae_config",
    "num_blocks",
    "of_stage",
    "output_width",
    "patchify",
    "pool",
    "resnet_config",
    "sincos_position",
    "task_of",
    "unpatchify",
    "vit_config",
    "with_resize",
    "without_adaptor",
]

TEXT_TASKS = {
    "mlm": MaskedLM,
    "encoder": Bert,
    "classify": TextClassifier,
    "contrast": TextContrast,
}
# kind -> task -> module.
TASKS: dict[str, dict[str, type[nn.Module]]] = {
    "vit": dict(mae=MAE, encoder=ViT, classify=Classifier, contrast=Contrast),
    "bert": TEXT_TASKS,
    "roberta": TEXT_TASKS,
    "resnet": {
        "encoder": ResNet,
        "classify": ResNetClassifier,
        "contrast": ResNetContrast,
    },
}
# Tasks whose weights are stored: the heads of "contrast" are dropped after training.
KEPT_TASKS = ("mae", "mlm", "encoder", "classify")
# Poolings of a model of task "contrast", by kind.
CONTRAST_POOLING = {
    "vit": tuple(POOLING),
    **dict.fromkeys(("bert", "roberta"), tuple(text.POOLING)),
    "resnet": tuple(resnet.POOLING),
}
# Poolings of a classifier. `embed` of a text model takes the names in `text.POOLING` alone.
TEXT_POOLING = ("pooler", *text.POOLING)
CLASSIFIER_POOLING = {
    **CONTRAST_POOLING,
    **dict.fromkeys(("bert", "roberta"), TEXT_POOLING),
}
_OF_TEXT = dict(last_block=LastBlock, adaptor=AdaptorConfig, traits=TextTraits)
# Kind -> (architecture, fields of a config that it has not, parts that are sections of
# their own, or None).
FORMS: dict[str, tuple[type, tuple[str, ...], dict[str, type]]] = {
    "vit": (ViTConfig, ("kind", "decoder"), {**_OF_TEXT, "traits": Traits}),
    "bert": (BertConfig, (), _OF_TEXT),
    "roberta": (BertConfig, (), _OF_TEXT),
    "resnet": (ResNetConfig, (), dict(last_block=LastBlock)),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
    config_model: Mapping[str, Any],
    task: str,
    *,
    dtype: str,
    dropout: float,
    drop_path: float,
    pooling: str,
    num_classes: int,
    projector: Mapping[str, Any] | None = None,
    head_norm: bool = False,
) -> nn.Module:
    """Returns the module of `task`; raises UserError for values that no model can have.

    dtype: "float32" or "bfloat16", of the computation; parameters are always float32.
    pooling: of the features, for "classify" and "contrast". num_classes: for "classify";
    one class of text is regression. projector: the fields of `ProjectorConfig`, for
    "contrast" and, or None, for "classify". head_norm: of transformers, see
    `LinearClassifier`.
    """
    if "kind" not in config_model:
        raise UserError(f"model.kind is missing; set it to one of {sorted(TASKS)}")
    kind = config_model["kind"]
    tasks = choose("model.kind", kind, TASKS)
    module = choose(f"task of a {kind} model: task", task, tasks)
    config = _architecture(config_model)
    common: tuple[Any, ...] = (config, choose("dtype", dtype, DTYPES))
    if kind == "resnet":
        resnet.check_rates(dropout, drop_path)
    else:
        common += (dropout, drop_path)
    if task == "classify":
        head = (pooling, num_classes, projector, head_norm)
        return module(*common, *_head(kind, *head))
    if task == "contrast":
        choose("pooling", pooling, dict.fromkeys(CONTRAST_POOLING[kind]))
        return module(*common, pooling, _projector(projector))
    if task == "mae":
        return module(*common, _decoder(config_model))
    return module(*common)


def _head(
    kind: str,
    pooling: str,
    num_classes: int,
    projector: Mapping[str, Any] | None,
    head_norm: bool,
) -> tuple[Any, ...]:
    """Returns a classifier's own fields, which follow those that all models have."""
    choose("pooling", pooling, dict.fromkeys(CLASSIFIER_POOLING[kind]))
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes} must be at least 1")
    made = None if projector is None else _projector(projector)
    if kind != "resnet":
        return pooling, num_classes, made, head_norm
    if head_norm:
        raise UserError("model.head_norm must be False for a resnet")
    return pooling, num_classes, made


def _architecture(
    config_model: Mapping[str, Any],
) -> ViTConfig | BertConfig | ResNetConfig:
    config_model = complete(config_model)
    form, beside, parts = FORMS[config_model["kind"]]
    for name, part in parts.items():
        if config_model.get(name) is not None:
            made = make_config(part, config_model[name], f"model.{name}", ())
            config_model = {**config_model, name: made}
    return make_config(form, config_model, "model", beside)


def check_resize(config_model: Mapping[str, Any], resize: Mapping[str, Any]) -> None:
    """Raises UserError if the model cannot get the last block of `model.resize`."""
    if config_model["last_block"] is not None:
        raise UserError(
            "model.resize: the model has a last block of its own, which stays as it is; "
            "set model.resize to None (variant=same), or start from the weights it was "
            "made of"
        )
    _architecture(with_resize(config_model, resize))


def _decoder(config_model: Mapping[str, Any]) -> DecoderConfig:
    if config_model["decoder"] is None:
        raise UserError(
            "model.decoder is None but task 'mae' needs one; set its width, depth, "
            "heads and mlp_dim"
        )
    return make_config(DecoderConfig, config_model["decoder"], "model.decoder", ())


def _projector(mapping: Mapping[str, Any] | None) -> ProjectorConfig:
    if mapping is None:
        raise UserError(
            "model.projector is None but task 'contrast' needs one; set its layers, "
            "hidden, width, predictor_layers and batch_norm"
        )
    return make_config(ProjectorConfig, mapping, "model.projector", ())


def make_config(
    form: type, mapping: Mapping[str, Any], where: str, beside: tuple[str, ...]
) -> Any:
    """Returns the dataclass `form` filled from `mapping`, whose place `where` names in errors.

    beside: names that `mapping` may have and `form` has not. Raises UserError for others.
    """
    names = {field.name for field in dataclasses.fields(form)}
    missing = sorted(names - set(mapping))
    unknown = sorted(set(mapping) - names - set(beside))
    if missing or unknown:
        raise UserError(f"{where}: fields missing {missing}, unknown {unknown}")
    return form(**{name: mapping[name] for name in names})


def config_of(model: nn.Module) -> dict[str, Any]:
    """Returns the model config that `build` makes the model from."""
    config = dataclasses.asdict(model.config)
    if isinstance(model, vit.ImageModel):
        decoder = model.decoder_config if isinstance(model, MAE) else None
        config["kind"] = "vit"
        config["decoder"] = None if decoder is None else dataclasses.asdict(decoder)
    return config


def without_adaptor(model: nn.Module) -> nn.Module:
    """Returns the encoder without adaptors: the unadapted path on the same parameters."""
    config = encoder_config(config_of(model))
    names = {dtype: name for name, dtype in DTYPES.items()}
    return build(
        config,
        "encoder",
        dtype=names[model.dtype],
        dropout=0.0,
        drop_path=0.0,
        pooling="cls",
        num_classes=0,
    )


def task_of(model: nn.Module) -> str:
    """Returns the name of the model's task in TASKS."""
    tasks = TASKS[config_of(model)["kind"]]
    return next(task for task, module in tasks.items() if type(model) is module)
