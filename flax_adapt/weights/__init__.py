"""Loads and saves weights, strictly checked, in every format of `formats.FORMATS`.

    config, loaded, report = weights.load(path, "classify", pooling="cls")  # renames
    params, report = weights.adopt(init, loaded, ("head",))  # compares with the model

`fit`, called between these two, resizes weights of another image size, patch size or number
of channels. `from_pretrained` and `save_pretrained` do all of it for library users.

Arguments that many functions have: format, one of FORMATS; None: detected from `path`.
known: {field: value} that the files lack: "heads", "decoder_heads", "gelu",
"layer_norm_eps" of a ViT without a config; "weights", the name of the set of weights to load
where a torch file holds several.
"""

from flax_adapt.weights import reshape as reshape
from flax_adapt.weights.fields import KNOWN
from flax_adapt.weights.formats.hf_vit import USUAL_READING
from flax_adapt.weights.formats.table import (
    FORMATS,
    WRITERS,
    options_in,
    source_options,
)
from flax_adapt.weights.loading import (
    AUTO,
    class_names,
    does_task,
    fit,
    image_reading,
    load,
    model_config,
    open_weights,
    parts,
    pixel_statistics,
    reconstruction,
    resolve_pooling,
    shapes,
)
from flax_adapt.weights.pretrained import (
    from_pretrained,
    open_params,
    save_pretrained,
)
from flax_adapt.weights.saving import preprocessor, save
from flax_adapt.weights.strict import Report, adopt

__all__ = [
    "AUTO",
    "FORMATS",
    "KNOWN",
    "USUAL_READING",
    "WRITERS",
    "Report",
    "adopt",
    "class_names",
    "does_task",
    "fit",
    "from_pretrained",
    "image_reading",
    "load",
    "model_config",
    "open_params",
    "open_weights",
    "options_in",
    "parts",
    "pixel_statistics",
    "preprocessor",
    "reconstruction",
    "resolve_pooling",
    "save",
    "save_pretrained",
    "shapes",
    "source_options",
]
