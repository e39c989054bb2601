"""`open_source`: one string names any set of images or texts.

images
    tfds:NAME[:config]   a prepared TensorFlow dataset in array_record, under `data_dir`
    folder:PATH          image files, PATH/[SPLIT/][CLASS]/...
    builtin:NAME         a small set that comes with a Python package
texts
    tfds:NAME[:config]   as above
    jsonl:PATH           a JSON object a line; PATH is a file, or a folder of SPLIT.jsonl
    csv:PATH, tsv:PATH   the same with a header line; tsv knows no quotes
    text:PATH            a document a line, or a folder of .txt files; no labels
"""

from collections.abc import Callable
from typing import TypeAlias

from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data import builtin, folder, prepared_images, prepared_texts, text_files
from flax_adapt.data.base import Source

# open(what follows the colon, data config)
Open: TypeAlias = Callable[[str, ConfigDict], Source]
# modality -> scheme -> open
SCHEMES: dict[str, dict[str, Open]] = {
    "image": {
        "tfds": prepared_images.open_tfds_images,
        "folder": folder.open_folder,
        "builtin": builtin.open_builtin,
    },
    "text": {
        "tfds": prepared_texts.open_tfds_texts,
        "jsonl": text_files.table_opener("jsonl"),
        "csv": text_files.table_opener("csv"),
        "tsv": text_files.table_opener("tsv"),
        "text": text_files.open_text,
    },
}


def open_source(config_data: ConfigDict) -> Source:
    """Opens `source`, `data_dir` and `split` of a data config, before its subset."""
    schemes = errors.choose("data.modality", config_data.modality, SCHEMES)
    scheme, colon, rest = config_data.source.partition(":")
    if not colon or not rest:
        raise errors.UserError(
            f"data.source={config_data.source!r} must be SCHEME:WHAT; the schemes of"
            f" modality {config_data.modality!r} are {sorted(schemes)}"
        )
    return errors.choose("the scheme of data.source", scheme, schemes)(
        rest, config_data
    )
