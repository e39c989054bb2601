"""Reads and writes config.json of Hugging Face's DINOv2, with and without registers.

transformers has no masked autoencoder on it: for the task "mae" we write a folder with a
model_type that transformers rejects, and that only we read.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.base.errors import UserError, choose
from flax_adapt.models.visual.traits import RESIZES, make_fields
from flax_adapt.weights import extras, fields
from flax_adapt.weights.formats import hf_vit
from flax_adapt.weights.names import dinov2 as dinov2_names
from flax_adapt.weights.names.names import Names

# Dinov2ForImageClassification: the states of CLS and the mean of the patches.
POOLING = "cls_mean"
MAE = "_mae"
MAE_NOTE = "A masked autoencoder: transformers cannot build it; flax_adapt.from_pretrained does"
IGNORED = {"mae": ("head",), "encoder": ("decoder", "head"), "classify": ("decoder",)}
# Defaults of transformers' Dinov2Config and Dinov2WithRegistersConfig; they differ in the
# patch size, see `PATCH_SIZES`.
DEFAULTS: dict[str, Any] = dict(
    **{k: v for k, v in fields.DEFAULTS.items() if k != "intermediate_size"},
    image_size=224,
    num_channels=3,
    qkv_bias=True,
    mlp_ratio=4,
    use_swiglu_ffn=False,
    num_register_tokens=4,
) | dict(layer_norm_eps=1e-6)
PATCH_SIZES = {"dinov2": 14, "dinov2_with_registers": 16}
CLASSES = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
# How transformers resizes the positions.
OWN_RESIZE = {"dinov2": "bicubic", "dinov2_with_registers": "antialias"}
RESIZE = "position_resize"
FIELDS = {k: v for k, v in hf_vit.FIELDS.items() if k not in ("mlp_dim", "patch_size")}
LARGEST_RATIO = 64


def names(config: Mapping[str, Any], task: str) -> Names:
    """Returns the table of names of a model config."""
    del task
    traits = config["traits"]
    return dinov2_names.names(traits["registers"], traits["swiglu"])


def ignored(task: str, pooling: str) -> tuple[str, ...]:
    """Returns the parts of the parameters that a task does not have; they are ignored."""
    del pooling
    return IGNORED[task]


def constants(config: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns {name: shape} of tensors of zeros to write, which transformers asks for.

    prefix: the part of names that is left out. With registers the class always has a mask
    token; without them config.json says that there is none.
    """
    registers = config["traits"]["registers"]
    name = f"{dinov2_names.prefix_of(registers)}embeddings.mask_token"
    shape = (1, config["width"])
    return {name.removeprefix(prefix): shape} if registers else {}


def model_config(
    where: str, kind: str, theirs: Mapping[str, Any], found: Iterable[str]
) -> dict[str, Any]:
    """Returns our model config of a config.json; raises UserError where we cannot build it."""
    del found
    model_type = theirs["model_type"].removesuffix(MAE)
    theirs = {**DEFAULTS, "patch_size": PATCH_SIZES[model_type], **theirs}
    for size in ("image_size", "patch_size"):
        theirs[size] = fields.square(f"{where}: {size}", theirs[size])
    numbers = (*FIELDS.values(), "mlp_ratio", "use_swiglu_ffn")
    fields.check_numbers(where, theirs, DEFAULTS, numbers)
    config = {"kind": kind, "patch_size": theirs["patch_size"]}
    config |= {ours: theirs[name] for ours, name in FIELDS.items()}
    swiglu = theirs["use_swiglu_ffn"]
    config["mlp_dim"] = mlp_dim(theirs["hidden_size"], theirs["mlp_ratio"], swiglu)
    config["gelu"] = fields.gelu(where, theirs["hidden_act"])
    config["pooler"] = False
    config |= extras.read(where, theirs)
    config["traits"] = _traits(where, model_type, theirs)
    is_mae = theirs["model_type"].endswith(MAE)
    return {**config, "decoder": hf_vit.decoder(where, theirs) if is_mae else None}


def _traits(where: str, model_type: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    has_registers, registers = model_type != "dinov2", theirs["num_register_tokens"]
    if has_registers and (type(registers) is not int or not 0 < registers <= 1024):
        raise UserError(
            f"{where}: num_register_tokens={fields.show(registers)} must be a number in "
            "[1, 1024]"
        )
    resize = fields.text(theirs.get(RESIZE, OWN_RESIZE[model_type]))
    resize = choose(f"{where}: {RESIZE}", resize, {name: name for name in RESIZES})
    return make_fields(
        registers=registers if has_registers else 0,
        layer_scale=True,
        swiglu=theirs["use_swiglu_ffn"],
        position_resize=resize,
    )


def holds(config: Mapping[str, Any]) -> bool:
    """Returns whether transformers' DINOv2 is a model with traits, in all its fields."""
    traits = config["traits"]
    names = ("registers", "swiglu", RESIZE)
    own = make_fields(layer_scale=True, **{name: traits[name] for name in names})
    has_ratio = _mlp_ratio(config) is not None
    return traits == own and has_ratio and not config["pooler"]


def mlp_dim(width: int, ratio: int, swiglu: bool) -> int:
    """Returns the width of the MLP's hidden layer, as transformers computes it."""
    return (width * ratio * 2 // 3 + 7) // 8 * 8 if swiglu else width * ratio


def model_type(config: Mapping[str, Any]) -> str:
    """Returns transformers' model_type of a model config with traits."""
    return "dinov2_with_registers" if config["traits"]["registers"] else "dinov2"


def architecture(config: Mapping[str, Any], task: str) -> str:
    """Returns the name of the transformers class; of a masked autoencoder there is none."""
    stem = CLASSES[model_type(config)]
    return (
        stem
        + {
            "mae": "MAEForPreTraining",
            "encoder": "Model",
            "classify": "ForImageClassification",
        }[task]
    )


def config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    """Returns the config.json of a model, without the fields that all families share.

    config: one that `holds` accepts.
    """
    del num_classes
    kind, traits = model_type(config), config["traits"]
    theirs: dict[str, Any] = {
        "model_type": kind + MAE * (task == "mae"),
        "patch_size": config["patch_size"],
        **{name: config[ours] for ours, name in FIELDS.items()},
        "mlp_ratio": _mlp_ratio(config),
        "use_swiglu_ffn": traits["swiglu"],
        "hidden_act": fields.HIDDEN_ACT[config["gelu"]],
    }
    if traits["registers"]:
        theirs["num_register_tokens"] = traits["registers"]
    else:
        theirs["use_mask_token"] = False
    if traits[RESIZE] != OWN_RESIZE[kind]:
        theirs[RESIZE] = traits[RESIZE]  # ours: transformers resizes in one way alone
    if task == "mae":
        theirs |= hf_vit.decoder_json(config) | {extras.NOTE_FIELD: MAE_NOTE}
    return theirs


def _mlp_ratio(config: Mapping[str, Any]) -> int | None:
    """Returns the whole mlp_ratio that makes mlp_dim of the width, or None."""
    width, swiglu = config["width"], config["traits"]["swiglu"]
    for ratio in range(1, LARGEST_RATIO):
        if mlp_dim(width, ratio, swiglu) == config["mlp_dim"]:
            return ratio
    return None
