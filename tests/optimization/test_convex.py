"""Convex formulas are minimised exactly, whatever the constraints; the gap says so."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import EVERY, UNIFORM, constrained, random_region
from scipy import optimize

from mde.errors import UserError
from mde.optimization import convex, losses, search, simplex
from mde.optimization.constraints import Bounds, Group

EXACT = 1e-6  # nats per token: far below the noise of any run
# A root's slope at a weight of 0 is vertical, so tangents, which the gap is from, bound such losses less tightly.
CERTIFIED = {"law": EXACT, "linear": EXACT, "roots": 5e-5}


def formula(kind: str, m: int, k: int, seed: int) -> losses.Formula:
    """M convex functions of K weights, as regressors predict losses."""
    rng = np.random.default_rng(seed)
    if kind == "law":
        exponents = 1.5 * rng.normal(size=(m, k))
        return losses.Formula(rng.uniform(1, 3, m), np.zeros((m, k)), factors=np.eye(m), exponents=exponents)
    if kind == "linear":
        return losses.Formula(2.0, rng.normal(size=(m, k)))
    few = rng.random((m, k)) < 0.5  # the others have no root
    root, log = -0.2 * np.abs(rng.normal(size=(m, k))) * few, -0.05 * np.abs(rng.normal(size=(m, k)))
    return losses.Formula(2.0, rng.normal(size=(m, k)), root, log)


KINDS = ("law", "linear", "roots")


def grid(steps: int) -> np.ndarray:
    """All mixtures of three domains in steps."""
    i, j = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1))
    kept = i + j <= steps
    return np.stack([i[kept], j[kept], steps - i[kept] - j[kept]], axis=1) / steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 4])
def test_nothing_on_a_fine_grid_of_three_domains_is_below_the_optimum(kind, m):
    loss, points = formula(kind, m, 3, 1), grid(1500)
    found = search.minimize(loss, constrained_to_three().region, 0)
    inside = points[constrained_to_three().region.contains(points)]
    assert constrained_to_three().region.contains(found.mixture[None])[0]
    assert found.method == "exact"
    assert 0 <= found.gap <= CERTIFIED[kind]
    # Slopes are a few nats per unit of weight, roots' are larger near 0: a grid of 1/1500 comes to within 5e-3.
    assert found.loss - EXACT <= loss(inside).min() <= found.loss + 5e-3


def constrained_to_three() -> Bounds:
    names = ("a", "b", "c")
    return Bounds(names, min={"a": 0.05}, max={"b": 0.6}, groups={"g": Group(("a", "c"), 0.45, 0.9)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [64, 128])
@pytest.mark.parametrize("worst", [False, True])
def test_many_domains_are_solved_to_the_optimum(kind, k, worst):
    """The reference is another method altogether: SLSQP in the epigraph form, over the roots of the weights."""
    several = formula(kind, 6, k, 2)
    loss = several if worst else several.average(np.full(6, 1 / 6))
    found = search.minimize(loss, Bounds(tuple(map(str, range(k)))).region, 0)
    assert found.gap <= CERTIFIED[kind]
    reference = by_slsqp(loss, k)
    assert found.loss <= reference + EXACT
    assert reference <= found.loss + 2e-3  # SLSQP stops a little early where many weights are 0


def by_slsqp(loss: losses.Formula, k: int) -> float:
    """min t with f_j(s²) ≤ t and Σ s² = 1, from the uniform mixture on; the loss of the mixture found."""
    eye = np.eye(len(loss.linear))

    def slopes(point: np.ndarray) -> np.ndarray:
        root = np.maximum(np.abs(point[:-1]), 1e-12)
        return np.stack([2 * root * loss.slope(root**2, one) for one in eye])

    start = np.full(k, 1 / k)
    found = optimize.minimize(
        lambda point: point[-1],
        np.append(np.sqrt(start), loss(start[None])[0]),
        jac=lambda point: np.append(np.zeros(k), 1.0),
        bounds=[(0, 1)] * k + [(None, None)],
        constraints=[
            {
                "type": "eq",
                "fun": lambda point: np.sum(point[:-1] ** 2) - 1,
                "jac": lambda point: np.append(2 * point[:-1], 0.0),
            },
            {
                "type": "ineq",
                "fun": lambda point: point[-1] - loss.functions(point[None, :-1] ** 2)[0],
                "jac": lambda point: np.hstack([-slopes(point), np.ones((len(eye), 1))]),
            },
        ],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    mixture = found.x[:-1] ** 2
    return float(loss((mixture / mixture.sum())[None])[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(1, 4))
def test_the_gap_bounds_what_any_mixture_of_the_region_can_have(seed, kind, m):
    region = random_region(seed)
    loss = formula(kind, m, region.k, seed)
    found = search.minimize(loss, region, seed)
    assert region.contains(found.mixture[None])[0]
    assert found.loss == loss(found.mixture[None])[0]
    assert found.gap <= CERTIFIED[kind]
    points = np.vstack([region.sample(64, seed), region.boundary(64, seed)])
    assert loss(points).min() >= found.loss - found.gap - 1e-12


@pytest.mark.parametrize("name", [*EVERY])
@pytest.mark.parametrize("kind", KINDS)
def test_every_constraint_is_kept(name, kind):
    region = EVERY[name].region
    loss = formula(kind, 3, 5, 3)
    found = search.minimize(loss, region, 0)
    assert region.contains(found.mixture[None])[0]
    assert found.gap <= CERTIFIED[kind]
    searched = search.minimize(lambda x: loss(x), region, 0, "refinement", n_candidates=256)
    assert found.loss <= searched.loss + EXACT
    assert searched.loss <= found.loss + 0.05  # refinement of a worst case stops at kinks


@pytest.mark.parametrize("kind", KINDS)
def test_a_price_on_divergence_is_minimised_with_the_loss(kind):
    region = constrained(prior=UNIFORM, kl_penalty=0.2).region
    loss = losses.Penalised(formula(kind, 3, 5, 4), region, 0.2)
    found = search.minimize(loss, region, 0)
    assert found.method == "exact"
    assert found.gap <= CERTIFIED[kind]
    assert found.loss <= loss(region.sample(2000, 0)).min()


def test_seeds_do_not_change_what_is_exact():
    loss = formula("law", 8, 24, 5)
    found = [search.minimize(loss, Bounds(tuple(map(str, range(24)))).region, seed) for seed in range(5)]
    assert np.ptp([one.loss for one in found]) <= EXACT
    np.testing.assert_array_equal(found[0].mixture, found[4].mixture)


def test_domains_without_use_get_exactly_nothing():
    found = search.minimize(formula("linear", 1, 7, 0), Bounds(tuple("abcdefg")).region, 0)
    assert (found.mixture > 0).sum() == 1
    laws = search.minimize(
        formula("law", 4, 24, 6).average(np.full(4, 0.25)), Bounds(tuple(map(str, range(24)))).region, 0
    )
    assert 0 < (laws.mixture > 0).sum() < 12
    assert laws.mixture[laws.mixture > 0].min() > 1e-4


def test_formulas_that_are_not_convex_are_not_taken_for_it():
    bent = losses.Formula(0.0, np.zeros(3), root=np.array([1.0, -1.0, -1.0]))
    assert not bent.convex
    assert not convex.is_convex_formula(bent)
    assert search.minimize(bent, Bounds(("a", "b", "c")).region, 0).method == "gradient"
    with pytest.raises(UserError, match="needs a convex loss"):
        search.minimize(bent, Bounds(("a", "b", "c")).region, 0, "exact")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_averages_and_parts_of_formulas_are_those_of_their_values(seed, kind):
    loss = formula(kind, 4, 5, seed)
    points = simplex.space_filling(16, 5, seed)
    values = loss.functions(points)
    weights, reference = np.array([0.5, 0, 0.2, 0.3]), np.arange(4.0)
    np.testing.assert_allclose(loss.average(weights)(points), values @ weights, atol=1e-12)
    chosen = np.array([True, False, True, True])
    parts = loss.among(chosen, reference)
    np.testing.assert_allclose(parts(points), (values - reference)[:, chosen].max(axis=1), atol=1e-12)
    step = 1e-6 * np.eye(5)
    inner = 0.5 * points[0] + 0.1
    numeric = (parts(inner + step) - parts(inner - step)) / 2e-6
    np.testing.assert_allclose(parts.value_and_gradient(inner[None])[1][0], numeric, atol=1e-6)


def test_the_solver_needs_no_jax():
    code = (
        "import sys; from mde.optimization import convex; convex._cvxpy(); assert 'jax' not in sys.modules; import jax"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
