"""Reads and writes folders of Hugging Face models, of all FAMILIES."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose
from flax_adapt.weights import extras, fields, writable
from flax_adapt.weights.files import files, reading, writing
from flax_adapt.weights.formats import hf_bert, hf_dinov2, hf_resnet, hf_visual, hf_vit
from flax_adapt.weights.names import translate
from flax_adapt.weights.names.names import Names
from flax_adapt.weights.writable import Content


class Family(Protocol):
    """A family of models: the modules `hf_*` have these functions."""

    @property
    def POOLING(self) -> str: ...

    def names(self, config: Mapping[str, Any], task: str) -> Names: ...

    def ignored(self, task: str, pooling: str) -> tuple[str, ...]: ...

    def model_config(
        self, where: str, kind: str, theirs: Mapping[str, Any], found: Iterable[str]
    ) -> dict[str, Any]: ...

    def constants(
        self, config: Mapping[str, Any], prefix: str
    ) -> dict[str, tuple[int, ...]]: ...

    def architecture(self, config: Mapping[str, Any], task: str) -> str: ...

    def config_json(
        self, config: Mapping[str, Any], task: str, num_classes: int
    ) -> dict[str, Any]: ...


# Their model_type -> our kind, and the family.
FAMILIES: dict[str, tuple[str, Family]] = {
    "vit": ("vit", hf_vit),
    "vit_mae": ("vit", hf_vit),
    "dinov2": ("vit", hf_dinov2),
    "dinov2_mae": ("vit", hf_dinov2),
    "dinov2_with_registers": ("vit", hf_dinov2),
    "dinov2_with_registers_mae": ("vit", hf_dinov2),
    "deit": ("vit", hf_visual.DEIT),
    "clip": ("vit", hf_visual.CLIP),
    "clip_vision_model": ("vit", hf_visual.CLIP),
    "dinov3_vit": ("vit", hf_visual.DINOV3),
    "flax_adapt_vit": ("vit", hf_visual.GENERAL),
    "bert": ("bert", hf_bert),
    "roberta": ("roberta", hf_bert),
    "xlm-roberta": ("roberta", hf_bert),
    "camembert": ("roberta", hf_bert),
    "distilbert": ("bert", hf_bert),
    "electra": ("bert", hf_bert),
    "modernbert": ("bert", hf_bert),
    "resnet": ("resnet", hf_resnet),
}
# Field of a model config that no tensor shows -> field of config.json; old files lack some.
UNSEEN = dict(
    heads="num_attention_heads",
    decoder_heads="decoder_num_attention_heads",
    gelu="hidden_act",
    layer_norm_eps="layer_norm_eps",
    image_size="image_size",
    batch_norm_eps="batch_norm_eps",
    batch_norm_momentum="batch_norm_momentum",
)


def family_of(
    config: Mapping[str, Any], task: str = "encoder", pooling: str = "cls"
) -> Family:
    """Returns the family that holds models of a config, a task and a pooling.

    Where transformers has no class for a vision transformer, it is a family of ours.
    """
    if config["kind"] != "vit" or config["traits"] is None:
        return FAMILIES[config["kind"]][1]
    for family in hf_visual.OF_TRANSFORMERS:
        if family.holds(config, task, pooling):
            return family
    return hf_dinov2 if hf_dinov2.holds(config) else hf_visual.GENERAL


def _family(theirs: Mapping[str, Any]) -> tuple[str, Family]:
    """Returns (our kind of model, family) of a config.json."""
    kind, family = FAMILIES[theirs["model_type"]]
    classes = theirs.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    return kind, hf_visual.BY_CLASS.get(fields.text(name), family)


def config_file(folder: Path) -> dict[str, Any]:
    """Returns config.json, always with a model_type of FAMILIES, or raises UserError.

    The oldest files of BERT and RoBERTa have no model_type; the tensors' prefix shows it.
    """
    theirs = reading.read_json(folder / reading.CONFIG)
    found = theirs.get("model_type")
    if isinstance(found, str):
        found = found.removesuffix(extras.SUFFIX)
    if found is None:
        prefixes = {name.split(".")[0] for name in reading.tensor_names(folder)}
        found = next((kind for kind in ("bert", "roberta") if kind in prefixes), None)
    if found not in tuple(FAMILIES):
        where = f"{folder}/{reading.CONFIG}"
        raise UserError(
            f"{where}: model_type={fields.show(found)} is not one of {tuple(FAMILIES)}"
        )
    return {**hf_visual.vision_part({**theirs, "model_type": found})}


def detect(path: Path) -> bool:
    """Whether a path is a folder with a config.json that is not timm's."""
    file = path / reading.CONFIG
    return files.is_file(file) and "architecture" not in reading.read_json(file)


