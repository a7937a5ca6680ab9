import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import BALL, BOX, EVERY, GROUPS, UNIFORM, constrained, random_region

from mde.errors import UserError
from mde.optimization import losses, search
from mde.optimization.region import Region

ROUNDING = 1e-12  # of losses of about 1 in float64


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_linear_losses_are_minimised_exactly(seed, n):
    """It lies in the region and has the loss it is said to have, and nothing that a search finds is below it."""
    region = random_region(seed)
    rng = np.random.default_rng(seed)
    loss = losses.Formula(rng.normal(size=n), rng.normal(size=(n, region.k)))
    exact = search.minimize(loss, region, seed)
    assert exact.method == "exact"
    assert exact.gap <= ROUNDING
    assert region.contains(exact.mixture[None])[0]
    assert abs(loss(exact.mixture[None])[0] - exact.loss) <= ROUNDING
    searched = search.minimize(loss, region, seed, method="refinement", n_candidates=256)
    assert exact.loss <= searched.loss + 1e-9


def bowl(seed, k=5):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(k, k))
    curvature, slope = root @ root.T + 0.05 * np.eye(k), rng.normal(size=k)
    return losses.Smooth(lambda x: x @ curvature @ x / 2 + slope @ x, convex=True)


@pytest.mark.parametrize("name", [*list(EVERY)[:4], pytest.param("ball", marks=pytest.mark.slow), "point"])
def test_convex_losses_are_minimised_with_a_certificate(name):
    region = EVERY[name].region
    loss = bowl(1)
    found = search.minimize(loss, region, seed=0, n_candidates=256)
    assert found.method == "gradient"
    # Descent stops where a step gains less than 1e-13; the bound also holds the price of the ball, found by bisection.
    assert 0 <= found.gap <= (2e-5 if name == "ball" else 1e-6)
    assert region.contains(found.mixture[None])[0]
    baseline = search.minimize(lambda x: loss(x), region, seed=0, method="refinement", n_candidates=1024)
    assert found.loss - found.gap - ROUNDING <= baseline.loss <= found.loss + 1e-3
    assert search.minimize(loss, region, seed=0, method="exact", n_candidates=256).loss == found.loss


def test_the_gradient_is_that_of_float64():
    loss = losses.Smooth(lambda x: -jnp.sum(jnp.sqrt(x)))
    values, gradients = loss.value_and_gradient(np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(values[0], -0.5 - np.sqrt(0.75), rtol=1e-15)
    np.testing.assert_allclose(gradients[0], [-1.0, -0.5 / np.sqrt(0.75), -losses.STEEPEST], rtol=1e-14)


def test_a_cost_of_leaving_the_prior_by_hand():
    """A linear loss plus w KL(x ‖ p) over the simplex has its minimum at p exp(-slope / w), normalised (Gibbs)."""
    prior = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    region = constrained(prior=dict(zip(UNIFORM, prior, strict=True)), kl_penalty=0.3).region
    slope = np.array([0.3, -0.2, 0.5, 0.0, -0.4])
    loss = losses.Penalised(losses.Formula(0.0, slope), region, 0.3)
    gibbs = prior * np.exp(-slope / 0.3)
    found = search.minimize(loss, region, seed=0)
    np.testing.assert_allclose(found.mixture, gibbs / gibbs.sum(), atol=1e-6)
    assert found.gap < 1e-9
    step = 1e-6 * np.eye(5)
    x = np.full(5, 0.2)
    numeric = (loss(x + step) - loss(x - step)) / 2e-6
    np.testing.assert_allclose(loss.value_and_gradient(x[None])[1][0], numeric, atol=1e-8)


def test_a_cap_on_divergence_by_hand():
    """Without bounds the optimum of a linear loss in the ball is a Gibbs mixture, at the price that meets the cap."""
    slope = np.array([0.3, -0.2, 0.5, 0.0, -0.4])
    region = constrained(prior=UNIFORM, max_kl=0.3).region
    found = search.minimize(losses.Formula(0.0, slope), region, seed=0, n_candidates=256)
    assert region.divergence(found.mixture[None])[0] == pytest.approx(0.3, abs=1e-6)
    price = np.polyfit(slope, np.log(found.mixture), 1)[0]
    gibbs = np.exp(price * slope)
    np.testing.assert_allclose(found.mixture, gibbs / gibbs.sum(), atol=1e-5)
    assert found.gap < 1e-6


def test_many_starts_find_the_best_of_several_valleys():
    targets = np.array([[0.7, 0.1, 0.1, 0.05, 0.05], [0.05, 0.05, 0.1, 0.1, 0.7], [0.1, 0.1, 0.6, 0.1, 0.1]])
    depths = np.array([1.0, 1.3, 0.9])
    loss = losses.Smooth(lambda x: -jnp.sum(depths * jnp.exp(-40 * jnp.sum((x - targets) ** 2, axis=1))))
    found = search.minimize(loss, Region.simplex(5), seed=0)
    np.testing.assert_allclose(found.mixture, targets[1], atol=1e-3)
    assert found.gap is None


@pytest.mark.parametrize("seed", range(4))
def test_in_a_ball_too_nothing_that_was_seen_is_better_than_what_is_found(seed):
    """No price of divergence leads to some optima of losses that are not convex, so the search must not rely on one."""
    rng = np.random.default_rng(seed)
    linear, root, log = rng.normal(size=(3, 5)) * [[1], [1], [0.3]]
    seen = []

    class Watched(losses.Formula):
        def __call__(self, mixtures):
            seen.append(mixtures)
            return super().__call__(mixtures)

    loss = Watched(0.0, linear, root, log)
    assert not loss.convex
    region = constrained(prior=UNIFORM, max_kl=0.2).region
    found = search.minimize(loss, region, 0, n_candidates=128)
    points = np.concatenate(seen)
    assert region.contains(found.mixture[None])[0]
    assert found.loss <= loss(points[region.contains(points, 0.0)]).min() + ROUNDING


def test_methods_that_a_loss_does_not_allow_are_refused():
    region = BOX.region
    with pytest.raises(UserError, match="'gradient' needs a loss with a gradient"):
        search.minimize(lambda x: x[:, 0], region, 0, method="gradient")
    with pytest.raises(UserError, match="'exact' needs a convex loss"):
        search.minimize(losses.Smooth(lambda x: -x @ x), region, 0, method="exact")
    with pytest.raises(UserError, match="did you mean 'gradient'"):
        search.minimize(lambda x: x[:, 0], region, 0, method="gradeint")


@pytest.mark.parametrize("constraints", [BOX, GROUPS, pytest.param(BALL, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["simulation", "refinement"])
def test_values_alone_are_searched_under_every_constraint(constraints, method):
    region = constraints.region
    smooth = bowl(2)
    found = search.minimize(lambda x: smooth(x), region, 0, method=method, n_candidates=1024)
    assert region.contains(found.mixture[None])[0]
    best = search.minimize(smooth, region, 0, n_candidates=256)
    draws = np.sort(smooth(region.sample(1024, 0)))
    assert best.loss - best.gap - ROUNDING <= found.loss
    assert found.loss <= (draws[64] if method == "simulation" else best.loss + 1e-3)
