"""Sections that the shipped configs share: complete, every value explicit.

The values of S1 (Lee et al. 2023) are those of its released code, METHODS table; what the
code leaves open, and all that concerns text, is said to be ours.
"""

from flax_adapt.defaults.shared import (
    ALL,
    classify,
    distill,
    distill_stages,
    evaluate,
    experiment,
    finetune_optim,
    finetune_stage,
    pretrain_optim,
    pretrain_stage,
    reconstruct,
    regress,
)
from flax_adapt.defaults.text import (
    TEXT_ARGUMENTS,
    TextData,
    mlm,
    text_data,
    text_finetune_optim,
    text_finetune_stage,
    text_optim,
    text_pretrain_stage,
)
from flax_adapt.defaults.vision import (
    DATASETS,
    S1_ARGUMENTS,
    S1_PRETRAIN_ARGUMENTS,
    S1Data,
    dataset,
    image_data,
    pixel_statistics,
)

__all__ = [
    "ALL",
    "DATASETS",
    "S1_ARGUMENTS",
    "S1_PRETRAIN_ARGUMENTS",
    "TEXT_ARGUMENTS",
    "S1Data",
    "TextData",
    "classify",
    "dataset",
    "distill",
    "distill_stages",
    "evaluate",
    "experiment",
    "finetune_optim",
    "finetune_stage",
    "image_data",
    "mlm",
    "pixel_statistics",
    "pretrain_optim",
    "pretrain_stage",
    "reconstruct",
    "regress",
    "text_data",
    "text_finetune_optim",
    "text_finetune_stage",
    "text_optim",
    "text_pretrain_stage",
]
