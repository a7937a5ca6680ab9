import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.evaluation import quadratic
from mde.evaluation.polytope import inequalities, least_linear, polytope
from mde.optimization import simplex

F = 5


def random_problems(seed, count=40, rank=F):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(count, F, rank))
    return factors @ factors.swapaxes(1, 2), rng.normal(size=(count, F))


def allowed(caps=True):
    lower, upper = np.array([0.1, 0, 0, 0.05, 0]), np.array([1, 0.3, 1, 0.4, 1])
    cap = (np.array([[1.0, 1, 0, 0, 0], [0, 0, 1, 0, 3]]), np.array([0.45, 0.9])) if caps else None
    return polytope([*"abcde"], lower, upper, cap)


def test_with_the_identity_it_is_the_projection_onto_the_simplex():
    points = np.random.default_rng(0).normal(size=(50, F))
    found, _ = quadratic.minimize(np.tile(np.eye(F), (50, 1, 1)), -points, -np.eye(F), np.zeros(F), np.full(F, 1 / F))
    assert_allclose(found, simplex.project(points), atol=1e-12)


@pytest.mark.parametrize("rank", [0, 2, F])
def test_the_conditions_of_an_optimum_hold(rank):
    """Karush, Kuhn and Tucker, which are sufficient for convex problems; singular ones and linear ones included."""
    curvature, slope = random_problems(1, rank=rank)
    set_of = allowed()
    rows, limits = inequalities(set_of)
    x, prices = quadratic.minimize(curvature, slope, rows, limits, set_of.start)
    real = np.isfinite(limits)
    slack = limits[real] - x @ rows[real].T
    pull = np.einsum("nij,nj->ni", curvature, x) + slope + prices @ rows
    assert_allclose(pull, np.repeat(pull.mean(axis=1, keepdims=True), F, axis=1), atol=1e-11)
    assert_allclose(x.sum(axis=1), 1, atol=1e-13)
    assert (slack > -1e-13).all()
    assert (prices >= 0).all()
    assert_allclose(prices[:, real] * slack, 0, atol=1e-11)
    assert (prices[:, ~real] == 0).all()


def test_an_optimum_inside_is_found_without_the_limits():
    """H(x − x₀) = 0 at a point with room on all sides: its multipliers are nothing, not merely small."""
    curvature, noise = random_problems(4)
    set_of = allowed()
    inside = set_of.start + 1e-3 * (noise - noise.mean(axis=1, keepdims=True))
    slope = -np.einsum("nij,nj->ni", curvature, inside)
    slope[::2] *= 30  # these optima are at limits
    x, prices = quadratic.minimize(curvature, slope, *inequalities(set_of), set_of.start)
    assert_allclose(x[1::2], inside[1::2], atol=1e-11)
    assert (prices[1::2] == 0).all()
    alone, its_prices = quadratic.minimize(curvature[::2], slope[::2], *inequalities(set_of), set_of.start)
    assert_allclose(x[::2], alone, atol=1e-11)
    assert_allclose(prices[::2], its_prices, atol=1e-9)
    assert (prices[::2].max(axis=1) > 0).any()


def test_linear_problems_within_bounds_agree_with_filling_the_cheapest_first():
    _, slope = random_problems(2)
    set_of = allowed(caps=False)
    rows, limits = inequalities(set_of)
    x, _ = quadratic.minimize(np.zeros((40, F, F)), slope, rows, limits, set_of.start)
    assert_allclose((slope * x).sum(axis=1), least_linear(set_of, slope), atol=1e-11)


def test_scales_do_not_matter():
    curvature, slope = random_problems(3)
    set_of = allowed()
    rows, limits = inequalities(set_of)
    x, prices = quadratic.minimize(curvature, slope, rows, limits, set_of.start)
    for scale in (1e-9, 1e9):
        scaled, scaled_prices = quadratic.minimize(scale * curvature, scale * slope, rows, limits, set_of.start)
        assert_allclose(scaled, x, atol=1e-10)
        assert_allclose(scaled_prices / scale, prices, atol=1e-9)
