"""Epochs by hand, and that the largest weights are those that reach the limit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from mde.data import epochs

TOKENS = st.lists(st.floats(1, 1e9), min_size=1, max_size=6).map(np.array)


def test_by_hand():
    found = epochs.repeats(np.array([[0.5, 0.5, 0], [1, 0, 0]]), np.array([100, 10, 0]), budget=200)
    assert_allclose(found, [[1, 10, 0], [2, 0, 0]])
    assert epochs.repeats(np.array([1.0]), np.array([0]), 5)[0] == np.inf


@given(TOKENS, st.floats(1, 1e10), st.floats(0.1, 16))
def test_at_its_largest_weight_a_domain_reaches_the_limit_or_is_all(available, budget, limit):
    weights = epochs.largest_weights(available, budget, limit)
    found = epochs.repeats(weights, available, budget)
    assert ((weights > 0) & (weights <= 1)).all()
    # Two roundings of float64.
    assert (found <= limit * (1 + 1e-14)).all()
    assert_allclose(found[weights < 1], limit, rtol=1e-14)


def test_the_warning_names_whom_it_is_about():
    assert epochs.warning(["a", "b"], np.array([4.0, 1.0]), 4) is None
    found = epochs.warning(["a", "b", "c"], np.array([4.5, 1.0, 20.0]), 4)
    assert found == "text is repeated more than 4 times: c 20.0, a 4.5"
