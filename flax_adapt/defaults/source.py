"""The source: data that the initial model was trained on, where forgetting is measured.

`flax-adapt eval` classifies one half of its examples by the other, and `watch=source/knn`
reads the same section. Methods that replay train on the source, too.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from flax_adapt import data
from flax_adapt.base.errors import UserError, reword_errors

# The arguments of every config that can measure forgetting; vit_self_distill explains them.
SOURCE_ARGUMENTS: dict[str, Any] = dict(source="", source_split="train")


def measured_source(
    args: Any,
    make: Callable[[str, str], dict[str, Any]],
    split: str = "source_split",
) -> dict[str, Any] | None:
    """Returns the data section on which forgetting is measured; None without a source.

    It has no labels where the source has none: then there is drift, and no verdict. args:
    with SOURCE_ARGUMENTS. make: (source, split) -> a section with labels. split: the
    argument that names the split. Raises UserError where the source cannot be opened, or
    where there are no initial weights (`args.init`) that could forget it.
    """
    if not args.source:
        return None
    if "init" in args and not args.init:
        raise UserError(
            f"source={args.source} is what the initial weights were trained on, and there "
            "are none: give init=PATH, or leave source out"
        )
    words = {r"data\.split": split, r"data\.source": "source", "^dataset=": "source="}
    with reword_errors(words):
        return drop_missing_labels(make(args.source, args[split]))


def drop_missing_labels(section: dict[str, Any]) -> dict[str, Any]:
    """Returns a data section, without `label_field` where its source has no such labels.

    Raises UserError for a source that cannot be opened.
    """
    try:
        data.source.open_source(ConfigDict(section))
    except UserError as error:
        if not section["label_field"] or "label_field" not in str(error):
            raise
        return drop_missing_labels({**section, "label_field": ""})
    return section
