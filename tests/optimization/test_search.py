import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import constrained

from mde.errors import UserError
from mde.optimization import losses, refinement, search, simplex
from mde.optimization.region import Region


def distance_to(target):
    return lambda mixtures: np.sum((mixtures - target) ** 2, axis=1)


@pytest.mark.parametrize("k", [2, 3, 7, 17])
def test_the_minimum_of_a_quadratic_inside_the_simplex_is_found(k):
    target = np.random.default_rng(k).dirichlet(np.full(k, 3.0))
    optimum = search.minimize(distance_to(target), Region.simplex(k), seed=0)
    np.testing.assert_allclose(optimum.mixture, target, atol=1e-3)


def test_a_narrow_slanted_valley_is_followed():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(7, 7))
    curvature = root @ root.T + 0.05 * np.eye(7)
    target = rng.dirichlet(np.full(7, 2.0))

    def loss(mixtures):
        return np.einsum("ck,kl,cl->c", mixtures - target, curvature, mixtures - target)

    np.testing.assert_allclose(search.minimize(loss, Region.simplex(7), seed=0).mixture, target, atol=1e-3)


@pytest.mark.parametrize("best", range(5))
def test_a_corner_is_reached_exactly(best):
    slope = np.ones(5)
    slope[best] = 0.5
    optimum = search.minimize(lambda mixtures: mixtures @ slope, Region.simplex(5), seed=0)
    np.testing.assert_array_equal(optimum.mixture, simplex.corners(5)[best])


def test_a_face_is_reached_with_shares_of_zero():
    target = np.array([0.0, 0.6, 0.0, 0.3, 0.1, 0.0])
    pull = np.where(target == 0, 0.2, 0.0)
    loss = distance_to(target)
    optimum = search.minimize(lambda mixtures: loss(mixtures) + mixtures @ pull, Region.simplex(6), seed=0)
    np.testing.assert_allclose(optimum.mixture, target, atol=1e-3)
    np.testing.assert_array_equal(optimum.mixture == 0, target == 0)


@pytest.mark.parametrize("k", [101, 150])
def test_more_domains_than_have_a_hundredth_each_are_searched(k):
    """Near uniform no share is above the greatest threshold below which weights are tried without."""
    uniform = np.full(k, 1 / k)
    found = search.minimize(distance_to(uniform), Region.simplex(k), 0, "refinement", n_candidates=64, rounds=3)
    np.testing.assert_allclose(found.mixture, uniform, atol=1e-12)  # it is among the first candidates


def test_the_water_filling_optimum_of_log_features_is_found():
    # min -c.log(λ + 0.01) over the simplex: λ = max(c m - 0.01, 0). By hand, with the third share empty:
    # 0.995 m - 0.02 = 1, and indeed 0.005 m < 0.01.
    c = np.array([0.6, 0.395, 0.005])
    m = 1.02 / 0.995
    optimum = search.minimize(lambda mixtures: -np.log(mixtures + 0.01) @ c, Region.simplex(3), seed=0)
    np.testing.assert_allclose(optimum.mixture, [0.6 * m - 0.01, 0.395 * m - 0.01, 0], atol=1e-3)
    assert optimum.mixture[2] == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), rounds=st.integers(0, 5))
def test_the_result_is_a_mixture_and_the_best_of_all_that_was_seen(seed, k, rounds):
    seen = []
    steps = np.random.default_rng(seed).normal(size=(4, k))

    def rugged(mixtures):  # piecewise constant, as trees are
        values = np.floor(5 * mixtures @ steps.T).sum(axis=1)
        seen.append((mixtures, values))
        return values

    optimum = search.minimize(rugged, Region.simplex(k), seed, n_candidates=64, rounds=rounds, top=8)
    mixtures, values = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert optimum.loss == values.min()
    assert optimum.evaluations == len(values)
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures.sum(axis=1), 1, atol=1e-12)


def test_the_same_seed_gives_the_same_mixture():
    loss = distance_to(np.array([0.2, 0.3, 0.5]))
    first, again, other = (
        search.minimize(loss, Region.simplex(3), seed, n_candidates=64, rounds=3) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.mixture, again.mixture)
    assert (first.mixture != other.mixture).any()


def test_a_starting_point_is_never_lost():
    needle = np.array([[0.123, 0.456, 0.421]])

    def loss(mixtures):
        return np.where(np.abs(mixtures - needle).max(axis=1) < 1e-9, -1.0, mixtures[:, 0])

    assert search.minimize(loss, Region.simplex(3), seed=0).loss == 0.0
    optimum = search.minimize(loss, Region.simplex(3), seed=0, start=needle)
    assert optimum.loss == -1.0
    np.testing.assert_allclose(optimum.mixture, needle[0], atol=1e-9)


