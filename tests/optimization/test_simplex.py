import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mde.errors import UserError
from mde.optimization import simplex

NAMES = ["web", "code", "books"]


@pytest.mark.parametrize(
    ("weights", "rows", "says"),
    [
        ([[0.5, 0.5]], None, r"swarm\.csv: mixtures of shape \(1, 2\).*3 domains web, code, books"),
        ([[0.5, 0.6, -0.1]], ["run7"], r"swarm\.csv: row 'run7', domain 'books': weight -0\.1, .*zero or more"),
        ([[1, 0, 0], [0.5, np.nan, 0.5]], ["a", "b"], r"row 'b', domain 'code': weight nan"),
        ([[0.5, np.inf, 0.5]], None, r"row 0, domain 'code': weight inf"),
        ([[1, 0, 0], [0.5, 0.3, 0.1]], ["a", "b"], r"row 'b': weights sum to 0\.9, expected 1 within 1e-06"),
        ([[1, 0, 0]], ["a", "b"], r"1 mixtures but 2 row names"),
        ([["a", "b", "c"]], None, r"swarm\.csv: mixtures must be a table of numbers"),
    ],
)
def test_a_bad_mixture_is_named_in_one_line(weights, rows, says):
    with pytest.raises(UserError, match=says) as error:
        simplex.check_mixtures(weights, NAMES, rows, where="swarm.csv")
    assert "\n" not in str(error.value)


def test_sums_within_tolerance_become_exact():
    rounded = [[0.333, 0.333, 0.333], [1, 0, 0]]
    checked = simplex.check_mixtures(rounded, NAMES, tolerance=5e-3)
    np.testing.assert_allclose(checked, [[1 / 3] * 3, [1, 0, 0]], atol=1e-15)
    assert checked.dtype == np.float64
    with pytest.raises(UserError, match=r"0\.999"):
        simplex.check_mixtures(rounded, NAMES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any))
def test_faces_and_corners_are_mixtures(parts):
    mixture = np.array(parts) / sum(parts)
    np.testing.assert_allclose(simplex.check_mixtures(mixture, NAMES), mixture[None], atol=1e-15)


def test_one_mixture_is_a_table_of_one():
    assert simplex.check_mixtures([0.2, 0.3, 0.5], NAMES).shape == (1, 3)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 70),
    k=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    concentration=st.sampled_from([0.01, 0.3, 1, 9]),
)
def test_space_filling_lies_on_the_simplex_and_extends_itself(n, k, seed, concentration):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = simplex.space_filling(n, k, seed, concentration)
    assert points.shape == (n, k)
    assert np.isfinite(points).all()
    assert (points >= 0).all()
    np.testing.assert_allclose(points.sum(axis=1), 1, atol=1e-12)
    longer = simplex.space_filling(n + 33, k, seed, concentration)
    np.testing.assert_array_equal(points, longer[:n])


@pytest.mark.parametrize("concentration", [0.05, 1.0, 4.0])
def test_space_filling_has_dirichlet_marginals(concentration):
    k = 4
    points = simplex.space_filling(1024, k, seed=3, concentration=concentration)
    beta = stats.beta(concentration, (k - 1) * concentration)
    for column in points.T:
        # Independent draws would stay below 1.63 / sqrt(1024) = 0.051 in 99 of 100 cases; these are more even.
        assert stats.kstest(column, beta.cdf).statistic < 0.03


def test_concentration_may_differ_by_domain():
    prior = np.array([8.0, 1.0, 1.0])
    mean = simplex.space_filling(2048, 3, seed=0, concentration=prior).mean(axis=0)
    np.testing.assert_allclose(mean, prior / 10, atol=3e-3)  # 1/2048 quasi-random points: about 1e-3


@pytest.mark.parametrize("concentration", [0.0, -1.0, np.nan, [1.0, 1.0]])
def test_a_bad_concentration_is_refused(concentration):
    with pytest.raises(UserError, match="Dirichlet concentration"):
        simplex.space_filling(4, 3, seed=0, concentration=concentration)


def test_corners():
    np.testing.assert_array_equal(simplex.corners(2), [[1, 0], [0, 1]])


def test_projection_by_hand():
    points = np.array([[0.2, 0.8], [2.0, 0.0], [0.9, 0.5], [-3.0, -3.0]])
    np.testing.assert_allclose(simplex.project(points), [[0.2, 0.8], [1, 0], [0.7, 0.3], [0.5, 0.5]], atol=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.integers(0, 1000))
def test_nothing_on_the_simplex_is_nearer_than_the_projection(point, seed):
    point = np.array(point)
    nearest = simplex.project(point[None])[0]
    assert (nearest >= 0).all()
    assert nearest.sum() == pytest.approx(1, abs=1e-12)
    others = np.vstack([np.random.default_rng(seed).dirichlet(np.ones(len(point)), 50), simplex.corners(len(point))])
    assert np.linalg.norm(point - nearest) <= np.linalg.norm(point - others, axis=1).min() + 1e-9
