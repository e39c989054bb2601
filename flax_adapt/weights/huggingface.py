"""Folders of Hugging Face's ViT and ViTMAE: their config.json and their tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_adapt.errors import UserError, choose
from flax_adapt.weights import names, safetensors_folder, strict

# Leaves of the source that a task has no place for.
IGNORED = {
    "mae": ("head", "pooler"),
    "encoder": ("decoder", "head"),
    "classify": ("decoder", "pooler"),
}

# Defaults of transformers' ViTConfig and ViTMAEConfig: old files leave some fields out.
DEFAULTS: dict[str, Any] = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    image_size=224,
    patch_size=16,
    num_channels=3,
    qkv_bias=True,
    decoder_num_attention_heads=16,
    decoder_hidden_size=512,
    decoder_num_hidden_layers=8,
    decoder_intermediate_size=2048,
    pooler_act="tanh",
    pooler_output_size=None,
)
FIELDS = dict(
    image_size="image_size",
    patch_size="patch_size",
    channels="num_channels",
    width="hidden_size",
    depth="num_hidden_layers",
    heads="num_attention_heads",
    mlp_dim="intermediate_size",
    layer_norm_eps="layer_norm_eps",
    qkv_bias="qkv_bias",
)
DECODER_FIELDS = dict(
    width="decoder_hidden_size",
    depth="decoder_num_hidden_layers",
    heads="decoder_num_attention_heads",
    mlp_dim="decoder_intermediate_size",
)
GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
HIDDEN_ACT = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
MODEL_TYPES = ("vit", "vit_mae")
NUMBERS = {bool: "bool", int: "positive whole number", float: "positive float"}


def model_config(folder: Path) -> dict[str, Any]:
    """Returns our model config of a folder.

    `pooler` is read off the tensors' names: config.json does not say.
    """
    where = f"{folder}/{safetensors_folder.CONFIG}"
    theirs = DEFAULTS | safetensors_folder.read_json(folder / safetensors_folder.CONFIG)
    kind = theirs.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type={kind!r} is not one of {MODEL_TYPES}")
    for size in ("image_size", "patch_size"):
        theirs[size] = _square(f"{where}: {size}", theirs[size])
    _check_numbers(where, theirs)
    config = {ours: theirs[name] for ours, name in FIELDS.items()}
    config["gelu"] = choose(f"{where}: hidden_act", theirs["hidden_act"], GELU)
    found = map(names.leaf_of, safetensors_folder.tensor_names(folder))
    config["pooler"] = "pooler/kernel" in found
    if config["pooler"]:
        _check_pooler(where, theirs)
    decoder = {ours: theirs[name] for ours, name in DECODER_FIELDS.items()}
    return {**config, "decoder": decoder if kind == "vit_mae" else None}


def _square(what: str, value: Any) -> int:
    sides = value if isinstance(value, list) else [value]
    if len(set(sides)) != 1 or type(sides[0]) is not int:
        raise UserError(f"{what}={value!r}: only squares are supported")
    return sides[0]


def _check_numbers(where: str, theirs: Mapping[str, Any]) -> None:
    for name in (*FIELDS.values(), *DECODER_FIELDS.values()):
        kind, value = type(DEFAULTS[name]), theirs[name]
        if type(value) is not kind or (kind is not bool and value <= 0):
            raise UserError(f"{where}: {name}={value!r} must be a {NUMBERS[kind]}")


def _check_pooler(where: str, theirs: Mapping[str, Any]) -> None:
    act = theirs["pooler_act"]
    size = theirs["pooler_output_size"] or theirs["hidden_size"]
    if act != "tanh" or size != theirs["hidden_size"]:
        raise UserError(
            f"{where}: pooler_act={act!r}, pooler_output_size={size}: only tanh of "
            "hidden_size is supported"
        )


def architecture(config: Mapping[str, Any], task: str) -> str:
    """Returns the transformers class that a model is written as."""
    encoder = "ViTModel" if config["decoder"] is None else "ViTMAEModel"
    return {
        "mae": "ViTMAEForPreTraining",
        "encoder": encoder,
        "classify": "ViTForImageClassification",
    }[task]


def config_json(
    config: Mapping[str, Any], task: str, num_classes: int, pooling: str
) -> dict[str, Any]:
    """Returns the config.json of a model."""
    kind = architecture(config, task)
    theirs = {
        "architectures": [kind],
        "model_type": "vit_mae" if "MAE" in kind else "vit",
        **{name: config[ours] for ours, name in FIELDS.items()},
        "hidden_act": HIDDEN_ACT[config["gelu"]],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    if "MAE" in kind:
        decoder = config["decoder"]
        return theirs | {name: decoder[ours] for ours, name in DECODER_FIELDS.items()}
    theirs["encoder_stride"] = config["patch_size"]
    if task == "classify":
        labels = {str(i): f"LABEL_{i}" for i in range(num_classes)}
        theirs["id2label"] = labels
        theirs["label2id"] = {name: int(number) for number, name in labels.items()}
        # transformers knows CLS pooling only; `from_pretrained` of ours reads this.
        theirs["pooling"] = pooling
    return theirs


def preprocessor_json(
    image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """Returns preprocessor_config.json: bilinear resize to a square, mean and std."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 2,  # PIL's BILINEAR
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def read(
    folder: Path, task: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Returns (model config, {leaf: array}, fields of `strict.Report`).

    A tensor of an unknown name is kept as such: `adopt` will say it is unexpected.
    """
    config = model_config(folder)
    tensors, converted = safetensors_folder.read(folder)
    leaves: dict[str, np.ndarray] = {}
    renamed, ignored = {}, {}
    for name, tensor in tensors.items():
        leaf = names.leaf_of(name) or strict.unknown(name)
        part = leaf.split("/")[0]
        if part in IGNORED[task]:
            ignored[name] = f"{part} dropped for task {task}"
            continue
        if leaf in leaves:
            raise UserError(f"{folder}: two tensors are {leaf}; one of them is {name}")
        renamed[name] = leaf
        leaves[leaf] = names.to_ours(leaf, tensor)
    converted = {name: kind for name, kind in converted.items() if name in renamed}
    return config, leaves, dict(renamed=renamed, ignored=ignored, converted=converted)


def write(
    folder: Path,
    config: Mapping[str, Any],
    leaves: Mapping[str, np.ndarray],
    task: str,
    *,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
) -> None:
    """Writes the folder of the class `architecture(config, task)`."""
    bias = leaves.get("head/bias")
    num_classes = 0 if bias is None else len(bias)
    base = architecture(config, task) in ("ViTModel", "ViTMAEModel")
    tensors = {}
    for leaf, array in leaves.items():
        name = names.name_of(leaf).removeprefix("vit." if base else "")
        array = np.asarray(array, np.float32)
        tensors[name] = names.to_theirs(leaf, array, config["patch_size"])
    theirs = config_json(config, task, num_classes, pooling)
    jsons = {safetensors_folder.CONFIG: theirs}
    if preprocessor is not None:
        jsons[safetensors_folder.PREPROCESSOR] = dict(preprocessor)
    safetensors_folder.write(folder, tensors, jsons)
