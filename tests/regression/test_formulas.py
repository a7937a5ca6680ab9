"""Fitted regressors written as formulas say what `predict` says."""

import numpy as np
import pytest

from mde.regression import estimators, formulas
from mde.regression.features import assemble


@pytest.mark.parametrize(
    ("regressor", "features"),
    [
        ("mixing-law", "lambda"),
        ("log-linear", "lambda"),
        ("ridge", "lambda"),
        ("ridge", "sqrt"),
        ("ridge", "log+lambda"),
    ],
)
def test_a_formula_is_what_the_regressor_predicts(regressor, features):
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(4), 30)
    losses = 2 + np.exp(-mixtures @ rng.uniform(0, 2, (4, 3))) + 0.01 * rng.normal(size=(30, 3))
    fitted = estimators.make(regressor, features).fit(assemble(features, mixtures, {}), losses)
    new = np.vstack([rng.dirichlet(np.ones(4), 50), np.eye(4)])
    expected = fitted.predict(assemble(features, new, {}))
    written = formulas.formula(fitted, features)
    np.testing.assert_allclose(written.functions(new), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(written.average(np.array([0.5, 0.5, 0.0]))(new), expected[:, :2].mean(axis=1), atol=1e-9)


def test_what_is_not_written_as_a_formula_has_none():
    rng = np.random.default_rng(0)
    mixtures, losses = rng.dirichlet(np.ones(4), 30), rng.normal(size=(30, 3))
    for regressor, features in (("ridge", "cbrt"), ("gp", "lambda"), ("gbm", "lambda")):
        fitted = estimators.make(regressor, features).fit(assemble(features, mixtures, {}), losses)
        assert formulas.formula(fitted, features) is None
