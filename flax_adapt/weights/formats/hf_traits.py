"""Fields of config.json that ELECTRA and ModernBERT have and BERT lacks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax_adapt.base.errors import UserError, choose
from flax_adapt.models.textual import traits
from flax_adapt.weights import fields

# Defaults of transformers' ModernBertConfig.
DEFAULTS: dict[str, Any] = dict(
    vocab_size=50_368,
    max_position_embeddings=8192,
    hidden_size=768,
    num_hidden_layers=22,
    num_attention_heads=12,
    intermediate_size=1152,
    hidden_activation="gelu",
    norm_eps=1e-5,
    pad_token_id=50_283,
    norm_bias=False,
    attention_bias=False,
    mlp_bias=False,
    classifier_bias=False,
    classifier_pooling="cls",
    local_attention=128,
    layer_types=None,
    global_attn_every_n_layers=3,
    rope_parameters=None,
    rope_scaling=None,
    global_rope_theta=160_000.0,
    local_rope_theta=10_000.0,
)
# Fields with the only value that our models support.
SUPPORTED = dict(
    decoder_bias=True, classifier_activation="gelu", rope_scaling=None, is_decoder=False
)
WRITTEN = dict(
    attention_dropout=0.0,
    embedding_dropout=0.0,
    mlp_dropout=0.0,
    decoder_bias=True,
    classifier_activation="gelu",
)
BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
# Our kind of block -> theirs, and the field of its theta in files of transformers 4.
BLOCKS = {
    "global": ("full_attention", "global_rope_theta"),
    "local": ("sliding_attention", "local_rope_theta"),
}
# Traits of every ModernBERT; `read_traits` reads the others.
TRAITS = traits.of_family(
    "modernbert",
    pooler="gelu",
    pooler_norm=True,
    exact_head=True,
    pre_norm=True,
    gated=True,
    biases=False,
    global_every=3,
    local_window=128,
    global_theta=160_000.0,
    local_theta=10_000.0,
)


def read_embed_dim(where: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trait embed_dim of ELECTRA's `embedding_size`."""
    fields.check_numbers(where, theirs, {"embedding_size": 0}, ["embedding_size"])
    size = theirs["embedding_size"]
    return {"embed_dim": 0 if size == theirs["hidden_size"] else size}


def write_embed_dim(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the field that `read_embed_dim` reads."""
    return {"embedding_size": config["traits"]["embed_dim"] or config["width"]}


def read_traits(where: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the traits that differ between ModernBERTs.

    theirs: config.json, of transformers 4 or 5, with DEFAULTS. Raises UserError for what
    our models cannot compute.
    """
    numbers = ("local_attention", "global_attn_every_n_layers")
    fields.check_numbers(where, theirs, DEFAULTS, (*numbers, *BIASES))
    if len({theirs[name] for name in BIASES}) > 1:
        found = ", ".join(f"{name}={theirs[name]}" for name in BIASES)
        raise UserError(
            f"{where}: {found}: our models have all of these biases or none"
        )
    pooled = fields.text(theirs["classifier_pooling"])
    ours = dict.fromkeys(traits.POOLED, pooled)
    return {
        "pooled": choose(f"{where}: classifier_pooling", pooled, ours),
        "biases": theirs["norm_bias"],
        "global_every": _period(where, theirs),
        "local_window": theirs["local_attention"],
        **{f"{kind}_theta": _theta(where, theirs, kind) for kind in BLOCKS},
    }


def write_traits(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that `read_traits` reads, as transformers 4 and 5 have them."""
    own = config["traits"]
    thetas = {kind: own[f"{kind}_theta"] for kind in BLOCKS}
    return {
        **dict.fromkeys(BIASES, own["biases"]),
        "classifier_pooling": own["pooled"],
        "local_attention": own["local_window"],
        "global_attn_every_n_layers": own["global_every"],
        "layer_types": _layer_types(own["global_every"], config["depth"]),
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": thetas[kind]}
            for kind, (name, _) in BLOCKS.items()
        },
        **{old: thetas[kind] for kind, (_, old) in BLOCKS.items()},
    }


def _layer_types(period: int, depth: int) -> list[str]:
    kinds = ["local" if number % period else "global" for number in range(depth)]
    return [BLOCKS[kind][0] for kind in kinds]


def _period(where: str, theirs: Mapping[str, Any]) -> int:
    """Returns how often a block is a global one."""
    found, depth = theirs["layer_types"], theirs["num_hidden_layers"]
    usual: int = theirs["global_attn_every_n_layers"]
    if found is None:
        return usual
    periods: Sequence[int] = (usual, *range(1, min(depth, 256) + 1))
    for period in periods:
        if found == _layer_types(period, min(depth, 256)):
            return period
    raise UserError(
        f"{where}: layer_types={fields.show(found)} must be every n-th block global from "
        f"the first on, for {depth} blocks"
    )


def _theta(where: str, theirs: Mapping[str, Any], kind: str) -> float:
    """Returns the base of the rotary positions in one kind of block."""
    name, old = BLOCKS[kind]
    found = theirs["rope_parameters"]
    rope: Any = {} if found is None else found
    own: Any = rope.get(name) if isinstance(rope, dict) else rope
    own = {} if own is None else own
    if not isinstance(own, dict) or own.get("rope_type", "default") != "default":
        raise UserError(
            f"{where}: rope_parameters={fields.show(found)}: only rope_type 'default'"
        )
    theta = own.get("rope_theta", theirs[old])
    if type(theta) not in (int, float) or not 1 <= theta < math.inf:
        raise UserError(
            f"{where}: rope_theta={fields.show(theta)} must be a number of 1 or more"
        )
    return float(theta)
