import subprocess
import sys

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mde.errors import UserError
from mde.regression import estimators, ridge
from mde.regression.features import assemble

NAMES = sorted(estimators.REGRESSORS)
OWN_ONLY = ("alone", "ridge-residual", "gbm-residual", "gp-residual", "bimix", "power-law")
TABULAR = [name for name in NAMES if name not in OWN_ONLY]


@pytest.fixture
def swarm():
    """16 mixtures of 6 domains, an evaluator's losses on 4, and observed losses near them."""
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(6), 16)
    losses = 3 - np.log(0.05 + mixtures @ rng.dirichlet(np.ones(6), 4).T)
    observed = 0.3 + 0.8 * losses - 0.1 * mixtures[:, :4] + 0.01 * rng.normal(size=(16, 4))
    return mixtures, losses, observed


def sklearn_ridge():
    return make_pipeline(StandardScaler(), RidgeCV(ridge.ALPHAS, alpha_per_target=True))


@pytest.mark.parametrize("features", ["lambda", "log", "all:mde+log"])
def test_ridge_is_the_scikit_learn_pipeline(swarm, features):
    mixtures, losses, observed = swarm
    design = assemble(features, mixtures, {"mde": losses})
    ours, theirs = estimators.Ridge().fit(design, observed), sklearn_ridge().fit(design, observed)
    np.testing.assert_array_equal(ours.alpha_, theirs[-1].alpha_)
    # The smallest penalty, 1e-4 on 16 standardised rows, makes a condition number of about 1e5: 1e-16 * 1e5.
    np.testing.assert_allclose(ours.predict(design), theirs.predict(design), atol=1e-10)


@pytest.mark.parametrize("name", ["ridge", "gbm"])
def test_own_features_are_one_model_a_target(swarm, name):
    mixtures, losses, observed = swarm
    design = assemble("mde+log", mixtures, {"mde": losses})
    together = estimators.make(name).fit(design, observed).predict(design)
    for j in range(4):
        apart = estimators.make(name).fit(design[:, j], observed[:, [j]]).predict(design[:, j])
        np.testing.assert_allclose(together[:, [j]], apart, atol=1e-12)


def test_ridge_recovers_a_line():
    x = np.array([[0.0], [1.0], [2.0], [4.0]])
    y = np.hstack([2 + 3 * x, 1 - x])
    ridge = estimators.Ridge(alphas=(1e-12,)).fit(x, y)
    np.testing.assert_allclose(ridge.coef_, [[3, -1]], atol=1e-9)
    np.testing.assert_allclose(ridge.intercept_, [2, 1], atol=1e-9)


def test_ridge_takes_constant_and_repeated_features(swarm):
    mixtures, _, observed = swarm
    design = np.hstack([mixtures, mixtures, np.full((16, 1), 0.1)])
    predicted = estimators.Ridge().fit(design, observed).predict(design)
    assert np.isfinite(predicted).all()
    assert np.mean((predicted - observed) ** 2) < np.var(observed, axis=0).mean()


def test_alone_returns_the_evaluators_losses(swarm):
    mixtures, losses, observed = swarm
    design = assemble("mde", mixtures, {"mde": losses})
    np.testing.assert_array_equal(estimators.make("alone").fit(design, observed).predict(design), losses)
    with pytest.raises(UserError, match="exactly one evaluated feature"):
        estimators.make("alone").fit(assemble("mde+log", mixtures, {"mde": losses}), observed)
    with pytest.raises(UserError, match="exactly one evaluated feature"):
        estimators.make("alone").fit(mixtures, observed)


def test_residual_learns_what_the_evaluator_got_wrong(swarm):
    mixtures, losses, observed = swarm
    design = assemble("mde+log", mixtures, {"mde": losses})
    exact = estimators.make("ridge-residual").fit(design, losses)
    np.testing.assert_allclose(exact.predict(design), losses, atol=1e-12)
    correction = estimators.make("ridge").fit(design, observed - losses).predict(design)
    residual = estimators.make("ridge-residual").fit(design, observed)
    np.testing.assert_allclose(residual.predict(design), losses + correction, atol=1e-12)
    with pytest.raises(UserError, match="with an evaluated feature"):
        estimators.make("ridge-residual").fit(mixtures, observed)


def test_mean_is_the_empirical_mean(swarm):
    mixtures, _, observed = swarm
    predicted = estimators.make("mean").fit(mixtures, observed).predict(mixtures[:2])
    np.testing.assert_allclose(predicted, np.tile(observed.mean(axis=0), (2, 1)), atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learn_conventions(swarm, name):
    mixtures, losses, observed = swarm
    design = mixtures if name in TABULAR else assemble("mde", mixtures, {"mde": losses})
    regressor = estimators.make(name)
    assert clone(regressor).get_params(deep=False).keys() == regressor.get_params(deep=False).keys()
    assert clone(estimators.Ridge(alphas=(1.0,))).alphas == (1.0,)
    slow = name == "auto" or name.startswith("gbm")
    folds = cross_val_predict(regressor, design, observed, cv=4 if slow else LeaveOneOut())
    assert folds.shape == observed.shape
    first, second = (clone(regressor).fit(design, observed).predict(design) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_trees_split_a_few_dozen_rows(swarm, capfd):
    mixtures, _, observed = swarm
    predicted = estimators.make("gbm").fit(mixtures, observed).predict(mixtures)
    assert np.mean((predicted - observed) ** 2) < 0.3 * np.var(observed, axis=0).mean()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("features", ["log", "mde+log"])
def test_the_jax_form_of_ridge_is_the_same_function(swarm, features):
    mixtures, losses, observed = swarm
    design = assemble(features, mixtures, {"mde": losses})
    fitted = estimators.Ridge().fit(design, observed)
    with jax.enable_x64():
        found = np.asarray(jax.jit(jax.vmap(fitted.jax_predict()))(design))
    np.testing.assert_allclose(found, fitted.predict(design), atol=1e-12)


def test_unknown_regressors_are_refused():
    with pytest.raises(UserError, match="unknown regressor 'rigde': did you mean 'ridge'"):
        estimators.make("rigde")


@pytest.mark.parametrize("name", ["ridge", "gbm"])
def test_bad_tables_are_refused(swarm, name):
    mixtures, losses, observed = swarm
    regressor = estimators.make(name)
    with pytest.raises(UserError, match="expected finite numbers"):
        regressor.fit(mixtures, np.where(observed == observed.max(), np.nan, observed))
    with pytest.raises(UserError, match="not finite"):
        regressor.fit(mixtures * np.inf, observed)
    with pytest.raises(UserError, match="R at least 2"):
        regressor.fit(mixtures[:1], observed[:1])
    with pytest.raises(UserError, match="16 rows of features but 15"):
        regressor.fit(mixtures, observed[:15])
    with pytest.raises(UserError, match="for 3 targets"):
        regressor.fit(assemble("mde", mixtures, {"mde": losses}), observed[:, :3])
    with pytest.raises(UserError, match=r"expected rows of shape \(6,\)"):
        regressor.fit(mixtures, observed).predict(mixtures[:, :5])


def test_lightgbm_is_imported_only_by_those_who_boost():
    code = "import sys, mde.regression.cross_validation; sys.exit('lightgbm' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
