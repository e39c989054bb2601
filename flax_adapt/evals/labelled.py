"""The check of features and labels before a measure that needs labels."""

import numpy as np

from flax_adapt.base.errors import UserError


def check(features: np.ndarray, labels: np.ndarray, who: str) -> None:
    """Raises UserError unless every row, at least one, has a label and is finite.

    who: names the rows in the message.
    """
    if len(features) != len(labels):
        raise ValueError(f"{who}: {len(features)} features but {len(labels)} labels")
    if not len(labels):
        raise UserError(f"{who}: there are none; check the split and the subset")
    if np.min(labels) < 0:
        raise UserError(f"{who}: some have no label; choose data with labels")
    if not np.all(np.isfinite(features)):
        raise UserError(f"{who}: some features are not finite; check the weights")
