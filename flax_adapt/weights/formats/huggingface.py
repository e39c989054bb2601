"""Folders of Hugging Face models: one way to read and write, a table of families."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from flax_adapt import models
from flax_adapt.base.errors import UserError, choose
from flax_adapt.weights import extras, fields
from flax_adapt.weights.files import files, reading, writing
from flax_adapt.weights.formats import hf_bert, hf_resnet, hf_vit
from flax_adapt.weights.names import translate
from flax_adapt.weights.names.names import Names


class Family(Protocol):
    """What differs between the families: the modules `hf_vit`, `hf_bert`, `hf_resnet`."""

    POOLING: str

    def names(self, kind: str, task: str) -> Names: ...

    def ignored(self, task: str, pooling: str) -> tuple[str, ...]: ...

    def model_config(
        self, where: str, kind: str, theirs: Mapping[str, Any], found: Iterable[str]
    ) -> dict[str, Any]: ...

    def architecture(self, config: Mapping[str, Any], task: str) -> str: ...

    def config_json(
        self, config: Mapping[str, Any], task: str, num_classes: int
    ) -> dict[str, Any]: ...


FAMILIES: dict[str, Family] = {
    "vit": hf_vit,
    "bert": hf_bert,
    "roberta": hf_bert,
    "resnet": hf_resnet,
}
# Fields of a model config that no tensor shows -> theirs; old files leave some out.
UNSEEN = dict(
    heads="num_attention_heads",
    decoder_heads="decoder_num_attention_heads",
    gelu="hidden_act",
    layer_norm_eps="layer_norm_eps",
    image_size="image_size",
    batch_norm_eps="batch_norm_eps",
    batch_norm_momentum="batch_norm_momentum",
)
# Their model_type -> our kind.
KINDS = {
    "vit": "vit",
    "vit_mae": "vit",
    "bert": "bert",
    "roberta": "roberta",
    "resnet": "resnet",
}


def config_file(folder: Path) -> dict[str, Any]:
    """Returns config.json, always with a model_type that we know.

    The oldest files of BERT and RoBERTa have none; the tensors' prefix then tells.
    """
    theirs = reading.read_json(folder / reading.CONFIG)
    found = theirs.get("model_type")
    if isinstance(found, str):
        found = found.removesuffix(extras.SUFFIX)
    if found is None:
        prefixes = {name.split(".")[0] for name in reading.tensor_names(folder)}
        found = next((kind for kind in ("bert", "roberta") if kind in prefixes), None)
    if found not in tuple(KINDS):
        where = f"{folder}/{reading.CONFIG}"
        raise UserError(
            f"{where}: model_type={fields.show(found)} is not one of {tuple(KINDS)}"
        )
    return {**theirs, "model_type": found}


def detect(path: Path) -> bool:
    """Whether it is a folder with a config.json, which is not timm's."""
    file = path / reading.CONFIG
    return files.is_file(file) and "architecture" not in reading.read_json(file)


def model_config(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our model config of a folder; it tells all, so nothing is `known`."""
    fields.check_known(folder, known, ())
    theirs = config_file(folder)
    kind = KINDS[theirs["model_type"]]
    where = f"{folder}/{reading.CONFIG}"
    found = reading.tensor_names(folder)
    config = FAMILIES[kind].model_config(where, kind, theirs, found)
    fields.check_sizes(where, config)
    return config


def pooling(folder: Path) -> str:
    """Returns the pooling of a folder's classifier: the family's, or what we wrote."""
    theirs = config_file(folder)
    kind = KINDS[theirs["model_type"]]
    found = fields.text(theirs.get("pooling", FAMILIES[kind].POOLING))
    known = dict.fromkeys(models.CLASSIFIER_POOLING[kind], found)
    return choose(f"{folder}/{reading.CONFIG}: pooling", found, known)


def class_names(folder: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes; None if they have none but LABEL_i."""
    where = f"{folder}/{reading.CONFIG}"
    return fields.class_names(where, reading.read_json(folder / reading.CONFIG))


def pixel_statistics(folder: Path) -> tuple[list[float], list[float]] | None:
    """Returns (mean, std) of pixels in [0, 1], if a folder tells."""
    if not files.is_file(folder / reading.PREPROCESSOR):
        return None
    where = f"{folder}/{reading.PREPROCESSOR}"
    return fields.pixel_statistics(
        where, reading.read_json(folder / reading.PREPROCESSOR)
    )


@contextlib.contextmanager
def opened(
    folder: Path, task: str, pooling: str, known: Mapping[str, Any]
) -> Iterator[translate.Opened]:
    """Gives (model config, {leaf: what reads it}, fields of `strict.Report`)."""
    config = model_config(folder, known)
    fields.check_task(folder, config, task)
    family, theirs = FAMILIES[config["kind"]], config_file(folder)
    table, dropped = family.names(config["kind"], task), family.ignored(task, pooling)
    told = {"pooling", *(ours for ours, name in UNSEEN.items() if name in theirs)}
    with reading.open_tensors(folder) as tensors:
        leaves, found = translate.to_leaves(table, tensors, dropped, task)
        found["assumed"] = fields.assumed(config, pooling, told, task)
        yield config, leaves, found


def write(
    folder: Path,
    config: Mapping[str, Any],
    leaves: Mapping[str, Any],
    task: str,
    *,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
    tokenizer: Path | None,
    class_names: tuple[str, ...] | None,
) -> None:
    """Writes the folder of the class `architecture(config, task)`."""
    if config.get("adaptor") is not None:
        raise UserError(
            f"{folder}: Hugging Face's folders cannot hold adaptor={config['adaptor']}: "
            "drop the adaptors (surgery.adaptors.drop), or choose the format orbax"
        )
    family = FAMILIES[config["kind"]]
    table = family.names(config["kind"], task)
    # A base model is the encoder alone: its names go without the prefix.
    prefix = table.prefix if task == "encoder" else ""
    tensors = translate.to_tensors(table, leaves, config, prefix)
    bias = leaves.get("head/bias")
    num_classes = 0 if bias is None else len(bias)
    jsons = {reading.CONFIG: _config_json(config, task, num_classes)}
    if class_names and not num_classes:
        raise UserError(f"{folder}: class_names need a head, which task {task} has not")
    if num_classes:
        # transformers knows the family's pooling only; `from_pretrained` of ours reads this.
        jsons[reading.CONFIG] |= fields.labels_json(num_classes, class_names)
    if num_classes or pooling == "mean_norm":
        jsons[reading.CONFIG]["pooling"] = pooling
    if preprocessor is not None:
        jsons[reading.PREPROCESSOR] = dict(preprocessor)
    copied = writing.tokenizer_files(tokenizer) if tokenizer else []
    writing.write(folder, tensors, jsons, copied)


def _config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    family = FAMILIES[config["kind"]]
    theirs = family.config_json(config, task, num_classes)
    return {
        "architectures": [family.architecture(config, task)],
        **theirs,
        "torch_dtype": "float32",
        **extras.to_json(config, theirs["model_type"]),
    }
