"""Weights in and out, strictly checked, in every format of `formats.FORMATS`.

    config, loaded, report = weights.load(path, "classify", pooling="cls")  # renames
    params, report = weights.adopt(init, loaded, ("head",))   # judges, strictly

`fit` between the two makes weights of another image size, patch size or number of channels
fit. `from_pretrained` and `save_pretrained` do all of it for library users.

format: one of FORMATS; None is what `path` looks like. known: what a file of a ViT
without a config does not tell, of "heads", "decoder_heads", "gelu", "layer_norm_eps".
"""

from flax_adapt.weights import reshape as reshape
from flax_adapt.weights.fields import KNOWN
from flax_adapt.weights.formats.table import FORMATS, WRITERS, told
from flax_adapt.weights.loading import (
    class_names,
    fit,
    load,
    model_config,
    opened,
    parts,
    pixel_statistics,
    reconstruction,
    shapes,
)
from flax_adapt.weights.pretrained import from_pretrained, save_pretrained
from flax_adapt.weights.saving import preprocessor, save
from flax_adapt.weights.strict import Report, adopt

__all__ = [
    "FORMATS",
    "KNOWN",
    "WRITERS",
    "Report",
    "adopt",
    "class_names",
    "fit",
    "from_pretrained",
    "load",
    "model_config",
    "opened",
    "parts",
    "pixel_statistics",
    "preprocessor",
    "reconstruction",
    "save",
    "save_pretrained",
    "shapes",
    "told",
]
