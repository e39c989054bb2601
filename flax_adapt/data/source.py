"""`open_source`: one string names any set of images.

tfds:NAME[:config]   a prepared TensorFlow dataset in array_record, under `data_dir`
folder:PATH          image files, PATH/[SPLIT/][CLASS/]...
builtin:NAME         a small set that comes with a Python package
"""

from ml_collections import ConfigDict

from flax_adapt import errors
from flax_adapt.data import builtin, folder, prepared
from flax_adapt.data.base import Source

# scheme -> open(what follows the colon, data config)
SCHEMES = {
    "tfds": prepared.open_tfds,
    "folder": folder.open_folder,
    "builtin": builtin.open_builtin,
}


def open_source(config_data: ConfigDict) -> Source:
    """Opens `source`, `data_dir` and `split` of a data config, before its subset."""
    scheme, colon, rest = config_data.source.partition(":")
    if not colon or not rest:
        raise errors.UserError(
            f"data.source={config_data.source!r} must be SCHEME:WHAT;"
            f" the schemes are {sorted(SCHEMES)}"
        )
    return errors.choose("the scheme of data.source", scheme, SCHEMES)(
        rest, config_data
    )
