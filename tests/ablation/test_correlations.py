import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from mde.ablation.correlations import correlate, perplexity, table
from mde.errors import UserError

RNG = np.random.default_rng(0)
OBSERVED = RNG.normal(size=(12, 3))
SIZES = np.array([1, 2, 3, 4] * 3)
PREDICTED = np.stack([OBSERVED + RNG.normal(size=(12, 3)), -OBSERVED, OBSERVED.round()])


def test_correlations_are_those_of_scipy():
    found = correlate(OBSERVED, PREDICTED, SIZES, resamples=10)
    for p in range(3):
        for j in range(3):
            pair = OBSERVED[:, j], PREDICTED[p, :, j]
            assert found["pearson"][p, j] == pytest.approx(stats.pearsonr(*pair).statistic, abs=1e-12)
            assert found["spearman"][p, j] == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)  # with ties


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_intervals_are_percentiles_over_resampled_unions(name):
    found = correlate(OBSERVED, PREDICTED, SIZES, resamples=300, seed=3, level=0.8)
    draws = np.random.default_rng(3).integers(12, size=(300, 12))
    function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
    again = [function(OBSERVED[rows, 1], PREDICTED[0, rows, 1]).statistic for rows in draws]
    assert_allclose([found[f"{name}_low"][0, 1], found[f"{name}_high"][0, 1]], np.quantile(again, [0.1, 0.9]))


def test_partial_correlations_are_those_of_residuals():
    found = correlate(OBSERVED, PREDICTED, SIZES, resamples=50, seed=3)
    left = lambda y, rows: stats.linregress(np.log(SIZES[rows]), y[rows])  # noqa: E731

    def partial(y, x, rows):
        residuals = [v[rows] - left(v, rows).slope * np.log(SIZES[rows]) for v in (y, x)]
        return stats.pearsonr(*residuals).statistic

    pair = OBSERVED[:, 2], PREDICTED[0, :, 2]
    assert found["partial"][0, 2] == pytest.approx(partial(*pair, np.arange(12)), abs=1e-12)
    draws = np.random.default_rng(3).integers(12, size=(50, 12))
    again = [partial(*pair, rows) for rows in draws]
    assert_allclose([found["partial_low"][0, 2], found["partial_high"][0, 2]], np.quantile(again, [0.05, 0.95]))


def test_nothing_is_left_of_a_proxy_that_only_knows_sizes():
    sizes = -np.log(np.broadcast_to(SIZES[:, None], OBSERVED.shape))
    found = correlate(OBSERVED + sizes, sizes[None], SIZES, resamples=0)
    assert (found["pearson"] > 0).all()
    assert np.isnan(found["partial"]).all()
    alike = correlate(OBSERVED, PREDICTED, np.full(12, 5.0), resamples=0)
    assert_allclose(alike["partial"], alike["pearson"])  # unions of one size


def test_without_resamples_there_are_no_intervals_and_without_variance_no_correlation():
    found = correlate(OBSERVED, np.full((1, 12, 3), 1 / 3), SIZES, resamples=0)
    assert np.isnan(found["pearson"]).all()
    assert np.isnan(found["spearman"]).all()
    assert np.isnan(correlate(OBSERVED, PREDICTED, SIZES, resamples=0)["pearson_low"]).all()


def test_two_unions_are_too_few():
    with pytest.raises(UserError, match="2 unions: a correlation needs at least 3"):
        correlate(OBSERVED[:2], PREDICTED[:, :2], SIZES[:2])


def test_perplexity_of_a_mean_is_the_geometric_mean():
    assert perplexity(np.mean([1.0, 3.0])) == pytest.approx(np.sqrt(np.exp(1) * np.exp(3)))


def test_a_table_joins_by_union_and_averages_domains_before_the_exponential():
    unions = [f"union-{i}" for i in range(12)]
    sizes = dict(zip(unions, SIZES, strict=True))
    rows = {"seq": OBSERVED, "merged": PREDICTED[0]}
    losses = pd.concat([pd.DataFrame(values, unions, list("abc")).assign(model=name) for name, values in rows.items()])
    found = table(
        losses.sample(frac=1, random_state=0), {"inside": ["a", "b"], "outside": ["c"], "none": []}, sizes, 10
    )
    assert list(found["domain"]) == 2 * ["a", "b", "c", "inside", "outside"]
    assert list(found.index.unique()) == ["merged", "size"]
    by_domain = found.loc["merged"].set_index("domain")["pearson"]
    assert found.loc["size"].set_index("domain")["pearson"]["a"] == pytest.approx(
        stats.pearsonr(np.exp(OBSERVED[:, 0]), -np.log(SIZES)).statistic
    )
    inside = stats.pearsonr(np.exp(OBSERVED[:, :2].mean(axis=1)), np.exp(PREDICTED[0, :, :2].mean(axis=1)))
    assert by_domain["inside"] == pytest.approx(inside.statistic)
    assert by_domain["outside"] == by_domain["c"]
    assert set(found["unions"]) == {12}
