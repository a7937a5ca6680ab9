"""Mixtures with common seeds: differences, and what seeds move all of them by."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from mde.regression import blocks


def table(values) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[f"m{i}" for i in range(np.shape(values)[1])])


def test_two_mixtures_have_the_paired_t_test():
    losses = np.array([[2.00, 2.15], [2.10, 2.12], [2.05, 2.14]])
    found = blocks.compare(table(losses), "m0")
    gaps = losses[:, 1] - losses[:, 0]
    assert found.loc["m1", "error"] == pytest.approx(gaps.std(ddof=1) / np.sqrt(3))
    statistic = found.loc["m1", "difference"] / found.loc["m1", "error"]
    assert statistic == pytest.approx(ttest_rel(losses[:, 1], losses[:, 0]).statistic)
    assert found["clear"].tolist() == [False, ttest_rel(losses[:, 1], losses[:, 0]).pvalue < 0.05]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.integers(0, 2**16))
def test_what_seeds_add_to_all_mixtures_leaves_differences_as_they_are(shifts, seed):
    losses = np.random.default_rng(seed).normal(3, 0.1, (3, 4))
    before, after = (blocks.compare(table(x), "m1") for x in (losses, losses + np.array(shifts)[:, None]))
    np.testing.assert_allclose(after["difference"], before["difference"], atol=1e-12)
    np.testing.assert_allclose(after["error"], before["error"], atol=1e-12)


def test_one_seed_or_one_mixture_has_no_error():
    one_seed = blocks.compare(table([[2.0, 2.1]]), "m0")
    assert one_seed[["error", "noise"]].isna().all(axis=None)
    assert not one_seed["clear"].any()
    alone = blocks.compare(table([[2.0], [2.1]]), "m0")
    assert alone["difference"].tolist() == [0.0]
    assert np.isnan(alone["error"]).all()


def test_intervals_of_differences_by_hand():
    # Down: 3 below the first and 4 above the second; up: 5 above the first and 12 below the second.
    found = blocks.difference_interval(10.0, [7.0, 15.0], 20.0, [8.0, 24.0])
    np.testing.assert_allclose(found, [-10 - 5, -10 + 13])
    many = blocks.difference_interval([10.0, 20.0], [[7.0, 15.0], [8.0, 24.0]], 20.0, [8.0, 24.0])
    np.testing.assert_allclose(many[0], found)


def test_tokens_to_equal_by_hand():
    # A loss that falls by .2 for twice the tokens needs √2 times as many to lose .1; one that does not fall never does.
    np.testing.assert_allclose(blocks.tokens_to_equal([0.1, 0.0], [0.2, 0.2]), [np.sqrt(2), 1])
    assert np.isnan(blocks.tokens_to_equal([0.1], [-0.1])).all()
    np.testing.assert_allclose(blocks.tokens_to_equal([0.1], [0.2], 3.0), [np.sqrt(3)])
