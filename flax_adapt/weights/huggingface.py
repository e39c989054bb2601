"""Folders of Hugging Face models: one way to read and write, a table of families."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flax_adapt import models
from flax_adapt.errors import UserError, choose
from flax_adapt.weights import fields, hf_bert, hf_vit, reading, strict, writing
from flax_adapt.weights import names as naming
from flax_adapt.weights.names import Names, Spare


class Family(Protocol):
    """What differs between the families: the modules `hf_vit` and `hf_bert`."""

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


FAMILIES: dict[str, Family] = {"vit": hf_vit, "bert": hf_bert, "roberta": hf_bert}
# Their model_type -> our kind.
KINDS = {"vit": "vit", "vit_mae": "vit", "bert": "bert", "roberta": "roberta"}


def config_file(folder: Path) -> dict[str, Any]:
    """Returns config.json, always with a model_type that we know.

    The oldest files of BERT and RoBERTa have none; the tensors' prefix then tells.
    """
    theirs = reading.read_json(folder / reading.CONFIG)
    found = theirs.get("model_type")
    if found is None:
        prefixes = {name.split(".")[0] for name in reading.tensor_names(folder)}
        found = next((kind for kind in ("bert", "roberta") if kind in prefixes), None)
    if found not in tuple(KINDS):
        where = f"{folder}/{reading.CONFIG}"
        raise UserError(f"{where}: model_type={found!r} is not one of {tuple(KINDS)}")
    return {**theirs, "model_type": found}


def model_config(folder: Path) -> dict[str, Any]:
    """Returns our model config of a folder."""
    theirs = config_file(folder)
    kind = KINDS[theirs["model_type"]]
    where = f"{folder}/{reading.CONFIG}"
    found = reading.tensor_names(folder)
    return FAMILIES[kind].model_config(where, kind, theirs, found)


def pooling(folder: Path) -> str:
    """Returns the pooling of a folder's classifier: the family's, or what we wrote."""
    theirs = config_file(folder)
    kind = KINDS[theirs["model_type"]]
    found = str(theirs.get("pooling", FAMILIES[kind].POOLING))
    known = dict.fromkeys(models.CLASSIFIER_POOLING[kind], found)
    return choose(f"{folder}/{reading.CONFIG}: pooling", found, known)


def class_names(folder: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes; None if they have none but LABEL_i."""
    where = f"{folder}/{reading.CONFIG}"
    return fields.class_names(where, reading.read_json(folder / reading.CONFIG))


def parts(folder: Path) -> set[str]:
    """What a folder holds of encoder, decoder, mlm, pooler, head; no tensor is read."""
    kind = model_config(folder)["kind"]
    table = FAMILIES[kind].names(kind, next(iter(models.TASKS[kind])))
    leaves = map(table.leaf_of, reading.tensor_names(folder))
    return {leaf.split("/")[0] for leaf in leaves if leaf}


def read(
    folder: Path, task: str, pooling: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Returns (model config, {leaf: array}, fields of `strict.Report`).

    A tensor of an unknown name is kept as such: `adopt` will say it is unexpected.
    """
    config = model_config(folder)
    choose(
        f"task of a {config['kind']} model: task", task, models.TASKS[config["kind"]]
    )
    family = FAMILIES[config["kind"]]
    table, dropped = family.names(config["kind"], task), family.ignored(task, pooling)
    tensors, converted = reading.read(folder)
    leaves: dict[str, np.ndarray] = {}
    renamed, ignored = {}, {}
    # Spares last: the leaf that they stand in for has been seen by then, or is absent.
    for name in sorted(tensors, key=lambda name: table.spare_of(name) is not None):
        spare = table.spare_of(name)
        leaf = spare.leaf if spare else table.leaf_of(name) or strict.unknown(name)
        array, part = naming.to_ours(leaf, tensors[name]), leaf.split("/")[0]
        if spare and leaf in leaves:
            part = spare.part
        if rule := table.why_ignored(name):
            ignored[name] = rule
        elif part in dropped:
            ignored[name] = f"{part} dropped for task {task}"
        elif leaf not in leaves:
            renamed[name], leaves[leaf] = leaf, array
        else:
            ignored[name] = _second(
                f"{folder}: {name}", spare, leaf, array, leaves[leaf]
            )
    converted = {name: kind for name, kind in converted.items() if name in renamed}
    return config, leaves, dict(renamed=renamed, ignored=ignored, converted=converted)


def _second(
    what: str, spare: Spare | None, leaf: str, array: np.ndarray, first: np.ndarray
) -> str:
    """Returns the rule by which a leaf's second tensor is ignored, if that is right."""
    if spare is None:
        raise UserError(f"{what} is {leaf}, but so is another tensor")
    if spare.equal and not np.array_equal(array, first):
        raise UserError(
            f"{what} is not {spare.rule} ({leaf}): it differs; only a tied decoder can "
            "be built, so load another task or a tied checkpoint"
        )
    return spare.rule


def write(
    folder: Path,
    config: Mapping[str, Any],
    leaves: Mapping[str, np.ndarray],
    task: str,
    *,
    pooling: str,
    preprocessor: Mapping[str, Any] | None,
    tokenizer: Path | None,
    class_names: tuple[str, ...] | None,
) -> None:
    """Writes the folder of the class `architecture(config, task)`."""
    family = FAMILIES[config["kind"]]
    table = family.names(config["kind"], task)
    # A base model is the encoder alone: its names go without the prefix.
    prefix = table.prefix if task == "encoder" else ""
    tensors = {}
    for leaf, array in leaves.items():
        name = table.name_of(leaf).removeprefix(prefix)
        array = np.asarray(array, np.float32)
        tensors[name] = naming.to_theirs(leaf, array, config)
    bias = leaves.get("head/bias")
    num_classes = 0 if bias is None else len(bias)
    jsons = {reading.CONFIG: _config_json(config, task, num_classes)}
    if class_names and not num_classes:
        raise UserError(f"{folder}: class_names need a head, which task {task} has not")
    if num_classes:
        # transformers knows the family's pooling only; `from_pretrained` of ours reads this.
        labels = fields.labels_json(num_classes, class_names)
        jsons[reading.CONFIG] |= {**labels, "pooling": pooling}
    if preprocessor is not None:
        jsons[reading.PREPROCESSOR] = dict(preprocessor)
    copied = writing.tokenizer_files(tokenizer) if tokenizer else []
    writing.write(folder, tensors, jsons, copied)


def _config_json(
    config: Mapping[str, Any], task: str, num_classes: int
) -> dict[str, Any]:
    family = FAMILIES[config["kind"]]
    return {
        "architectures": [family.architecture(config, task)],
        **family.config_json(config, task, num_classes),
        "torch_dtype": "float32",
    }
