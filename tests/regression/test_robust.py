import numpy as np
import pytest

from mde.regression.groups import group_folds
from mde.regression.robust import DEVIATIONS, clipped, find_outliers, robust_spread


def test_the_robust_spread_by_hand():
    """Median 3, absolute deviations 2, 1, 0, 1, 97: median 1, over .6745."""
    values = np.array([[1.0, 0, np.nan], [2, 0, np.nan], [3, 0, np.nan], [4, 0, np.nan], [100, 7, np.nan]])
    np.testing.assert_allclose(robust_spread(values), [1 / 0.6745, 0, 0])
    np.testing.assert_allclose(robust_spread(values, centred=False), [3 / 0.6745, 0, 0])
    normal = np.random.default_rng(0).normal(size=(100_000, 1))
    np.testing.assert_allclose(robust_spread(normal), 1, atol=0.02)


def residuals():
    """Sixteen residuals of one robust deviation, in two targets: an outlier needs 8 (1 + 8 / 16) = 12 of them."""
    return np.tile(np.array([[0.6745], [-0.6745]]), (8, 2))


def test_an_outlier_is_far_in_deviations_of_the_errors_by_hand():
    off = residuals()
    off[3, 1], off[5, 0], off[6, 0] = 11.9, -30.0, 12.1
    found = find_outliers(off, np.ones(2))
    assert [(one.row, one.target) for one in found] == [(5, 0), (6, 0)]  # the farthest first
    np.testing.assert_allclose([one.deviations for one in found], [-30, 12.1])


def test_an_outlier_is_far_in_the_spread_of_its_target_as_well():
    off = residuals()
    off[3] = 20
    assert [one.target for one in find_outliers(off, np.array([9.9, 10.1]))] == [0]


def test_a_run_that_was_expected_to_be_off_is_not_an_outlier():
    off, expected = residuals(), np.ones((16, 2))
    off[3] = 20
    expected[3, 1] = 2
    assert [(one.row, one.target) for one in find_outliers(off, np.ones(2), expected)] == [(3, 0)]


def test_residuals_that_are_unknown_or_all_zero_are_no_outliers():
    off = residuals()
    off[:, 0] = np.nan
    off[:, 1] = 0
    assert find_outliers(off, np.ones(2)) == []


def test_normal_errors_have_no_outliers_however_few():
    rng = np.random.default_rng(0)
    for rows in (8, 16, 64):
        off = rng.normal(size=(rows, 2000))
        assert len(find_outliers(off, np.zeros(2000))) <= 2000 * rows * 1e-3 / rows  # one target in a thousand


def test_outliers_do_not_depend_on_the_unit():
    rng = np.random.default_rng(0)
    off = rng.normal(size=(20, 3))
    off[4, 2] = 50
    for factor in (1e-6, 1, 1e6):
        (found,) = find_outliers(off * factor, np.ones(3) * factor)
        assert (found.row, found.target) == (4, 2)


def linear(noise=0.01):
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (24, 3))
    return features, features @ rng.normal(size=(3, 4)) + noise * rng.normal(size=(24, 4))


@pytest.mark.parametrize("size", [-6.0, 20.0, 1e6])
@pytest.mark.parametrize("row", [0, 11])
def test_a_wild_loss_is_replaced_by_what_the_others_predict(size, row):
    """Six spreads are enough: the outlier widens the errors of all others, but does not hide in them."""
    features, losses = linear()
    broken = losses.copy()
    broken[row, 2] += size * robust_spread(losses)[2]
    cleaned = clipped(features, broken, group_folds(np.arange(24), 4, 0))
    np.testing.assert_allclose(cleaned[row, 2], losses[row, 2], atol=0.1)
    changed = cleaned != broken
    changed[row, 2] = False
    assert not changed.any()


def test_losses_on_a_plane_stay_as_they_are():
    features, losses = linear(noise=0.3)
    np.testing.assert_array_equal(clipped(features, losses, group_folds(np.arange(24), 4, 0)), losses)
    constant = np.full((24, 2), 3.0)
    np.testing.assert_array_equal(clipped(features, constant, group_folds(np.arange(24), 4, 0)), constant)


def test_more_deviations_are_needed_of_few_runs():
    """Nine deviations are enough among 80 runs, which need 8.8, and not among 40, which need 9.6."""
    for rows, expected in ((80, 1), (40, 0)):
        off = np.tile(np.array([[0.6745], [-0.6745]]), (rows // 2, 1))
        off[0] = 9
        assert DEVIATIONS == 8
        assert len(find_outliers(off, np.ones(1))) == expected