def model_config(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a folder, from its config.json."""
    fields.check_known(folder, known, (reading.WEIGHTS,))
    theirs = config_file(folder)
    kind, family = _family(theirs)
    where = f"{folder}/{reading.CONFIG}"
    found = reading.tensor_names(folder, known)
    config = family.model_config(where, kind, theirs, found)
    fields.check_sizes(where, config)
    return config


def pooling(folder: Path, known: Mapping[str, Any]) -> str:
    """Returns the pooling of a classifier: our field `pooling` of config.json, or the family's.

    Raises UserError for a pooling that the kind of model does not have.
    """
    del known
    theirs = config_file(folder)
    kind, family = _family(theirs)
    found = fields.text(theirs.get("pooling", family.POOLING))
    ours = dict.fromkeys(models.CLASSIFIER_POOLING[kind], found)
    return choose(f"{folder}/{reading.CONFIG}: pooling", found, ours)


def class_names(folder: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes; None if these are only LABEL_i."""
    where = f"{folder}/{reading.CONFIG}"
    return fields.class_names(where, reading.read_json(folder / reading.CONFIG))


def pixel_statistics(folder: Path) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1], or None if the folder has none."""
    if not files.is_file(folder / reading.PREPROCESSOR):
        return None
    where = f"{folder}/{reading.PREPROCESSOR}"
    return fields.pixel_statistics(
        where, reading.read_json(folder / reading.PREPROCESSOR)
    )


@contextlib.contextmanager
def open_source(
    folder: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> Iterator[translate.Opened]:
    """Yields (model config, {leaf: LazyLeaf}, fields of `strict.Report`)."""
    config = model_config(folder, known)
    fields.check_task(folder, config, task)
    theirs = config_file(folder)
    _, family = _family(theirs)
    table, dropped = family.names(config, task), family.ignored(task, pooling)
    stated = {"pooling", *(ours for ours, name in UNSEEN.items() if name in theirs)}
    if family is hf_bert:
        stated |= hf_bert.stated(theirs)
    with reading.open_tensors(folder, known) as tensors:
        leaves, found = translate.to_leaves(table, tensors, dropped, task)
        found["assumed"] = fields.assumed_values(config, pooling, stated, task)
        yield config, leaves, found


def write(folder: Path, content: Content) -> None:
    """Writes the folder of the class `architecture(config, task)`."""
    config, task = content.config, content.task
    if config.get("adaptor") is not None:
        raise UserError(
            f"{folder}: Hugging Face's folders cannot hold adaptor={config['adaptor']}: "
            "drop the adaptors (surgery.adaptors.drop), or choose the format orbax"
        )
    writable.check_class_names(folder, content)
    family = family_of(config, task, content.pooling)
    table = family.names(config, task)
    # A base model is the encoder alone: its names have no prefix.
    prefix = table.prefix if task == "encoder" else ""
    tensors = translate.to_tensors(table, content.leaves, config, prefix)
    tensors = translate.with_zeros(tensors, family.constants(config, prefix))
    jsons = {reading.CONFIG: _config_json(content)}
    if content.preprocessor is not None:
        jsons[reading.PREPROCESSOR] = dict(content.preprocessor)
    tokenizer = content.tokenizer
    copied = writing.tokenizer_files(tokenizer) if tokenizer else []
    writing.write(folder, tensors, jsons, copied)


def _config_json(content: Content) -> dict[str, Any]:
    """Returns config.json. transformers ignores `pooling`; `from_pretrained` reads it."""
    config, task = content.config, content.task
    family = family_of(config, task, content.pooling)
    num_classes = content.num_classes
    theirs = family.config_json(config, task, num_classes)
    labels = fields.labels_json(num_classes, content.class_names) if num_classes else {}
    has_pooling = num_classes or content.pooling == "mean_norm"
    return {
        "architectures": [family.architecture(config, task)],
        **theirs,
        **hf_vit.reconstruction_json(content.reconstruction),
        "torch_dtype": "float32",
        **extras.to_json(config, theirs["model_type"]),
        **labels,
        **({"pooling": content.pooling} if has_pooling else {}),
    }


def reconstruction(folder: Path) -> dict[str, Any]:
    """Returns the settings a masked autoencoder was trained with, if config.json has them."""
    theirs = config_file(folder)
    is_mae = theirs["model_type"].endswith("_mae")
    return hf_vit.reconstruction(f"{folder}/{reading.CONFIG}", theirs) if is_mae else {}
