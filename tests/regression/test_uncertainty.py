import numpy as np
import pytest
from scipy.stats import norm, t

from mde.errors import UserError
from mde.optimization import simplex
from mde.regression import estimators, uncertainty
from mde.regression.uncertainty import half_sample_refits, objective_deviation, objective_intervals

CANDIDATES = np.vstack([simplex.corners(3), simplex.space_filling(512, 3, seed=0)])
OBJECTIVE = np.array([0.5, 0.5])
SLOPES = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 1.0]])  # objective by corner: 1.5, 2, 2


def swarm(noise=0.0, seed=0, rows=20):
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet(np.ones(3), rows)
    return mixtures, mixtures @ SLOPES + noise * rng.normal(size=(rows, 2))


def optima(noise=0.0, n=50, regressor="ridge", rows=20):
    mixtures, observed = swarm(noise, rows=rows)
    refits = half_sample_refits(mixtures, observed, estimators.make(regressor), n, 1)
    return np.array([average(one, CANDIDATES).argmin() for one in refits])


def average(fitted, design):
    return fitted.predict(design) @ OBJECTIVE


def test_without_noise_every_half_agrees():
    assert (optima() == 0).all()


def test_noise_makes_halves_disagree():
    assert len(set(optima(noise=0.5))) > 2


@pytest.mark.parametrize(("regressor", "n"), [("ridge", 3), ("gbm", 3), ("mean", 3), ("gp", 12)])
def test_the_seed_decides(regressor, n):
    first, again = optima(0.2, n, regressor), optima(0.2, n, regressor)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (n,)


def test_expensive_regressors_are_given_fewer_halves(monkeypatch):
    monkeypatch.setattr(uncertainty, "BUDGET", 1e3)
    assert len(optima(0.2, 40, "gp")) == 10
    assert len(optima(0.2, 40, "ridge")) == 40


@pytest.mark.parametrize(("regressor", "rows"), [("ridge", 12), ("ridge", 40), ("gp", 20), ("auto", 20)])
def test_intervals_hold_new_runs_about_as_often_as_they_say(regressor, rows):
    inside = []
    for seed in range(40 if regressor == "ridge" else 15):
        mixtures, observed = swarm(0.1, seed, rows + 10)
        truth = observed[rows:] @ OBJECTIVE
        low, high = objective_intervals(
            mixtures[:rows], observed[:rows], mixtures[rows:], estimators.make(regressor), OBJECTIVE
        ).T
        inside.append((low < truth) & (truth < high))
    # 90 in 100 expected; ten candidates share their swarm, so a few dozen swarms vary by some points.
    assert 0.83 <= np.mean(inside) <= 0.98


def test_what_the_regressor_gets_wrong_is_in_the_interval():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 1))
    curved = np.hstack([x**2, x**2])  # ridge is a line here, whatever it is given
    low, high = objective_intervals(x[:40], curved[:40], x[40:], estimators.Ridge(), OBJECTIVE).T
    assert np.mean((low < x[40:, 0] ** 2) & (x[40:, 0] ** 2 < high)) >= 0.8


def test_the_interval_of_a_mean_by_hand():
    """Each row left out, the mean of the other nine; of ten sums and differences CV+ takes the ninth and the second.

    By Barber et al. (2021), equation 11: ⌈.8 · 11⌉ = 9th least of the sums, and 9th greatest of the differences.
    """
    observed = np.repeat(np.array([0, 1, 2, 4, 7, 11, 16, 22, 29, 37.0])[:, None], 2, axis=1)
    design = np.arange(10.0)[:, None]
    found = objective_intervals(design, observed, design[:1], estimators.make("mean"), OBJECTIVE, level=0.8)
    others = (observed[:, 0].sum() - observed[:, 0]) / 9
    residual = np.abs(observed[:, 0] - others)
    np.testing.assert_allclose(found[0], [np.sort(others - residual)[1], np.sort(others + residual)[8]])


def test_a_single_evaluation_domain_has_intervals_with_every_constant():
    design = np.arange(8.0)[:, None]
    found = objective_intervals(design, design**2, design[:3], estimators.make("mean"), np.ones(1))
    assert found.shape == (3, 2)


