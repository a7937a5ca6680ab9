import numpy as np
import pytest
from scipy import stats

from mde.errors import UserError
from mde.regression.power import power_of_seeds, proxy_runs_needed, seeds_needed


@pytest.mark.parametrize(("seeds", "difference", "comparisons"), [(3, 3.0, 1), (5, 2.0, 1), (8, 2.5, 3), (20, 0.9, 1)])
def test_power_is_that_of_a_simulated_paired_t_test(seeds, difference, comparisons):
    trials = 20_000
    rng = np.random.default_rng(0)
    shared = 5 * rng.normal(size=(trials, seeds))  # a seed moves all mixtures together
    first, second = shared + rng.normal(size=(2, trials, seeds))
    found = stats.ttest_rel(first + difference, second, axis=1).pvalue < 0.05 / comparisons
    error = np.sqrt(0.25 / trials)
    assert power_of_seeds(seeds, 1.0, difference, comparisons) == pytest.approx(found.mean(), abs=4 * error)


def test_seeds_needed_is_the_smallest_number_with_that_power():
    # Effect d / (noise √2) = 1: 10 pairs have a power of .803, 9 of .750 (Cohen 1988 and G*Power: n = 10).
    noise = 1 / np.sqrt(2)
    assert seeds_needed(noise, 1.0) == 10
    assert power_of_seeds(9, noise, 1.0) < 0.8 <= power_of_seeds(10, noise, 1.0)
    # Effect .5: 34 pairs (G*Power).
    assert seeds_needed(noise, 0.5) == 34


def test_more_comparisons_more_power_and_smaller_differences_need_more_seeds():
    usual = seeds_needed(0.002, 0.005)
    assert usual < seeds_needed(0.002, 0.005, comparisons=3) < seeds_needed(0.002, 0.005, comparisons=10)
    assert usual < seeds_needed(0.002, 0.005, power=0.95)
    assert usual < seeds_needed(0.002, 0.003)
    assert seeds_needed(0.0, 0.005) == 2


def test_a_large_number_is_that_of_the_normal_approximation():
    expected = 2 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * 100**2
    assert seeds_needed(1.0, 0.01) == pytest.approx(expected, rel=1e-3)


def test_bad_arguments():
    with pytest.raises(UserError, match="difference=0"):
        seeds_needed(0.002, 0)
    with pytest.raises(UserError, match="noise=-1"):
        seeds_needed(-1, 0.1)
    with pytest.raises(UserError, match="power"):
        seeds_needed(1, 0.1, power=0.01)
    with pytest.raises(UserError, match="1,000,000 runs"):
        seeds_needed(1, 1e-6)


def test_proxy_runs_needed_is_that_of_simulated_regressions():
    """Least squares on λ of 4 domains (5 parameters with the intercept, of which the simplex leaves 4)."""
    noise, difference, domains = 0.05, 0.06, 4
    runs = proxy_runs_needed(noise, difference, domains)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        design = rng.dirichlet(np.ones(domains), runs)
        # two mixtures of the swarm's own kind, the second worse by the difference
        first, second = rng.dirichlet(np.ones(domains), 2)
        contrast = second - first
        slopes = difference * contrast / (contrast @ contrast)
        losses = design @ slopes + noise * rng.normal(size=runs)
        fitted, squares, *_ = np.linalg.lstsq(design, losses, rcond=None)
        variance = squares[0] / (runs - domains)
        error = np.sqrt(variance * contrast @ np.linalg.inv(design.T @ design) @ contrast)
        found.append(abs(contrast @ fitted) > stats.t.ppf(0.975, runs - domains) * error)
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)
    assert proxy_runs_needed(0.0, difference, domains) == domains + 1
    assert proxy_runs_needed(noise, difference / 2, domains) > 3 * runs
