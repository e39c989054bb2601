"""What the goldens of text were computed from: numpy alone, as in `inputs`.

A padded batch of four rows, single texts and pairs, some of their tokens hidden.
"""

import inputs
import numpy as np

# A: Hugging Face's defaults but for the sizes. B: nothing as the defaults; its eps is
# large enough to be seen in the outputs.
SIZES = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
B = dict(layer_norm_eps=1e-3, hidden_act="gelu_new", pad_token_id=4)
CONFIGS = {
    "bert_A": dict(max_position_embeddings=16, pad_token_id=0, layer_norm_eps=1e-12),
    "bert_B": dict(max_position_embeddings=12, type_vocab_size=1, **B),
    "roberta_A": dict(max_position_embeddings=14, pad_token_id=1, layer_norm_eps=1e-5),
    "roberta_B": dict(max_position_embeddings=15, type_vocab_size=3, **B),
    "xlm-roberta_A": dict(max_position_embeddings=14, pad_token_id=1),
    "camembert_A": dict(max_position_embeddings=15, type_vocab_size=1, **B),
    "distilbert_A": dict(max_position_embeddings=12, pad_token_id=0),
    "distilbert_B": dict(
        max_position_embeddings=12, pad_token_id=4, hidden_act="gelu_new"
    ),
}
# Blocks of both kinds; a window that is shorter than the texts.
MODERN = dict(max_position_embeddings=12, pad_token_id=0, num_hidden_layers=4)
CONFIGS |= {
    "electra_A": dict(max_position_embeddings=12, pad_token_id=0, embedding_size=8),
    "electra_B": dict(max_position_embeddings=12, embedding_size=16, **B),
    "modernbert_A": dict(**MODERN, local_attention=4),
    "modernbert_B": dict(
        **MODERN | B,
        local_attention=6,
        layer_types=["full_attention", "sliding_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        },
        classifier_pooling="mean",
        **dict.fromkeys(
            ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True
        ),
    ),
}
# Family -> the first part of the names of transformers' classes.
STEMS = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "modernbert": "ModernBert",
}
# Families whose folders, as transformers writes them, are goldens, too.
WRITTEN = tuple(STEMS)[2:]
# Family -> {field of BERT's config: its own name, None where it has none}.
RENAMED = {
    "distilbert": dict(
        hidden_size="dim",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
        intermediate_size="hidden_dim",
        hidden_act="activation",
        hidden_dropout_prob="dropout",
        attention_probs_dropout_prob="attention_dropout",
        type_vocab_size=None,
    ),
    "modernbert": dict(
        hidden_act="hidden_activation",
        layer_norm_eps="norm_eps",
        hidden_dropout_prob="embedding_dropout",
        attention_probs_dropout_prob="attention_dropout",
        type_vocab_size=None,
    ),
}
MASK_TOKEN = 49
SPECIAL = 5  # ids below are never drawn
LENGTHS = (10, 7, 4, 9)
SECOND = (6, 7, 2, 5)  # where the second text starts; 7: there is none
HIDDEN = ((1, 4, 8), (2,), (), (3, 4, 6, 7))
NUM_CLASSES = 3
MLM, CLASSIFIER, REGRESSION = 1, 2, 3  # seeds of parameters


def hugging_face_config(name):
    """Fields of the config of transformers' model `name`; a classifier drops nothing."""
    found = {"hidden_act": "gelu", "type_vocab_size": 2, **SIZES, **CONFIGS[name]}
    renamed = RENAMED.get(kind(name), {})
    named = {renamed.get(field, field): value for field, value in found.items()}
    return {field: value for field, value in named.items() if field is not None}


def has_types(name):
    """Whether the model has token types."""
    return "type_vocab_size" in hugging_face_config(name)


def kind(name):
    """The model_type."""
    return name.split("_")[0]


def batch(name):
    """int32 [B, L]: tokens, token_types, real (1), hidden (1)."""
    config = hugging_face_config(name)
    shape = len(LENGTHS), max(LENGTHS)
    random = inputs.random("tokens", name)
    tokens = random.randint(SPECIAL, MASK_TOKEN, shape)
    place = np.arange(shape[1])[None]
    real = place < np.array(LENGTHS)[:, None]
    second = (place >= np.array(SECOND)[:, None]) & real
    hidden = np.zeros(shape, bool)
    for row, places in enumerate(HIDDEN):
        hidden[row, list(places)] = True
    arrays = dict(
        tokens=np.where(real, tokens, config["pad_token_id"]),
        token_types=second * (config.get("type_vocab_size", 2) - 1),
        real=real,
        hidden=hidden,
    )
    return {key: value.astype(np.int32) for key, value in arrays.items()}


def masked_tokens(arrays):
    """What the model sees: the mask token where a token is hidden."""
    return np.where(arrays["hidden"], MASK_TOKEN, arrays["tokens"]).astype(np.int32)


def labels(name):
    """int32 [B]."""
    return (
        inputs.random("labels", name)
        .randint(0, NUM_CLASSES, len(LENGTHS))
        .astype(np.int32)
    )


def numbers(name):
    """float32 [B]."""
    values = inputs.random("numbers", name).standard_normal(len(LENGTHS))
    return (3 * values).astype(np.float32)