def test_noise_and_level_widen_the_intervals():
    mixtures, observed = swarm(0.05)
    louder = swarm(0.5)[1]
    widths = [
        np.diff(objective_intervals(mixtures, y, CANDIDATES[:5], estimators.Ridge(), OBJECTIVE, level)).mean()
        for y, level in ((observed, 0.5), (observed, 0.9), (louder, 0.9))
    ]
    assert 0 < widths[0] < widths[1] < widths[2]


def test_deviation_of_the_objective_by_hand():
    class Knows:
        correlation_ = np.eye(2)

    deviations = np.array([[0.6, 0.8]])
    assert objective_deviation(Knows(), deviations, OBJECTIVE) == pytest.approx(0.5)  # half of hypot(.6, .8)
    assert objective_deviation(None, deviations, OBJECTIVE) == pytest.approx(0.7)  # all errors at once


def test_calibration_of_one_target_by_hand():
    """Of 18 ratios 1 … 18 the .9 quantile, one row more and no belief: .9 · 19 = 17.1, so the 18th."""
    errors = np.arange(1.0, 19)[:, None] * np.tile([[0.1], [-0.1]], (9, 1))
    found = uncertainty.calibration(errors, np.full((18, 1), 0.1), level=0.9, belief=0.0)
    student = t.ppf(0.95, 14) / norm.ppf(0.95)
    np.testing.assert_allclose(found, [18 * student / norm.ppf(0.95)])
    # At level .5 it is 9.5 rows, so the tenth.
    student = t.ppf(0.75, 14) / norm.ppf(0.75)
    found = uncertainty.calibration(errors, np.full((18, 1), 0.1), level=0.5, belief=0.0)
    np.testing.assert_allclose(found, [10 * student / norm.ppf(0.75)])


def test_calibration_takes_all_targets_as_eight_more_rows_by_hand():
    """Ratios 1 and 3 in 8 rows each: 16 rows' worth, of which 8 + 4 at most 1 and .5 · 17 = 8.5 are needed."""
    errors = np.tile([[1.0, 3.0]], (8, 1))
    factor = t.ppf(0.75, 4) / norm.ppf(0.75) ** 2
    np.testing.assert_allclose(uncertainty.calibration(errors, np.ones((8, 2)), level=0.5), [factor, 3 * factor])
    # At level .8 it is 13.6 of 16: more than the first target's 12, and both take the larger ratio.
    factor = t.ppf(0.9, 4) / norm.ppf(0.9) ** 2
    np.testing.assert_allclose(uncertainty.calibration(errors, np.ones((8, 2)), level=0.8), [3 * factor, 3 * factor])


def test_calibration_leaves_out_what_is_not_known():
    rng = np.random.default_rng(0)
    errors, deviation = rng.normal(size=(20, 2)), rng.uniform(1, 2, size=(20, 2))
    without = errors.copy()
    without[[3, 7]] = np.nan
    expected = uncertainty.calibration(np.delete(errors, [3, 7], axis=0), np.delete(deviation, [3, 7], axis=0))
    np.testing.assert_allclose(uncertainty.calibration(without, deviation), expected)
    once = errors.copy()
    once[3, 0] = np.nan  # in one target only: the other has its own quantile of 20 rows and the same shared ones
    assert np.isfinite(uncertainty.calibration(once, deviation)).all()
    outlying = errors.copy()
    outlying[3, 0] = 100
    assert uncertainty.calibration(once, deviation)[0] < uncertainty.calibration(outlying, deviation)[0]


def test_calibration_takes_replicates_as_one_row():
    rng = np.random.default_rng(0)
    errors, deviation = rng.normal(size=(10, 2)), rng.uniform(1, 2, size=(10, 2))
    repeated = uncertainty.calibration(errors.repeat(4, axis=0), deviation.repeat(4, axis=0), np.full(40, 0.25))
    np.testing.assert_allclose(repeated, uncertainty.calibration(errors, deviation))


