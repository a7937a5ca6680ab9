import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from mde.ablation import unions
from mde.ablation.correlations import correlate, effective_unions, perplexity, table
from mde.errors import UserError

RNG = np.random.default_rng(0)
OBSERVED = RNG.normal(size=(12, 3))
SIZES = np.array([1, 2, 3, 4] * 3)
PREDICTED = np.stack([OBSERVED + RNG.normal(size=(12, 3)), -OBSERVED, OBSERVED.round()])


def test_correlations_are_those_of_scipy():
    found = correlate(OBSERVED, PREDICTED, SIZES)
    for p in range(3):
        for j in range(3):
            pair = OBSERVED[:, j], PREDICTED[p, :, j]
            assert found["pearson"][p, j] == pytest.approx(stats.pearsonr(*pair).statistic, abs=1e-12)
            assert found["spearman"][p, j] == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)  # with ties


def test_unions_that_share_nothing_have_fishers_interval():
    found = correlate(OBSERVED, PREDICTED, SIZES, level=0.8)
    for j in range(3):
        expected = stats.pearsonr(OBSERVED[:, j], PREDICTED[0, :, j]).confidence_interval(0.8)
        assert_allclose([found["pearson_low"][0, j], found["pearson_high"][0, j]], expected, rtol=1e-10)
    assert found["pearson_effective"][0, 0] == pytest.approx(12)
    assert found["partial_effective"][0, 0] == pytest.approx(11)  # log size costs one
    half = lambda name: np.arctanh(found[f"{name}_high"]) - np.arctanh(found[f"{name}_low"])  # noqa: E731
    rho = found["spearman"][0, 1]
    assert half("spearman")[0, 1] == pytest.approx(2 * stats.norm.ppf(0.9) * np.sqrt((1 + rho**2 / 2) / 9))


def test_partial_correlations_are_those_of_residuals():
    found = correlate(OBSERVED, PREDICTED, SIZES)
    residuals = []
    for y in (OBSERVED[:, 2], PREDICTED[0, :, 2]):
        residuals.append(y - stats.linregress(np.log(SIZES), y).slope * np.log(SIZES))
    assert found["partial"][0, 2] == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-12)


def drawn_unions(sources: int, per_source: int, count: int) -> tuple[dict, dict]:
    units = {f"{s}-{i}": f"s{s}" for s in range(sources) for i in range(per_source)}
    sets = unions.draw([f"s{s}" for s in range(sources)], count, 2, sources - 1, seed=1)
    return {str(i): unions.of_domains(names, units) for i, names in enumerate(sets)}, units


def test_unions_that_share_units_are_fewer_than_they_seem():
    copies, units = drawn_unions(6, 2, 16)
    effective = effective_unions(unions.overlap(copies, units).to_numpy())
    assert 3 < effective < 6  # at most one per source
    apart = {f"u{i}": {f"a{i}": 1.0} for i in range(9)}
    alone = {f"a{i}": f"s{i}" for i in range(9)}
    assert effective_unions(unions.overlap(apart, alone).to_numpy()) == pytest.approx(9)
    same = np.ones((5, 5))
    assert effective_unions(same) == 0
    found = correlate(OBSERVED[:5], PREDICTED[:, :5], SIZES[:5], same)
    assert np.isnan(found["pearson_low"]).all()
    assert np.isfinite(found["pearson"]).all()


@pytest.mark.parametrize(("sources", "per_source", "count"), [(6, 2, 16), (12, 2, 24), (12, 1, 60)])
@pytest.mark.parametrize(("rho", "noise"), [(0.0, 0.01), (0.6, 0.01), (0.95, 0.01), (0.9, 0.3)])
def test_intervals_cover_over_new_units(sources, per_source, count, rho, noise):
    """Each unit and source moves both sides, correlated by rho; training adds `noise` of their variance."""
    copies, units = drawn_unions(sources, per_source, count)
    kernel = unions.overlap(copies, units).to_numpy()
    rng, draws = np.random.default_rng(0), 1500
    root = np.linalg.cholesky(kernel + 1e-9 * np.eye(count))
    x, own = root @ rng.normal(size=(2, count, draws))
    y = rho * x + np.sqrt(1 - rho**2) * own
    between = (np.trace(kernel) - kernel.sum() / count) / (count - 1)
    x, y = (side + np.sqrt(noise * between) * rng.normal(size=side.shape) for side in (x, y))
    found = correlate(x, y[None], np.ones(count), kernel)
    truth = rho / (1 + noise)
    inside = (found["pearson_low"] <= truth) & (truth <= found["pearson_high"])
    assert inside.mean() >= 0.88  # 1,500 draws know it to a point; noise of training only makes it wider
    as_if_apart = correlate(x, y[None], np.ones(count))
    assert ((as_if_apart["pearson_low"] <= truth) & (truth <= as_if_apart["pearson_high"])).mean() < 0.85


def test_nothing_is_left_of_a_proxy_that_only_knows_sizes():
    sizes = -np.log(np.broadcast_to(SIZES[:, None], OBSERVED.shape))
    found = correlate(OBSERVED + sizes, sizes[None], SIZES)
    assert (found["pearson"] > 0).all()
    assert np.isnan(found["partial"]).all()
    alike = correlate(OBSERVED, PREDICTED, np.full(12, 5.0))
    assert_allclose(alike["partial"], alike["pearson"])  # unions of one size


def test_without_variance_there_is_no_correlation():
    found = correlate(OBSERVED, np.full((1, 12, 3), 1 / 3), SIZES)
    assert np.isnan(found["pearson"]).all()
    assert np.isnan(found["spearman"]).all()
    assert np.isnan(found["pearson_low"]).all()


def test_two_unions_are_too_few():
    with pytest.raises(UserError, match="2 unions: a correlation needs at least 3"):
        correlate(OBSERVED[:2], PREDICTED[:, :2], SIZES[:2])


def test_perplexity_of_a_mean_is_the_geometric_mean():
    assert perplexity(np.mean([1.0, 3.0])) == pytest.approx(np.sqrt(np.exp(1) * np.exp(3)))


def test_a_table_joins_by_union_and_averages_domains_before_the_exponential():
    names = [f"union-{i}" for i in range(12)]
    sizes = dict(zip(names, SIZES, strict=True))
    rows = {"seq": OBSERVED, "merged": PREDICTED[0]}
    losses = pd.concat([pd.DataFrame(values, names, list("abc")).assign(model=name) for name, values in rows.items()])
    found = table(losses.sample(frac=1, random_state=0), {"inside": ["a", "b"], "outside": ["c"], "none": []}, sizes)
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
