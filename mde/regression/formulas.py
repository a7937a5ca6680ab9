"""Fitted regressors as formulas of the mixture, for searches that are exact and need no JAX."""

from typing import Any

import numpy as np

from mde.optimization.losses import Formula
from mde.optimization.objectives import Objective
from mde.regression.laws import MixingLaw
from mde.regression.ridge import Ridge

WRITTEN = ("lambda", "sqrt", "log")  # features of which a linear model is a formula


def formula(regressor: Any, features: str) -> Formula | None:
    """The J losses that a fitted regressor predicts, one function each; None if they are not written as a formula.

    Args:
      regressor: fitted.
      features: the feature set that it was fitted on.
    """
    parts = features.split("+")
    if isinstance(regressor, MixingLaw) and features == "lambda":
        exponents_JK = (regressor.exponents_ + np.log(regressor.factor_)).T
        return Formula(regressor.floor_, 0 * exponents_JK, factors=np.eye(len(exponents_JK)), exponents=exponents_JK)
    if isinstance(regressor, Ridge) and set(parts) <= set(WRITTEN):
        slopes = dict(zip(parts, np.split(regressor.coef_, len(parts)), strict=True))  # [K, J] each
        linear, root, log = (slopes.get(part, 0 * slopes[parts[0]]).T for part in WRITTEN)
        return Formula(regressor.intercept_, linear, root, log)
    return None


def under(written: Formula, objective: Objective) -> Formula:
    """The formula of an objective of losses that are a formula: an average of its functions, or the max of some."""
    if not objective.worst:
        return written.average(objective.weights)
    return written.among(objective.weights > 0, 0.0 if objective.reference is None else objective.reference)
