import numpy as np
import pytest

from mde.errors import UserError
from mde.optimization import simplex
from mde.regression import estimators
from mde.regression.uncertainty import bootstrap_optima

CANDIDATES = np.vstack([simplex.corners(3), simplex.space_filling(512, 3, seed=0)])
OBJECTIVE = np.array([0.5, 0.5])
SLOPES = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 1.0]])  # objective by corner: 1.5, 2, 2


def bootstrap(noise=0.0, n=50, seed=0, rows=20, regressor="ridge"):
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet(np.ones(3), rows)
    observed = mixtures @ SLOPES + noise * rng.normal(size=(rows, 2))
    return bootstrap_optima(mixtures, observed, CANDIDATES, CANDIDATES, estimators.make(regressor), OBJECTIVE, n, 1)


def test_without_noise_every_refit_agrees():
    found = bootstrap()
    assert (found.best == 0).all()
    np.testing.assert_array_equal(found.share_interval(), [[1, 0, 0]] * 2)
    np.testing.assert_allclose(found.objective_interval(0), [1.5, 1.5], atol=1e-3)


def test_noise_widens_the_intervals():
    quiet, loud = bootstrap(noise=0.05), bootstrap(noise=0.5)
    width = [np.diff(found.objective_interval(0))[0] for found in (quiet, loud)]
    assert 0 < width[0] < width[1]
    assert np.diff(loud.share_interval(0.9), axis=0).max() >= np.diff(loud.share_interval(0.5), axis=0).max()


def test_the_interval_of_a_prediction_covers_the_truth_about_as_often_as_it_says():
    hits = [bool(np.prod(bootstrap(0.2, 40, seed).objective_interval(10) - CANDIDATES[10] @ SLOPES @ OBJECTIVE) < 0)
            for seed in range(100)]  # fmt: skip
    # 90 expected of 100; a bootstrap of 20 rows is known to be a little narrow, and the binomial's own error is 3.
    assert 75 <= sum(hits) <= 98


def test_fewer_observations_than_domains_are_no_obstacle():
    found = bootstrap(noise=0.1, rows=3)
    assert np.isfinite(found.objectives).all()


@pytest.mark.parametrize("regressor", ["ridge", "gbm", "mean"])
def test_the_seed_decides(regressor):
    first, again = (bootstrap(0.2, 3, regressor=regressor) for _ in range(2))
    np.testing.assert_array_equal(first.objectives, again.objectives)
    assert first.objectives.shape == (3, len(CANDIDATES))
    assert (first.objectives[0] != first.objectives[1]).any()


def test_tables_that_do_not_agree_are_refused():
    ridge, table = estimators.make("ridge"), np.ones((4, 2))
    with pytest.raises(UserError, match="4 rows of features for 3 observations"):
        bootstrap_optima(table, table[:3], CANDIDATES, CANDIDATES, ridge, OBJECTIVE)
    with pytest.raises(UserError, match="objective of shape"):
        bootstrap_optima(table, table, CANDIDATES, CANDIDATES, ridge, np.ones(3))
    with pytest.raises(UserError, match="0 bootstrap refits"):
        bootstrap(n=0)
    with pytest.raises(UserError, match="interval level"):
        bootstrap(n=2).share_interval(90)