def test_calibration_makes_intervals_of_each_target_hold_as_many_as_they_say():
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(4000, 3)) * [0.1, 1, 10]
    found = uncertainty.calibration(errors[:2000], np.ones((2000, 3)))
    np.testing.assert_allclose(found, [0.1, 1, 10], rtol=0.1)
    np.testing.assert_allclose(np.mean(abs(errors[2000:]) < norm.ppf(0.95) * found, axis=0), 0.9, atol=0.02)


def test_calibration_of_few_rows_holds_new_rows_on_the_average():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        errors = rng.normal(size=(13, 4))
        factor = uncertainty.calibration(errors[:12], np.ones((12, 4)))
        inside.append(abs(errors[12]) < norm.ppf(0.95) * factor)
    assert 0.88 < np.mean(inside) < 0.97  # 1200 of them vary by one point


def test_calibration_of_errors_that_are_zero_is_positive_and_does_not_depend_on_the_unit():
    assert uncertainty.calibration(np.zeros((10, 2)), np.zeros((10, 2))).min() > 0
    errors = np.random.default_rng(0).normal(size=(20, 3))
    once, again = (uncertainty.calibration(errors * unit, np.full((20, 3), unit)) for unit in (1.0, 1e-5))
    np.testing.assert_allclose(once, again)


def test_correlations_are_shrunk_to_independence():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 1))
    found = uncertainty.shrunk_correlation(np.hstack([one, one, rng.normal(size=(500, 1))]))
    np.testing.assert_allclose(np.diagonal(found), 1)
    assert 0.97 < found[0, 1] < 1
    assert abs(found[0, 2]) < 0.1
    assert uncertainty.shrunk_correlation(np.ones((2, 2)))[0, 1] == pytest.approx(0.2)  # 2 rows against 8


def test_tables_that_do_not_agree_are_refused():
    ridge, table = estimators.make("ridge"), np.random.default_rng(0).dirichlet(np.ones(2), 8)
    with pytest.raises(UserError, match="8 rows of features for 7 proxy runs"):
        half_sample_refits(table, table[:7], ridge)
    with pytest.raises(UserError, match="objective of shape"):
        objective_intervals(table, table, table, ridge, np.ones(3))
    with pytest.raises(UserError, match="0 refits"):
        optima(n=0)
    with pytest.raises(UserError, match="interval level"):
        objective_intervals(table, table, table, ridge, OBJECTIVE, level=90)
    with pytest.raises(UserError, match="5 proxy runs: expected at least 6 mixtures"):
        optima(rows=5)


class Rows(estimators.Ridge):
    """Ridge that keeps the design it was fitted on."""

    def fit(self, X, y):
        self.design_ = X
        return super().fit(X, y)


def replicated():
    mixtures, observed = swarm(0.1, rows=12)
    return np.repeat(mixtures, 3, axis=0), np.repeat(observed, 3, axis=0) + np.tile([[0.0], [0.1], [-0.1]], (12, 1))


def test_half_samples_never_split_the_replicates_of_a_mixture():
    design, observed = replicated()
    for refit in half_sample_refits(design, observed, Rows(), 20, 0):
        _, copies = np.unique(refit.design_, axis=0, return_counts=True)
        assert copies.tolist() == [3] * 6


def test_intervals_of_new_mixtures_are_not_those_of_new_seeds():
    """A regressor that knows each mixture by heart has the noise of a seed as its error, and new ones are far off."""

    class Nearest(estimators.Ridge):
        def fit(self, X, y):
            self.kept_ = X, y
            return self

        def predict(self, X):
            rows, losses = self.kept_
            return np.stack(
                [
                    losses[(abs(rows - x).sum(axis=1) < 1e-9)].mean(axis=0)
                    if (abs(rows - x).sum(axis=1) < 1e-9).any()
                    else np.full(2, 9.0)
                    for x in X
                ]
            )

    design, observed = replicated()
    low, high = objective_intervals(design, observed, design[:2], Nearest(), OBJECTIVE).T
    assert (high - low > 5).all()


def test_too_few_mixtures_are_not_accepted_however_many_runs():
    design, observed = replicated()
    with pytest.raises(UserError, match="15 proxy runs of 5 mixtures: expected at least 6"):
        half_sample_refits(design[:15], observed[:15], Rows(), 5, 0)
