"""Differences of mixtures with common seeds and common documents."""

import itertools

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_rel

from mde.regression import paired
from mde.regression.power import seeds_needed


def mean(losses: np.ndarray) -> np.ndarray:
    return losses.mean(axis=-1)


def swarm(seeds=3, mixtures=3, documents=30, domains=4, truth=(0.0, 0.0, 0.0), text=0.05, run=0.005, both=0.02, seed=0):
    """Nats [S, M, D], tokens and domains: documents react to mixtures, runs and runs on documents have noise."""
    rng = np.random.default_rng(seed)
    count = documents * domains
    tokens = rng.integers(100, 900, count)
    losses = rng.normal(3, 0.5, count) + rng.normal(0, text, (mixtures, count)) + np.array(truth)[:mixtures, None]
    losses = losses + rng.normal(0, 0.01, (seeds, 1, 1)) + rng.normal(0, run, (seeds, mixtures, 1))
    return (losses + rng.normal(0, both, losses.shape)) * tokens, tokens, np.repeat(np.arange(domains), documents)


@pytest.mark.parametrize(
    "noise",
    [
        {},
        {"text": 0.0, "both": 0.0},
        pytest.param({"seeds": 2, "run": 0.01, "documents": 12}, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover(noise):
    """95% intervals of two differences and of the regret, in 200 studies each: ± 3% is two standard errors."""
    truth = np.array([0.004, 0.0, 0.01])
    held, regrets = [], []
    for seed in range(200):
        found = paired.compare(*swarm(truth=truth, seed=seed, **noise), mean, "abc", "a", draws=200, seed=seed)
        others = found.loc[["b", "c"]]
        reach = others["error"] * student.ppf(0.975, others["freedom"])
        held += ((others["difference"] - (truth[1:] - truth[0])).abs() <= reach).tolist()
        _, low, high = paired.regret(found, "a")
        regrets.append(low <= 0.004 <= high)
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(regrets) >= 0.94


def test_false_claims_are_as_rare_as_they_should_be():
    """Four equal mixtures, the first compared with three others: a claim in at most 5% of 200 studies (± 3%)."""
    truth = (0.0,) * 4
    claims = [
        paired.compare(*swarm(mixtures=4, truth=truth, seed=seed), mean, "abcd", "a", draws=200)["clear"].any()
        for seed in range(200)
    ]
    assert np.mean(claims) <= 0.08


def test_the_error_of_the_text_is_that_of_the_bootstrap_by_hand():
    """All 4³ draws of three documents out of four: their variance, to within the noise of 20,000 draws."""
    tokens, losses = np.array([100, 200, 100, 400]), np.array([[3.0, 2.5, 2.0, 2.8], [3.1, 2.5, 2.2, 2.75]])
    nats = (losses * tokens)[None]
    found = paired.compare(nats, tokens, np.zeros(4, int), mean, "ab", "a", draws=20_000)
    draws = np.array(list(itertools.product(range(4), repeat=3)))
    gaps = nats[0, 1] - nats[0, 0]
    exact = (gaps[draws].sum(axis=1) / tokens[draws].sum(axis=1)).std()
    assert found.loc["b", "error_text"] == pytest.approx(exact, rel=0.02)
    assert found.loc["b", "difference"] == pytest.approx(gaps.sum() / tokens.sum())


def test_without_noise_of_the_text_it_is_the_paired_t_test():
    losses = np.array([[2.00, 2.15], [2.10, 2.12], [2.05, 2.14]])
    nats = np.repeat(losses[:, :, None], 4, axis=2) * 10
    found = paired.compare(nats, np.full(4, 10), np.array([0, 0, 1, 1]), mean, "ab", "a")
    assert found.loc["b", "p"] == pytest.approx(ttest_rel(losses[:, 1], losses[:, 0]).pvalue)
    assert found.loc["b", "freedom"] == pytest.approx(2)
    noise = (losses[:, 1] - losses[:, 0]).std(ddof=1) / np.sqrt(2)
    assert found.loc["b", "seeds_needed"] == seeds_needed(noise, found.loc["b", "difference"])
    assert np.isnan(found.loc["a", "p"])


def test_runs_that_agree_in_everything_differ_for_certain():
    nats = np.repeat(np.array([[20.0, 21.0, 20.0]] * 2)[:, :, None], 4, axis=2)
    arguments = (nats, np.full(4, 10), np.array([0, 0, 1, 1]), mean, "abc")
    found = paired.compare(*arguments, "a")
    assert found["clear"].tolist() == [False, True, False]
    assert paired.regret(paired.compare(*arguments, "b"), "b") == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize("counted", [True, False])
def test_a_single_document_says_nothing_of_the_noise_of_its_domain(counted):
    nats, tokens, domains = swarm(domains=2)
    alone = (domains == 0) | (np.arange(len(domains)) == len(domains) - 1)
    weights = np.array([0.5, 0.5]) if counted else np.array([1.0, 0.0])
    found = paired.compare(nats[..., alone], tokens[alone], domains[alone], lambda x: x @ weights, "abc", "a")
    assert np.isnan(found.loc["b", "p"]) == counted
    assert np.isnan(paired.regret(found, "a")[1]) == counted


def test_one_seed_says_nothing_of_the_noise_of_runs():
    found = paired.compare(*swarm(seeds=1), mean, "abc", "a")
    assert found.loc[["b", "c"], ["error", "p", "p_holm", "seeds_needed"]].isna().all(axis=None)
    assert (found.loc[["b", "c"], "error_text"] > 0).all()
    assert not found["clear"].any()


def test_holm_by_hand():
    np.testing.assert_allclose(paired.holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(paired.holm([0.5, 0.9]), [1, 1])


def test_regret_is_measured_from_the_best_of_the_others():
    found = paired.compare(*swarm(truth=(0.05, 0.0, 0.03), seeds=4), mean, "abc", "a")
    value, low, high = paired.regret(found, "a")
    assert value == pytest.approx(found["measured"]["a"] - found["measured"].min())
    assert 0 < low < value < high
    assert paired.regret(found.loc[["a"]], "a")[0] == 0
