"""Sparsity of features, and binarisation: features reduced to whether they are 0.

Wide representations are sparse and survive binarisation (Bordes et al. 2023).
"""

import numpy as np

from flax_adapt.base.errors import UserError


def zeros(features: np.ndarray) -> float:
    """Returns the share of the numbers (float [n, D]) that are exactly 0, as a ReLU makes them.

    Raises UserError if there are no numbers.
    """
    if not features.size:
        raise UserError("there are no features to count zeros in; check the split")
    return float(np.mean(features == 0))


def binarise(features: np.ndarray) -> np.ndarray:
    """Returns float32 [n, D]: 1 where a feature is not 0, else 0. (0, -2, 3): (0, 1, 1)."""
    return (features != 0).astype(np.float32)
