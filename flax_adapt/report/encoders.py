"""What encoders make of a few examples of target and source: features, and attention of CLS.

Each encoder is loaded once, and all of them that are built alike share one program.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt import models, weights
from flax_adapt.base import config as configs
from flax_adapt.base.types import Array, Params, Text
from flax_adapt.data.images import image
from flax_adapt.report import backbones, pictures
from flax_adapt.report.backbones import Backbone
from flax_adapt.report.workdir import Run

# Examples of each data set: a large model takes a second a dozen on a CPU.
POINTS = 48
# The fields of a data section that `image.preprocess` reads.
_PIXEL_FIELDS = ("mean", "std", "channels")


class Sample(NamedTuple):
    """Some examples of a data set, from its first to its last one.

    batch: of `Examples.batch`. pixel_form: how images are normalised, see `encode_batch`.
    row_sizes: of texts, for `models.check_fits`.
    """

    names: list[str]
    batch: Mapping[str, Any]
    pixel_form: str
    row_sizes: Mapping[str, int]


class Encoded(NamedTuple):
    """What one encoder makes of the samples.

    target_nD, source_nD: features, float32. attention_nL: of the target, see `_attend`.
    The last two are None without a source, and for models that are no plain ViT.
    """

    label: str
    target_nD: np.ndarray
    source_nD: np.ndarray | None
    attention_nL: np.ndarray | None


class Points(NamedTuple):
    """The samples of target and source, and what each encoder makes of them."""

    target: Sample
    source: Sample | None
    models: list[Encoded]


def encode_points(run: Run) -> Points | None:
    """Returns the points of a run, computed once; None where data or weights are gone."""
    return run.share("points", lambda: _encode_points(run))


def _encode_points(run: Run) -> Points | None:
    config = run.experiment
    found = backbones.list_backbones(run, "encoder") if backbones.is_alone() else []
    target = _draw_sample(run, config.evaluate.test) if found else None
    if target is None:
        return None
    section = find_source(config)
    source = None if section is None else _draw_sample(run, section)
    pooling = config.evaluate.pooling
    return Points(target, source, [_encode(o, pooling, target, source) for o in found])


def find_source(config: Any) -> Any:
    """Returns the section of data that is not the target's: of drift, or the first stage's."""
    if config.evaluate.source is not None:
        return config.evaluate.source
    first, target = config.stages[0].data, config.evaluate.test
    return first if first.source != target.source else None


def _draw_sample(run: Run, section: Any) -> Sample | None:
    examples = backbones.open_section(run, section)
    if examples is None:
        return None
    rows = pictures.spread_rows(len(examples), POINTS)
    index = np.asarray(rows, np.int64)
    return Sample(
        [examples.names[row] for row in rows],
        examples.batch(index, np.arange(len(rows))),
        describe_pixels(section),
        examples.row_sizes if section.modality == "text" else {},
    )


def describe_pixels(section: Any) -> str:
    """Returns how the images of a data section are normalised, as a text that can be hashed."""
    if section.modality != "image":
        return ""
    return configs.to_text({name: section[name] for name in _PIXEL_FIELDS})


def _encode(
    one: Backbone, pooling: str, target: Sample, source: Sample | None
) -> Encoded:
    options = weights.options_in(one.fit)
    pooling = weights.resolve_pooling(pooling, one.folder, **options)
    config = weights.model_config(one.folder, **options)
    attends = config["kind"] == "vit" and config["adaptor"] is None
    model, params, _ = weights.from_pretrained(
        one.folder, "encoder", pooling=pooling, **one.fit
    )
    run = functools.partial(_run, model, params, pooling, attends)
    target_nD, attention_nL = run(target)
    source_nD = None if source is None else run(source)[0]
    return Encoded(one.label, target_nD, source_nD, attention_nL)


def _run(
    model: Any, params: Params, pooling: str, attends: bool, sample: Sample
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns (features_nD, attention_nL) of a sample; raises UserError for too long texts."""
    if sample.row_sizes:
        models.check_fits(model.config, **sample.row_sizes)
    inputs = sample.batch[model.modality]
    x_BD, attention_BL = encode_batch(
        *(model, params, inputs, pooling, sample.pixel_form, attends)
    )
    features_nD = np.asarray(x_BD, np.float32)
    return features_nD, None if attention_BL is None else np.asarray(attention_BL)


@functools.partial(
    jax.jit, static_argnames=("model", "pooling", "pixel_form", "attends")
)
def encode_batch(
    model: Any,
    params: Params,
    inputs: Array | Text,
    pooling: str,
    pixel_form: str,
    attends: bool,
) -> tuple[Array, Array | None]:
    """Returns (features_BD, attention_BL or None) of a batch of images or texts.

    inputs: pixels 0..255 that are normalised as pixel_form says, see `describe_pixels`, or
    a `Text`; with the form "" as the model takes them. attends: whether the attention is
    wanted, of a plain ViT.
    """
    if pixel_form:
        form = configs.from_text(pixel_form)
        inputs = image.preprocess(cast(Array, inputs), None, form, None)
    variables = models.batch_stats.variables(params)
    if not attends:
        return model.apply(variables, inputs, pooling, None, method="embed"), None
    x_BD, kept = model.apply(
        *(variables, inputs, pooling),
        method=_embed_whole,
        capture_intermediates=_is_projection,
        mutable=["intermediates"],
    )
    return x_BD, _attend(model.config, kept["intermediates"]["encoder"])


def _embed_whole(model: Any, image_BYXC: Array, pooling: str) -> Array:
    """Returns x_BD as `embed`, which computes only those states that are pooled."""
    pooled: Array = model.pool(model.encode(image_BYXC, None), pooling)
    return pooled


def _is_projection(module: Any, method: str) -> bool:
    return method == "__call__" and module.name in ("query", "key")


def _attend(config: Any, blocks: Mapping[str, Any]) -> Array:
    """Returns attention_BL, float32: of CLS to the patches in the last block.

    The mean over heads of softmax(q k / sqrt K); registers and CLS itself are left out.
    """
    last = max(name for name in blocks if name.startswith("block_"))
    q_BLHK, k_BLHK = (
        x_BLD.reshape(*x_BLD.shape[:2], config.heads, -1).astype(jnp.float32)
        for x_BLD in (
            blocks[last]["attention"][name]["__call__"][0] for name in ("query", "key")
        )
    )
    logits_BHL = jnp.einsum("BHK,BLHK->BHL", q_BLHK[:, 0], k_BLHK)
    shares_BHL = jax.nn.softmax(logits_BHL * q_BLHK.shape[-1] ** -0.5)
    return jnp.mean(shares_BHL, axis=1)[:, config.num_prefix :]
