import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from mde.ablation import subsets
from mde.errors import UserError


def table(n: int, domains: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2**n, domains))


def looked_up(losses: np.ndarray):
    return lambda rows: losses[(rows << np.arange(rows.shape[1])).sum(axis=1)]


def by_definition(losses: np.ndarray, n: int) -> np.ndarray:
    """The mean gain of every unit over all n! orders."""
    totals = np.zeros((n, losses.shape[1]))
    for order in itertools.permutations(range(n)):
        row = 0
        for unit in order:
            totals[unit] += losses[row] - losses[row | 1 << unit]
            row |= 1 << unit
    return totals / math.factorial(n)


def test_every_subset_is_listed_once_by_its_bits():
    assert_array_equal(subsets.every(2), [[False, False], [True, False], [False, True], [True, True]])
    rows = subsets.every(5)
    assert len({row.tobytes() for row in rows}) == 32
    with pytest.raises(UserError, match="21 units have 2\\^21 subsets"):
        subsets.every(21)


def test_averages_weigh_members_alike_and_the_empty_subset_has_no_weight():
    assert_array_equal(subsets.averages(subsets.every(2)), [[0, 0], [1, 0], [0, 1], [0.5, 0.5]])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_exact_values_are_means_over_all_orders(n):
    losses = table(n)
    assert_allclose(subsets.shapley(losses).values, by_definition(losses, n), atol=1e-12)  # float64 rounding


@given(n=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_values_share_out_the_whole_gain(n, seed):
    losses = table(n, seed=seed)
    assert_allclose(subsets.shapley(losses).values.sum(axis=0), losses[0] - losses[-1], atol=1e-10)


def test_a_unit_that_changes_nothing_is_worth_nothing_and_twins_are_worth_the_same():
    rows = subsets.every(4).astype(float)
    losses = np.exp(-rows[:, :1] * rows[:, 1:2] - rows[:, 2:3])  # 0 and 1 are twins, 3 is in nothing
    values = subsets.shapley(losses).values[:, 0]
    assert values[3] == pytest.approx(0, abs=1e-15)
    assert values[0] == pytest.approx(values[1])
    assert values[2] > values[0] > 0


def test_sampled_values_lie_within_their_errors_of_the_exact_ones():
    n, losses = 8, table(8, domains=40)
    exact = subsets.shapley(losses).values
    found = subsets.sampled_shapley(looked_up(losses), n, permutations=400, seed=1)
    scores = (found.values - exact) / found.errors
    assert 0.8 < np.sqrt((scores**2).mean()) < 1.2  # 320 standardised errors: their mean square is 1 ± .08
    assert np.abs(scores).max() < 4.5
    assert_allclose(found.values.sum(axis=0), losses[0] - losses[-1], atol=1e-10)


def test_sampling_is_exact_where_units_do_not_interact():
    rows = subsets.every(5)
    losses = -(rows @ np.arange(5.0))[:, None]
    found = subsets.sampled_shapley(looked_up(losses), 5, permutations=10)
    assert_allclose(found.values[:, 0], np.arange(5), atol=1e-12)
    assert_allclose(found.errors, 0, atol=1e-12)
    assert np.isnan(subsets.sampled_shapley(looked_up(losses), 5, permutations=9).errors).all()  # too few to know
    with pytest.raises(UserError, match="at least 2"):
        subsets.sampled_shapley(looked_up(losses), 5, permutations=1)


def test_subsets_are_asked_for_once():
    asked = []

    def losses(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return rows.sum(axis=1, keepdims=True).astype(float)

    remembered = subsets.Remembered(losses)
    rows = subsets.every(3)
    assert_array_equal(remembered(rows[[1, 3, 3, 7]])[:, 0], [1, 2, 2, 3])
    assert_array_equal(remembered(rows)[:, 0], rows.sum(axis=1))
    assert asked == [3, 5]
    known, losses_of_known = remembered.known(3)
    assert_array_equal(known[:3], rows[[1, 3, 7]])
    assert_array_equal(losses_of_known[:, 0], known.sum(axis=1))
    assert len(known) == 8


def test_additions_take_the_best_next_unit():
    losses = lambda rows: -(rows @ np.array([1.0, 3.0, 2.0]))  # noqa: E731
    assert subsets.additions(losses, np.array([False, False, False])) == ([1, 2, 0], [-3, -5, -6])
    assert subsets.additions(losses, np.array([False, True, True])) == ([0], [-6])


def test_exact_values_need_all_subsets():
    with pytest.raises(UserError, match="losses of 3 subsets"):
        subsets.shapley(np.zeros((3, 1)))
