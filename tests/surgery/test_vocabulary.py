"""Rows of new tokens: the mean of their pieces'."""

import numpy as np

from flax_adapt.surgery import vocabulary


def test_a_new_token_has_the_mean_of_its_pieces_and_the_others_what_they_had():
    token = np.arange(10, dtype=np.float32).reshape(5, 2)
    leaves = {"encoder/embed/token": token, "mlm/bias": np.arange(5.0), "head/bias": 1}
    grown = vocabulary.add_tokens(leaves, [(0, 3), (4,)], first=5)
    np.testing.assert_array_equal(grown["encoder/embed/token"][:5], token)
    np.testing.assert_array_equal(grown["encoder/embed/token"][5:], [[3, 4], [8, 9]])
    np.testing.assert_array_equal(grown["mlm/bias"], [0, 1, 2, 3, 4, 1.5, 4])
    assert grown["head/bias"] == 1
    assert len(leaves["encoder/embed/token"]) == 5


def test_rows_that_no_token_used_are_taken_before_a_table_grows():
    token = np.arange(8, dtype=np.float32).reshape(4, 2)
    grown = vocabulary.add_tokens({"encoder/embed/token": token}, [(0, 1)], first=2)
    np.testing.assert_array_equal(grown["encoder/embed/token"][2], [1, 2])
    np.testing.assert_array_equal(
        grown["encoder/embed/token"][[0, 1, 3]], token[[0, 1, 3]]
    )
