"""How sparse features are, and what is left of them where only h != 0 is known.

Wide representations are sparse and survive binarisation (Bordes et al. 2023).
"""

import numpy as np

from flax_adapt.base.errors import UserError


def zeros(features: np.ndarray) -> float:
    """Share of the numbers (float [n, D]) that are exactly 0; a ReLU makes such."""
    if not features.size:
        raise UserError("there are no features to count zeros in; check the split")
    return float(np.mean(features == 0))


def binarised(features: np.ndarray) -> np.ndarray:
    """float32 [n, D]: 1 where a feature is not 0. (0, -2, 3): (0, 1, 1)."""
    return (features != 0).astype(np.float32)
