import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import BALL, EVERY, POINT, UNIFORM, constrained, random_region

from mde.errors import UserError
from mde.optimization import simplex
from mde.optimization.constraints import Group
from mde.optimization.region import Region


def test_projection_onto_bounds_by_hand():
    low, high = np.array([0.1, 0.0, 0.0]), np.array([1.0, 0.3, 1.0])
    points = np.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.0, 0.1, 2.0]])
    # second: code is held at .3 and the rest weights .7 equally; third: web is held at .1, code at 0
    expected = [[0.2, 0.3, 0.5], [0.35, 0.3, 0.35], [0.1, 0.0, 0.9]]
    np.testing.assert_allclose(simplex.project(points, low, high), expected, atol=1e-15)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_nothing_in_the_region_is_nearer_than_the_projection(seed):
    """The optimality condition of the nearest point, certified by a linear program: (x - y)·(v - x) >= 0 for all v."""
    region = random_region(seed)
    points = np.random.default_rng(seed).normal(1 / region.k, 0.6, (8, region.k))
    nearest = region.project(points)
    assert region.contains(nearest).all()
    for point, found in zip(points, nearest, strict=True):
        towards = found - point
        # 1e-7: the linear program and the centre hold their constraints to 1e-10, times distances of a few units
        assert towards @ (region.vertex(towards) - found) >= -1e-7


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("how", ["sample", "boundary"])
def test_draws_obey_everything_and_are_the_same_for_the_same_seed(name, how):
    draw = getattr(EVERY[name].region, how)
    points = draw(100, seed=1)
    assert points.shape == (100, 5)
    assert EVERY[name].region.contains(points).all()
    np.testing.assert_array_equal(points, draw(100, seed=1))
    assert (points != draw(100, seed=2)).any() or name == "point"


@pytest.mark.parametrize("name", ["free", "box", "groups", "tied"])
def test_draws_of_the_boundary_reach_every_face_and_many_vertices(name):
    region = EVERY[name].region
    points = region.boundary(400, seed=0)
    for j in np.flatnonzero(region.low < region.high):
        for slope in (np.eye(5)[j], -np.eye(5)[j]):
            assert (points @ slope).min() == pytest.approx(region.vertex(slope) @ slope, abs=1e-9)
    held = np.isclose(points, region.low, atol=1e-9) | np.isclose(points, region.high, atol=1e-9)
    sums = points @ region.member.T
    held = np.hstack([held, np.isclose(sums, region.group_low) | np.isclose(sums, region.group_high)])
    assert held.any(axis=1).all()
    assert len(np.unique(held, axis=0)) >= 6  # faces of many kinds


def test_draws_of_a_ball_reach_its_surface():
    region = constrained(prior=UNIFORM, max_kl=0.2).region
    np.testing.assert_allclose(region.divergence(region.boundary(50, seed=0)), 0.2, atol=1e-6)


def test_the_walk_is_uniform():
    """The same moments as rejection from uniform draws."""
    region = constrained(max={"web": 0.25}, groups={"text": Group(("books", "wiki"), 0.3, 0.6)}).region
    draws = np.random.default_rng(0).dirichlet(np.ones(5), 200_000)
    expected = draws[region.contains(draws)]
    walked = region._walk(simplex.space_filling(4000, 5, seed=0), np.random.default_rng(1))
    assert region.contains(walked).all()
    # standard error of a mean of 4000 is at most .003, of a standard deviation .002
    np.testing.assert_allclose(walked.mean(axis=0), expected.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(walked.std(axis=0), expected.std(axis=0), atol=0.008)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_vertex_is_below_every_sample(seed):
    region = random_region(seed)
    slope = np.random.default_rng(seed).normal(size=region.k)
    vertex = region.vertex(slope)
    assert region.contains(vertex[None])[0]
    assert vertex @ slope <= (region.sample(64, seed) @ slope).min() + 1e-9


def test_pulling_goes_straight_to_the_boundary():
    region = BALL.region
    pulled = region.pull(simplex.corners(5))
    assert region.contains(pulled).all()
    ahead = region.centre + 1.001 * (pulled - region.centre)
    assert not region.contains(ahead).any()


def test_a_point_has_only_itself():
    region, only = POINT.region, [0.2, 0.3, 0.1, 0.2, 0.2]
    for points in (region.sample(5, 0), region.project(np.eye(5)), region.nearby(np.eye(5)), region.centre[None]):
        np.testing.assert_allclose(points, np.broadcast_to(only, points.shape), atol=1e-12)


def test_divergence_by_hand():
    region = constrained(prior=UNIFORM, max_kl=0.5).region
    mixtures = np.array([[0.2] * 5, [1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0]])
    np.testing.assert_allclose(region.divergence(mixtures), [0, np.log(5), np.log(2.5)], atol=1e-15)
    np.testing.assert_array_equal(region.contains(mixtures), [True, False, False])


def test_constraints_that_only_together_leave_nothing_are_refused():
    crossed = {
        "a": Group(("web", "code"), 0.7),
        "b": Group(("code", "books"), 0.7),
        "c": Group(("web", "books"), 0.7),
    }
    with pytest.raises(UserError, match="no mixture obeys the bounds on weights, groups and ratios at once"):
        constrained(groups=crossed)
    with pytest.raises(UserError, match=r"max_kl=0\.1: the mixture nearest to the prior that .* is 0\.3819"):
        # web at .6, the rest alike: .6 log 3 + .4 log .5 = .382 nats
        constrained(min={"web": 0.6}, prior=UNIFORM, max_kl=0.1)


def test_the_simplex_is_a_region_without_bounds():
    region = Region.simplex(4)
    draws = simplex.space_filling(50, 4, seed=3)
    np.testing.assert_array_equal(region.sample(50, 3), draws)
    assert region.is_box
    assert region.contains(np.vstack([draws, simplex.corners(4)])).all()
    assert not region.contains(np.array([[0.5, 0.5, 0.1, 0], [1.1, -0.1, 0, 0]])).any()
