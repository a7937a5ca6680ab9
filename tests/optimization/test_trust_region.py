"""The mixtures near a proxy run: what a search keeps to, and that it finds the best of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from test_convex import formula

from mde.errors import UserError
from mde.optimization import losses, search, simplex
from mde.optimization.constraints import Bounds
from mde.optimization.trust import TrustRegion

NAMES = tuple("abcde")


def away(points: np.ndarray, runs: np.ndarray) -> np.ndarray:
    return cdist(points, runs, "cityblock").min(axis=1) / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.5), st.booleans())
def test_everything_that_is_drawn_or_moved_lies_near_a_run_and_obeys_the_constraints(seed, radius, capped):
    runs = simplex.space_filling(12, 5, seed)
    bounds = Bounds(NAMES, max={"a": float(np.quantile(runs[:, 0], 0.6))} if capped else {})
    trusted = TrustRegion(bounds.region, runs, radius)
    far = np.random.default_rng(seed).dirichlet(np.full(5, 0.2), 30)
    for points in (trusted.sample(30, seed), trusted.boundary(30, seed), trusted.project(far), trusted.nearby(far)):
        assert trusted.contains(points).all()
        assert (away(points, runs) <= radius + 1e-9).all()
        assert bounds.region.contains(points).all()
    inside = trusted.sample(30, seed)
    np.testing.assert_allclose(trusted.project(inside), inside, atol=1e-14)  # rounding


@pytest.mark.parametrize("kind", ["law", "linear", "roots"])
@pytest.mark.parametrize("m", [1, 3])
def test_the_best_of_the_balls_is_found(kind, m):
    """Against a fine grid of the simplex of three domains, of which the balls around the runs hold a part."""
    i, j = np.meshgrid(np.arange(801), np.arange(801))
    kept = i + j <= 800
    grid = np.stack([i[kept], j[kept], 800 - i[kept] - j[kept]], axis=1) / 800
    runs, loss = simplex.space_filling(12, 3, 1, 3.0), formula(kind, m, 3, 7)
    trusted = TrustRegion(Bounds(tuple("abc")).region, runs, 0.06)
    found = search.minimize(loss, trusted, 0)
    assert found.method == "exact"
    assert trusted.contains(found.mixture[None])[0]
    assert 0 <= found.gap < 1e-6
    least = loss(grid[away(grid, runs) <= 0.06]).min()
    assert found.loss - 1e-9 <= least <= found.loss + 0.01  # half a step of the grid, times slopes of a few nats
    everywhere = search.minimize(loss, Bounds(tuple("abc")).region, 0)
    assert everywhere.loss <= found.loss + 1e-9


def test_local_search_keeps_to_the_balls_and_comes_near_the_exact_answer():
    runs, loss = simplex.space_filling(40, 5, 2), formula("law", 3, 5, 8).average(np.full(3, 1 / 3))
    trusted = TrustRegion(Bounds(NAMES).region, runs, 0.08)
    exact = search.minimize(loss, trusted, 0)
    for method in ("refinement", "gradient", "simulation"):
        found = search.minimize(loss, trusted, 0, method, n_candidates=512)
        assert trusted.contains(found.mixture[None], 1e-7)[0]
        assert exact.loss - 1e-9 <= found.loss
        if method == "refinement":
            assert found.loss <= exact.loss + 1e-3


def test_a_distance_that_the_constraints_do_not_allow_is_refused_with_the_nearest():
    runs = np.array([[0.2] * 5, [0.1, 0.1, 0.1, 0.1, 0.6]])
    region = Bounds(NAMES, min={"a": 0.7}).region
    # .2 in all: a must gain .5
    with pytest.raises(UserError, match=r"max_distance=0\.1: no mixture .* the nearest is 0\.5 away"):
        TrustRegion(region, runs, 0.1)


def test_restarts_say_how_far_they_disagree():
    """Two valleys of nearly the same depth, far apart: a search of few candidates ends in either."""
    valleys = np.array([[0.8, 0.05, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.05, 0.8]])

    def loss(x):
        return -np.exp(-300 * ((x[:, None] - valleys) ** 2).sum(axis=2)) @ [1.0, 1.01]

    region = Bounds(NAMES).region
    found = search.minimize(loss, region, 0, n_candidates=16, rounds=20, restarts=8)
    alone = [search.minimize(loss, region, 1000 * i, n_candidates=16, rounds=20) for i in range(8)]
    assert found.restarts == 8
    assert found.loss == min(one.loss for one in alone)
    assert found.loss_spread == pytest.approx(max(one.loss for one in alone) - found.loss)
    mixtures = np.stack([one.mixture for one in alone])
    assert found.mixture_spread == pytest.approx(cdist(mixtures, mixtures, "cityblock").max() / 2)
    assert found.mixture_spread > 0.5
    assert found.evaluations == sum(one.evaluations for one in alone)
    assert alone[0].loss_spread is None
    exact = search.minimize(losses.Formula(0.0, np.arange(5.0)), region, 0, restarts=8)
    assert (exact.restarts, exact.gap, exact.loss_spread) == (1, 0.0, None)