def test_simulation_is_the_mean_of_the_best_draws():
    target = np.array([0.2, 0.3, 0.5])
    draws = simplex.space_filling(512, 3, seed=0, concentration=2.0)
    best = draws[np.argsort(distance_to(target)(draws))[:16]].mean(axis=0)
    optimum = search.minimize(
        distance_to(target), Region.simplex(3), 0, "simulation", n_candidates=512, top=16, concentration=2.0
    )
    np.testing.assert_allclose(optimum.mixture, best, atol=1e-15)
    assert optimum.loss == pytest.approx(distance_to(target)(best[None])[0])
    assert optimum.evaluations == 513


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda mixtures: np.full(len(mixtures), np.nan), "is nan, expected finite"),
        (lambda mixtures: mixtures, "expected one number each"),
    ],
)
def test_a_broken_loss_is_refused(loss, says):
    with pytest.raises(UserError, match=says):
        search.minimize(loss, Region.simplex(3), seed=0)


def test_bad_settings_are_refused():
    loss = distance_to(np.array([1.0, 0.0]))
    with pytest.raises(UserError, match="n_candidates=0"):
        search.minimize(loss, Region.simplex(2), seed=0, n_candidates=0)
    with pytest.raises(UserError, match="start of the search: row 0"):
        search.minimize(loss, Region.simplex(2), seed=0, start=np.array([[0.5, 0.6]]))


@pytest.mark.parametrize("k", [3, 17])
def test_optima_of_losses_near_each_other_are_found_together(k):
    rng = np.random.default_rng(k)
    pulls = rng.dirichlet(np.ones(k)) + rng.dirichlet(np.ones(k), 20)

    def several(points):
        return -pulls @ np.log(points + 0.02).T

    region = Region.simplex(k)
    first = search.minimize(lambda x: several(x).mean(axis=0), region, 0).mixture
    start = np.vstack([first, region.sample(1024, 0)])
    found = refinement.refine_together(several, region, start, 16, 1024, 0)
    assert found.shape == (20, k)
    assert region.contains(found).all()
    for i, mixture in enumerate(found):
        alone = search.minimize(lambda x, i=i: several(x)[i], region, 0).loss
        # The worst of twenty keeps an eighth of what the start leaves: alone it would have all the proposals.
        assert several(mixture[None])[i, 0] - alone <= 0.2 * (several(start)[i].min() - alone)
    np.testing.assert_array_equal(found, refinement.refine_together(several, region, start, 16, 1024, 0))


RATIOS = {"old": {"web": 0.6, "code": 0.4}, "text": {"books": 1, "wiki": 3}}
VIRTUAL = np.array([[0.6, 0.4, 0, 0, 0], [0, 0, 0.25, 0.75, 0], [0, 0, 0, 0, 1.0]])  # a row a virtual domain
PULL = np.random.default_rng(5).normal(size=(5, 5))


def bowl(mixtures):
    return np.sum(((mixtures - [0.5, 0.1, 0.2, 0.1, 0.1]) @ PULL) ** 2, axis=1)


def smooth_bowl():
    return losses.Smooth(lambda mixture: (((mixture - np.array([0.5, 0.1, 0.2, 0.1, 0.1])) @ PULL) ** 2).sum(), True)


@pytest.mark.parametrize("method", ["auto", "exact", "gradient", "refinement", "simulation"])
def test_every_search_keeps_frozen_ratios_and_finds_what_virtual_domains_would(method):
    """With ratios kept, the problem is that of three domains, each made of the others in its ratios."""
    region = constrained(ratios=RATIOS).region
    loss = smooth_bowl() if method in ("exact", "gradient") else bowl
    found = search.minimize(loss, region, seed=0, method=method, n_candidates=512)
    virtual = search.minimize(lambda totals: bowl(totals @ VIRTUAL), Region.simplex(3), seed=0)
    totals = np.array([found.mixture[:2].sum(), found.mixture[2:4].sum(), found.mixture[4]])
    np.testing.assert_allclose(found.mixture, totals @ VIRTUAL, atol=2e-9)
    near = {"simulation": 0.05, "exact": 1e-6, "gradient": 1e-6}.get(method, 1e-5)
    assert found.loss == pytest.approx(virtual.loss, abs=near)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_linear_loss_is_least_at_a_virtual_domain(seed):
    slope = np.random.default_rng(seed).normal(size=5)
    found = search.minimize(losses.Formula(0.0, slope), constrained(ratios=RATIOS).region, seed=0)
    np.testing.assert_allclose(found.mixture, VIRTUAL[np.argmin(VIRTUAL @ slope)], atol=1e-9)
