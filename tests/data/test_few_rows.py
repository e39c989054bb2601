"""The order of training batches where there are few rows."""

import numpy as np
import pytest

from flax_adapt.data import order


@pytest.mark.parametrize("count", [1, 2, 100, order._FEW, order._FEW + 1])
def test_kept_orders_of_few_rows_are_those_of_grain(count):
    import grain

    ours, seed = order.shuffle_rows(count, 3), np.random.SeedSequence(3)
    grain_seed = int(seed.generate_state(1)[0])
    theirs = grain.MapDataset.range(count).shuffle(seed=grain_seed).repeat()
    places = [0, 1, count - 1, count, 2 * count + count // 2, 7 * count - 1]
    assert [ours[place] for place in places] == [theirs[place] for place in places]
