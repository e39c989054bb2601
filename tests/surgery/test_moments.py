"""Principal components from one pass: the same as NumPy's SVD of all features at once."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from flax_adapt.base.errors import UserError
from flax_adapt.surgery import moments
from flax_adapt.train import sharding


def features(rows=60, width=5, seed=0, shift=0.0):
    """Float32 [rows, width], of unlike variances, some far from zero."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) * 2.0 ** np.arange(width)
    return (rng.standard_normal((rows, width)) @ mixing + shift).astype(np.float32)


def in_batches(rows, size):
    """Merged moments of batches of `size`, the last one filled up with rows of weight 0."""
    total = moments.empty(rows.shape[1])
    for start in range(0, len(rows), size):
        batch = np.full((size, rows.shape[1]), 1e3, np.float32)
        part = rows[start : start + size]
        batch[: len(part)] = part
        counts = (np.arange(size) < len(part)).astype(np.float32)
        parts = moments.of_batch(batch[None], counts[None])
        total = total.merge(moments.fetch(*parts))
    return total


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(2, 50),
    size=st.integers(1, 20),
    shift=st.sampled_from([0.0, 10.0, -1e3]),
    seed=st.integers(0, 99),
)
def test_any_batches_give_the_moments_of_the_whole(rows, size, shift, seed):
    x = features(rows, 4, seed, shift)
    total = in_batches(x, size)
    whole = x.astype(np.float64)
    assert total.rows == rows
    np.testing.assert_allclose(total.mean_D, whole.mean(0), rtol=1e-5, atol=1e-4)
    expected = np.cov(whole.T, bias=True)
    scale = np.abs(expected).max() + 1e-6 * shift**2
    np.testing.assert_allclose(total.covariance_DD, expected, atol=1e-4 * scale)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_components_lose_as_little_as_numpy_s_svd(width):
    x = features(rows=200, width=8, shift=3.0)
    P = moments.principal_components(in_batches(x, 32), width)
    np.testing.assert_allclose(P.T @ P, np.eye(width), atol=1e-9)
    centred = x - x.mean(0, dtype=np.float64)
    lost = np.sum((centred - centred @ P @ P.T) ** 2)
    singular = np.linalg.svd(centred, compute_uv=False)
    least = np.sum(singular[width:] ** 2)
    np.testing.assert_allclose(lost, least, rtol=1e-4, atol=1e-6 * np.sum(singular**2))
    # The directions are those of the SVD, in its order; a sign is free there.
    right = np.linalg.svd(centred, full_matrices=False)[2][:width]
    np.testing.assert_allclose(np.abs(np.sum(right * P.T, axis=1)), 1, atol=1e-4)


def test_components_have_the_same_sign_every_time():
    """The largest entry of each is positive."""
    P = moments.principal_components(in_batches(features(width=8), 60), 4)
    assert np.all(P[np.argmax(np.abs(P), axis=0), np.arange(4)] > 0)


def test_hand_computed():
    """(1, 0), (-1, 0), (0, 2), (0, -2): variance 1/2 and 2, the second comes first."""
    x = np.float32([[1, 0], [-1, 0], [0, 2], [0, -2]])
    total = in_batches(x, 3)
    np.testing.assert_allclose(total.covariance_DD, [[0.5, 0], [0, 2]], atol=1e-7)
    np.testing.assert_allclose(
        moments.principal_components(total, 1), [[0], [1]], atol=1e-7
    )


def test_rows_that_do_not_count_do_not():
    x = features(rows=6)
    counts = np.float32([1, 0, 1, 1, 0, 1])
    parts = moments.of_batch(x.reshape(2, 3, 5), counts.reshape(2, 3))
    total = moments.fetch(*parts)
    kept = x[counts > 0].astype(np.float64)
    assert total.rows == 4
    np.testing.assert_allclose(total.mean_D, kept.mean(0), rtol=1e-5)


def test_a_sharded_batch_gives_the_moments_of_all_of_it():
    x = features(rows=64).reshape(16, 4, 5)
    counts = np.ones((16, 4), np.float32)
    mesh = sharding.make_mesh(dict(data=2, fsdp=4, tensor=1))
    placed = [
        jax.device_put(array, NamedSharding(mesh, sharding.BATCH))
        for array in (x, counts)
    ]
    split, whole = (
        moments.fetch(*jax.jit(moments.of_batch)(*arrays))
        for arrays in (placed, (x, counts))
    )
    assert split.rows == whole.rows
    np.testing.assert_allclose(split.mean_D, whole.mean_D, rtol=1e-5)
    largest = np.abs(whole.scatter_DD).max()
    np.testing.assert_allclose(split.scatter_DD, whole.scatter_DD, atol=1e-6 * largest)


def test_too_few_tokens_are_an_error():
    with pytest.raises(UserError, match=r"5 principal components need more than 5 tok"):
        moments.principal_components(in_batches(features(rows=5), 5), 5)
