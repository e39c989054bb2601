"""Reads and writes config.json of Hugging Face's DeiT, CLIP's images, DINOv3, and of ours.

A family holds a model if its config.json gives the model config back. For others there is
GENERAL: a folder of the same layout that transformers cannot build, and that only we read.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax_adapt.base.errors import UserError
from flax_adapt.models.visual import traits as visual
from flax_adapt.models.visual.pooling import CLS_DIST
from flax_adapt.weights import extras, fields
from flax_adapt.weights.formats import hf_vit
from flax_adapt.weights.names import visual as visual_names
from flax_adapt.weights.names.names import Names

IGNORED = {
    "mae": ("head", "head_dist", "pooler"),
    "encoder": ("decoder", "head", "head_dist"),
    "classify": ("decoder", "pooler"),
}
SIZES = {k: v for k, v in hf_vit.FIELDS.items() if k != "qkv_bias"}
TRAITS, NO_ACT = "traits", ("silu", "erf")
NOTE = "No class of transformers is this model: flax_adapt.from_pretrained builds it"
# DINOv3: our augmentation of coordinates -> theirs, where 0 of ours is absent.
AUGMENTS = {name: f"pos_embed_{name.split('_')[1]}" for name in visual.AUGMENTS}
# The registers that we accept in a file.
MOST = visual.MAX_REGISTERS
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Visual:
    """A family; an instance is a `huggingface.Family`.

    classes: task -> class of transformers. defaults: of its config. table: names of
    tensors. read: (where, config.json with defaults) -> the fields `traits`, `qkv_bias` and
    `gelu` of the model config. write: a model config -> fields of config.json besides sizes.
    zeros: tensors of one row that we do not have, and that the class asks for. registers:
    the tensor of registers, for a class that asks for it where there are none, too.
    """

    model_type: str
    classes: Mapping[str, str]
    defaults: Json
    table: Names
    read: Callable[[str, Json], dict[str, Any]]
    write: Callable[[Json], dict[str, Any]]
    zeros: tuple[str, ...] = ()
    registers: str = ""
    POOLING: str = "cls"

    def names(self, config: Json, task: str) -> Names:
        """Returns the table of names; it is the same for all configs and tasks."""
        del config, task
        return self.table

    def ignored(self, task: str, pooling: str) -> tuple[str, ...]:
        """Returns the parts of the parameters that a task does not have."""
        second = () if pooling == CLS_DIST else ("head_dist",)
        return (*IGNORED[task], *second)

    def constants(self, config: Json, prefix: str) -> dict[str, tuple[int, ...]]:
        """Returns {name: shape} of tensors of zeros to write, or of empty ones."""
        width = config["width"]
        shapes = dict.fromkeys(self.zeros, (1, 1, width))
        if self.registers and not config[TRAITS]["registers"]:
            shapes[self.registers] = (1, 0, width)
        return {name.removeprefix(prefix): shape for name, shape in shapes.items()}

    def model_config(
        self, where: str, kind: str, theirs: Json, found: Iterable[str]
    ) -> dict[str, Any]:
        """Returns our model config; raises UserError where we cannot build it."""
        is_mae = "decoder_hidden_size" in theirs
        theirs = {**self.defaults, **theirs}
        for size in ("image_size", "patch_size"):
            theirs[size] = fields.square(f"{where}: {size}", theirs[size])
        fields.check_numbers(where, theirs, self.defaults, SIZES.values())
        config = {"kind": kind} | {ours: theirs[name] for ours, name in SIZES.items()}
        config |= self.read(where, theirs)
        config["pooler"] = "pooler/kernel" in map(self.table.leaf_of, found)
        config |= extras.read(where, theirs)
        return {**config, "decoder": hf_vit.decoder(where, theirs) if is_mae else None}

    def architecture(self, config: Json, task: str) -> str:
        """Returns the name of the transformers class for a model of a task."""
        del config
        return self.classes[task]

    def config_json(self, config: Json, task: str, num_classes: int) -> dict[str, Any]:
        """Returns the config.json of a model, without the fields that all families share."""
        del num_classes
        theirs = {name: config[ours] for ours, name in SIZES.items()}
        theirs |= {"model_type": self.model_type, **self.write(config)}
        return theirs | (hf_vit.decoder_json(config) if task == "mae" else {})

    def holds(self, config: Json, task: str, pooling: str) -> bool:
        """Returns whether the family has a class for a model, in all its fields."""
        two_heads = task == "classify" and pooling == CLS_DIST
        if task not in self.classes or two_heads != (self.POOLING == CLS_DIST):
            return False
        if config["last_block"] is not None:
            return False
        try:
            back = self.model_config("", "vit", self.config_json(config, task, 0), ())
        except UserError:
            return False
        own = ("pooler", "decoder", TRAITS, *extras.PARTS)
        same = all(back[name] == config[name] for name in back if name not in own)
        return same and back[TRAITS] == visual.without_augments(config[TRAITS])


def _read_act(where: str, theirs: Json, gated: bool) -> str:
    """Returns our GELU; a gated MLP has none, and must be that of SwiGLU."""
    act = theirs["hidden_act"]
    if gated and act != NO_ACT[0]:
        raise UserError(
            f"{where}: hidden_act={fields.show(act)} of a gated MLP: only 'silu'"
        )
    return NO_ACT[1] if gated else fields.gelu(where, act)


def _act_json(config: Json) -> str:
    gated = config[TRAITS]["swiglu"]
    return NO_ACT[0] if gated else fields.HIDDEN_ACT[config["gelu"]]


def _read_deit(where: str, theirs: Json) -> dict[str, Any]:
    fields.check_numbers(where, theirs, hf_vit.DEFAULTS, ("qkv_bias",))
    return dict(
        qkv_bias=theirs["qkv_bias"],
        gelu=fields.gelu(where, theirs["hidden_act"]),
        traits=visual.make_fields(distilled=True),
    )


def _write_deit(config: Json) -> dict[str, Any]:
    act = fields.HIDDEN_ACT[config["gelu"]]
    return dict(qkv_bias=config["qkv_bias"], hidden_act=act)


def _read_clip(where: str, theirs: Json) -> dict[str, Any]:
    return dict(
        qkv_bias=True,
        gelu=fields.gelu(where, theirs["hidden_act"]),
        traits=visual.make_fields(pre_norm=True, patch_bias=False),
    )


def _write_clip(config: Json) -> dict[str, Any]:
    return dict(hidden_act=fields.HIDDEN_ACT[config["gelu"]])


def _read_dinov3(where: str, theirs: Json) -> dict[str, Any]:
    names = ("query_bias", "key_bias", "use_gated_mlp", "rope_theta")
    if type(theirs["rope_theta"]) is int:
        theirs = {**theirs, "rope_theta": float(theirs["rope_theta"])}
    fields.check_numbers(where, theirs, DINOV3.defaults, names)
    only = dict(proj_bias=True, mlp_bias=True, value_bias=theirs["query_bias"])
    fields.check_supported(where, theirs, only)
    registers, gated = theirs["num_register_tokens"], theirs["use_gated_mlp"]
    if type(registers) is not int or not 0 <= registers <= MOST:
        raise UserError(
            f"{where}: num_register_tokens={fields.show(registers)} must be a number in "
            f"[0, {MOST}]"
        )
    return dict(
        qkv_bias=theirs["query_bias"],
        gelu=_read_act(where, theirs, gated),
        traits=visual.make_fields(
            registers=registers,
            cls_position=False,
            key_bias=theirs["key_bias"],
            layer_scale=True,
            swiglu=gated,
            rotary_theta=theirs["rope_theta"],
        ),
    )


def _write_dinov3(config: Json) -> dict[str, Any]:
    traits = config[TRAITS]
    asked = {theirs: traits[name] for name, theirs in AUGMENTS.items() if traits[name]}
    return dict(
        query_bias=config["qkv_bias"],
        key_bias=traits["key_bias"],
        value_bias=config["qkv_bias"],
        rope_theta=traits["rotary_theta"],
        num_register_tokens=traits["registers"],
        use_gated_mlp=traits["swiglu"],
        hidden_act=_act_json(config),
        **asked,
    )


def _read_general(where: str, theirs: Json) -> dict[str, Any]:
    fields.check_numbers(where, theirs, hf_vit.DEFAULTS, ("qkv_bias",))
    found = visual.complete(theirs.get(TRAITS))
    extras.check(where, {"kind": "vit", TRAITS: found})
    return dict(
        qkv_bias=theirs["qkv_bias"],
        gelu=fields.gelu(where, theirs["hidden_act"]),
        traits=found,
    )


def _write_general(config: Json) -> dict[str, Any]:
    return {
        "qkv_bias": config["qkv_bias"],
        "hidden_act": fields.HIDDEN_ACT[config["gelu"]],
        TRAITS: config[TRAITS],
        extras.NOTE_FIELD: NOTE,
    }


DEIT = Visual(
    model_type="deit",
    classes={"encoder": "DeiTModel", "classify": "DeiTForImageClassification"},
    defaults=hf_vit.DEFAULTS,
    table=visual_names.DEIT,
    read=_read_deit,
    write=_write_deit,
)
DEIT_TWO_HEADS = dataclasses.replace(
    DEIT,
    classes={"classify": "DeiTForImageClassificationWithTeacher"},
    table=visual_names.DEIT_TWO_HEADS,
    POOLING=CLS_DIST,
)
CLIP = Visual(
    model_type="clip_vision_model",
    classes={"encoder": "CLIPVisionModel"},
    defaults=hf_vit.DEFAULTS
    | dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, patch_size=32),
    table=visual_names.CLIP,
    read=_read_clip,
    write=_write_clip,
)
DINOV3 = Visual(
    model_type="dinov3_vit",
    classes={"encoder": "DINOv3ViTModel"},
    defaults=hf_vit.DEFAULTS
    | dict(
        hidden_size=384,
        intermediate_size=1536,
        num_attention_heads=6,
        layer_norm_eps=1e-5,
        query_bias=True,
        key_bias=False,
        value_bias=True,
        use_gated_mlp=False,
        rope_theta=100.0,
        num_register_tokens=0,
    ),
    table=visual_names.DINOV3,
    read=_read_dinov3,
    write=_write_dinov3,
    zeros=("embeddings.mask_token",),
    registers="embeddings.register_tokens",
)
GENERAL = Visual(
    model_type="flax_adapt_vit",
    classes=dict.fromkeys(IGNORED, "FlaxAdaptViT"),
    defaults=hf_vit.DEFAULTS,
    table=visual_names.GENERAL,
    read=_read_general,
    write=_write_general,
)
# The families that transformers has classes of, in the order in which they are tried.
OF_TRANSFORMERS = (DEIT, DEIT_TWO_HEADS, CLIP, DINOV3)
# Classes of transformers with a table of names of their own.
BY_CLASS = {"DeiTForImageClassificationWithTeacher": DEIT_TWO_HEADS}


def vision_part(theirs: Json) -> Json:
    """Returns the fields of the images' encoder in the config.json of a whole CLIP."""
    part = theirs.get("vision_config")
    if theirs["model_type"] != "clip" or not isinstance(part, dict):
        return theirs
    return {**part, "model_type": CLIP.model_type}
