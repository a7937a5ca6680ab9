"""Epochs by hand."""

import numpy as np
from numpy.testing import assert_allclose

from mde.data import epochs


def test_by_hand():
    found = epochs.repeats(np.array([[0.5, 0.5, 0], [1, 0, 0]]), np.array([100, 10, 0]), budget=200)
    assert_allclose(found, [[1, 10, 0], [2, 0, 0]])
    assert epochs.repeats(np.array([1.0]), np.array([0]), 5)[0] == np.inf


def test_the_warning_names_whom_it_is_about():
    assert epochs.warning(["a", "b"], np.array([4.0, 1.0]), 4) is None
    found = epochs.warning(["a", "b", "c"], np.array([4.5, 1.0, 20.0]), 4)
    assert found == "text is repeated more than 4 times: c 20.0, a 4.5"
