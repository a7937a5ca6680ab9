"""Other people's mixtures on laws whose optimum is known."""

import numpy as np
import pytest

from mde.optimization import objectives, simplex
from mde.optimization.objectives import Objective
from mde.regression import baselines

AVERAGE = Objective(np.full(2, 0.5))
# Two exponential laws in three domains; the third domain helps nobody.
FLOORS, FACTORS = np.array([1.5, 2.0]), np.array([1.0, 1.0])
SLOPES = np.array([[-3.0, 1.0], [1.0, -2.0], [2.0, 1.0]])


def laws(mixtures: np.ndarray) -> np.ndarray:
    return FLOORS + FACTORS * np.exp(mixtures @ SLOPES)


def least() -> np.ndarray:
    """The optimum on the edge of the first two domains, by a fine grid: slopes 4 and 3 cross there."""
    share = np.linspace(0, 1, 100_001)
    edge = np.stack([share, 1 - share, np.zeros_like(share)], axis=1)
    return edge[np.argmin(laws(edge) @ AVERAGE.weights)]


def test_the_mixing_law_finds_the_optimum_of_a_mixing_law():
    mixtures = simplex.space_filling(24, 3, seed=1)
    found = baselines.mixing_law(mixtures, laws(mixtures), AVERAGE)
    # Losses without noise: the laws come back to about 1e-6, and the optimum, where they are flat, to the root of it.
    np.testing.assert_allclose(found, least(), atol=2e-3)
    assert laws(found[None])[0].mean() == pytest.approx(laws(least()[None])[0].mean(), abs=1e-7)


def test_the_mixing_law_of_a_worst_case_is_where_the_laws_are_equal():
    mixtures = simplex.space_filling(24, 3, seed=1)
    goal = objectives.make("worst-all", ["a", "b"], ["a", "b", "c"])
    found = baselines.mixing_law(mixtures, laws(mixtures), goal)
    first, second = laws(found[None])[0]
    assert first == pytest.approx(second, abs=5e-3)
    grid = simplex.space_filling(20_000, 3, seed=3)
    assert max(first, second) <= laws(grid).max(axis=1).min() + 1e-4


def test_regmix_is_the_mean_of_the_best_draws_around_the_prior(monkeypatch):
    """With 64 runs, RegMix's own trees; the optimum of a smooth loss, as well as steps and a prior allow."""
    target = np.array([0.5, 0.3, 0.2])
    mixtures = simplex.space_filling(64, 3, seed=1)
    losses = 2 + ((mixtures - target) ** 2).sum(axis=1)[:, None]
    monkeypatch.setattr(baselines, "DRAWS", 20_000)
    found = baselines.regmix(mixtures, losses, Objective(np.ones(1)), np.full(3, 1 / 3), seed=0)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, target, atol=0.12)  # leaves of 20 of 64 rows are steps of about that width


def test_regmix_with_few_runs_has_leaves_that_can_split(monkeypatch):
    """LightGBM's leaves of 20 rows would predict a constant, and any draws would be as good as others."""
    mixtures = simplex.space_filling(28, 3, seed=1)
    losses = (3 - mixtures[:, :1]) @ np.ones((1, 2))
    monkeypatch.setattr(baselines, "DRAWS", 20_000)
    prior = np.array([0.2, 0.4, 0.4])
    found = baselines.regmix(mixtures, losses, AVERAGE, prior, seed=0)
    assert found[0] > 0.8  # the first domain is all that helps; the mean of any draws would have .2 of it
