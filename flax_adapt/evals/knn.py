"""Weighted nearest neighbours on cosine similarity, as in DINO (arXiv 2104.14294)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flax_adapt.base.errors import UserError
from flax_adapt.base.types import Array
from flax_adapt.evals import labelled

# Number of test rows at once; only memory depends on it: 1024 x 50 000 similarities take
# 200 MB.
_CHUNK = 1024


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int,
    temperature: float,
) -> float:
    """Returns the accuracy of weighted nearest neighbours, on test rows float [m, D], int [m].

    Each of the `k` most similar training rows votes for its label with weight
    exp(similarity / temperature); DINO uses k = 20 and temperature = 0.07. Raises
    UserError for missing labels, features that are not finite, and too large a `k`.
    """
    labelled.check(test_features, test_labels, "the test examples")
    sets = (train_features, train_labels, test_features)
    guesses = predict(*sets, k=k, temperature=temperature)
    return float(np.mean(guesses == test_labels))


def predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    *,
    k: int,
    temperature: float,
) -> np.ndarray:
    """Returns the label of every test row by `accuracy`'s vote, int [m].

    Raises UserError for missing labels, features that are not finite, and too large a `k`.
    """
    labelled.check(train_features, train_labels, "the training examples")
    if not 1 <= k <= len(train_labels):
        raise UserError(
            f"kNN with k={k} needs 1 <= k <= {len(train_labels)} training examples: "
            "change k or use more examples"
        )
    none = np.full(len(test_features), len(train_labels))
    sets = (train_features, train_labels, test_features, none)
    return _predict(*sets, k=k, temperature=temperature)


def predict_left_out(
    features: np.ndarray, labels: np.ndarray, *, k: int, temperature: float
) -> np.ndarray:
    """Returns the label of every row by `accuracy`'s vote of the `k` nearest other rows.

    int [n]; in a tie the lowest. With fewer than `k` other rows all of them vote. Raises
    UserError for missing labels, features that are not finite, and a single row.
    """
    labelled.check(features, labels, "the examples")
    if len(labels) < 2:
        raise UserError("kNN needs two examples or more")
    sets = (features, labels, features, np.arange(len(labels)))
    return _predict(*sets, k=min(k, len(labels) - 1), temperature=temperature)


def _predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    left_out: np.ndarray,
    *,
    k: int,
    temperature: float,
) -> np.ndarray:
    """Returns int [m], the vote of training rows for each test row.

    left_out: int [m], the training row that has no vote; one beyond the last: all have.
    """
    num_classes = int(train_labels.max()) + 1
    bank_MD = _scale_to_unit(jnp.asarray(train_features, jnp.float32))
    labels_M = jnp.asarray(train_labels)
    predictions = [
        _vote(
            jnp.asarray(test_features[start : start + _CHUNK], jnp.float32),
            bank_MD,
            labels_M,
            jnp.asarray(left_out[start : start + _CHUNK]),
            temperature,
            k=k,
            num_classes=num_classes,
        )
        for start in range(0, len(test_features), _CHUNK)
    ]
    return np.concatenate(predictions)


@partial(jax.jit, static_argnames=("k", "num_classes"))
def _vote(
    query_BD: Array,
    bank_MD: Array,
    labels_M: Array,
    left_out_B: Array,
    temperature: float,
    *,
    k: int,
    num_classes: int,
) -> Array:
    """Returns the label with the most votes, int [B]; in a tie the lowest."""
    # Accelerators would otherwise multiply in fewer bits and reorder near neighbours.
    similarity_BM = jnp.matmul(_scale_to_unit(query_BD), bank_MD.T, precision="highest")
    rows_B = jnp.arange(len(left_out_B))
    similarity_BM = similarity_BM.at[rows_B, left_out_B].set(-jnp.inf, mode="drop")
    nearest_BK, rows_BK = jax.lax.top_k(similarity_BM, k)
    # Softmax equals the weights up to one factor for each row, and cannot overflow.
    weights_BK = jax.nn.softmax(nearest_BK / temperature, axis=-1)
    votes_BKN = jax.nn.one_hot(labels_M[rows_BK], num_classes)
    return jnp.argmax(jnp.einsum("BK,BKN->BN", weights_BK, votes_BKN), axis=-1)


def _scale_to_unit(features_BD: Array) -> Array:
    norm_B1 = jnp.linalg.norm(features_BD, axis=-1, keepdims=True)
    return features_BD / jnp.maximum(norm_B1, 1e-12)
