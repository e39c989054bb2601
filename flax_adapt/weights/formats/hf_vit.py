"""Reads and writes config.json of Hugging Face's ViT and ViTMAE."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.weights import extras, fields
from flax_adapt.weights.names import vit as vit_names
from flax_adapt.weights.names.names import Names

# The only pooling in transformers; the field `pooling` in config.json is ours.
POOLING = "cls"

# Task -> parts of the parameters that it does not have.
IGNORED = {
    "mae": ("head", "pooler"),
    "encoder": ("decoder", "head"),
    "classify": ("decoder", "pooler"),
}

# Defaults of transformers' ViTConfig and ViTMAEConfig: old files leave some fields out.
DEFAULTS: dict[str, Any] = dict(
    **fields.DEFAULTS,
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
    **fields.NAMES,
    qkv_bias="qkv_bias",
)
# Settings that a masked autoencoder was trained with: field of the objective -> theirs.
RECONSTRUCTION = dict(normalize_patches="norm_pix_loss", hidden_ratio="mask_ratio")
DECODER_FIELDS = dict(
    width="decoder_hidden_size",
    depth="decoder_num_hidden_layers",
    heads="decoder_num_attention_heads",
    mlp_dim="decoder_intermediate_size",
)


def names(config: Mapping[str, Any], task: str) -> Names:
    """Returns the table of names; it is the same for all configs and tasks."""
    del config, task
    return vit_names.VIT


def ignored(task: str, pooling: str) -> tuple[str, ...]:
    """Returns the parts of the parameters that a task does not have; they are ignored."""
    del pooling
    return IGNORED[task]


def model_config(
    where: str, kind: str, theirs: Mapping[str, Any], found: Iterable[str]
) -> dict[str, Any]:
    """Returns our model config of a config.json; raises UserError where we cannot build it.

    theirs: content of the config.json. found: names of the tensors, which show a pooler.
    """
    theirs = {**DEFAULTS, **theirs}
    for size in ("image_size", "patch_size"):
        theirs[size] = fields.square(f"{where}: {size}", theirs[size])
    fields.check_numbers(where, theirs, DEFAULTS, FIELDS.values())
    config = {"kind": kind} | {ours: theirs[name] for ours, name in FIELDS.items()}
    config["gelu"] = fields.gelu(where, theirs["hidden_act"])
    config["pooler"] = "pooler/kernel" in map(vit_names.VIT.leaf_of, found)
    if config["pooler"]:
        _check_pooler(where, theirs)
    config |= {**extras.read(where, theirs), "traits": None}
    of_decoder = decoder(where, theirs)
    is_mae = theirs["model_type"] == "vit_mae"
    return {**config, "decoder": of_decoder if is_mae else None}


def decoder(where: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the decoder's sizes in a config.json; raises UserError for wrong values."""
    theirs = {**DEFAULTS, **theirs}
    fields.check_numbers(where, theirs, DEFAULTS, DECODER_FIELDS.values())
    return {ours: theirs[name] for ours, name in DECODER_FIELDS.items()}


def decoder_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of config.json that `decoder` reads."""
    return {name: config["decoder"][ours] for ours, name in DECODER_FIELDS.items()}


def constants(config: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns {}: the classes have no tensors but those of our models."""
    del config, prefix
    return {}


def _check_pooler(where: str, theirs: Mapping[str, Any]) -> None:
    act = theirs["pooler_act"]
    size = theirs["pooler_output_size"] or theirs["hidden_size"]
    if act != "tanh" or size != theirs["hidden_size"]:
        raise UserError(
            f"{where}: pooler_act={fields.show(act)}, pooler_output_size="
            f"{fields.show(size)}: only tanh of hidden_size is supported"
        )


def architecture(config: Mapping[str, Any], task: str) -> str:
    """Returns the name of the transformers class for a model of a task."""
    encoder = "ViTModel" if config["decoder"] is None else "ViTMAEModel"
    return {
        "mae": "ViTMAEForPreTraining",
        "encoder": encoder,
        "classify": "ViTForImageClassification",
    }[task]


def config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    """Returns the config.json of a model, without the fields that all families share."""
    del num_classes
    is_mae = "MAE" in architecture(config, task)
    theirs = {
        "model_type": "vit_mae" if is_mae else "vit",
        **{name: config[ours] for ours, name in FIELDS.items()},
        "hidden_act": fields.HIDDEN_ACT[config["gelu"]],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
    }
    if is_mae:
        return theirs | decoder_json(config)
    return {**theirs, "encoder_stride": config["patch_size"]}


def reconstruction(where: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of RECONSTRUCTION in a config.json, by our names.

    Raises UserError for wrong values.
    """
    named = {
        ours: name
        for ours, name in RECONSTRUCTION.items()
        if theirs.get(name) is not None
    }
    found = {ours: theirs[name] for ours, name in named.items()}
    fields.check_reconstruction(where, found, named)
    return found


def reconstruction_json(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the fields of config.json that `reconstruction` reads."""
    return {RECONSTRUCTION[ours]: value for ours, value in (found or {}).items()}


# Our field of preprocessor_config.json, which transformers ignores: how files are read.
READING = "flax_adapt_reading"
# Its fields, and the usual way, which need not be told.
USUAL_READING: dict[str, Any] = dict(fit="squash", bits=0, window="")


def preprocessor_json(
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    reading: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns preprocessor_config.json: bilinear resize to a square, mean and std.

    mean, std: of pixels in [0, 1], one number a channel. reading: see `weights.save_pretrained`.
    """
    ours = {READING: dict(reading)} if reading else {}
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
        **ours,
    }
