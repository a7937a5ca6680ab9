"""Designs, the tables that regressors see: shapes, checks, units.

A design has one of two shapes (`mde.regression.features.assemble` makes both):

  [R, F]     all J targets share the F features;
  [R, J, F]  target j has features of its own, `X[:, j]`.

Rows come first, so scikit-learn's `clone`, `cross_val_predict` and their kin work on both shapes.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone

from mde.errors import UserError


def check_fit(X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The design and the losses [R, J] in float64.

    Raises:
      UserError: numbers that are not finite, or shapes that do not fit.
    """
    losses = np.asarray(y, dtype=np.float64)
    if losses.ndim != 2 or len(losses) < 2 or not np.isfinite(losses).all():
        raise UserError(f"observed losses of shape {losses.shape}, expected finite numbers [R, J] with R at least 2")
    design = np.asarray(X, dtype=np.float64)
    if design.ndim == 3 and design.shape[1] != losses.shape[1]:
        raise UserError(f"a design of shape {design.shape} for {losses.shape[1]} targets, expected [R, J, F]")
    design = check_predict(design, design.shape[1:])
    if len(design) != len(losses):
        raise UserError(f"{len(design)} rows of features but {len(losses)} rows of observed losses")
    return design, losses


def check_predict(X: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The design in float64.

    Raises:
      UserError: numbers that are not finite, or rows of another shape than the regressor was fitted on.
    """
    design = np.asarray(X, dtype=np.float64)
    if design.ndim not in (2, 3) or design.shape[1:] != shape:
        raise UserError(f"a design of shape {design.shape}, expected rows of shape {shape}")
    if not np.isfinite(design).all():
        raise UserError("a design with a feature that is not finite")
    return design


def own(design: np.ndarray, j: int) -> np.ndarray:
    """What target j sees, [R, F]."""
    return design if design.ndim == 2 else np.ascontiguousarray(design[:, j])


def by_target(design: np.ndarray, n_targets: int) -> np.ndarray:
    """What every target sees, [J, R, F]."""
    return np.repeat(design[None], n_targets, axis=0) if design.ndim == 2 else design.transpose(1, 0, 2)


def standardisation(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the rows; a constant column has deviation one, so that it becomes zero."""
    mean, deviation = table.mean(axis=0), table.std(axis=0)
    return mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0)


def fit_many(estimator: BaseEstimator, tables: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
    """A fitted clone for each (X, y), in one batch where the estimator has a `fit_many` of its own."""
    if hasattr(estimator, "fit_many"):
        return estimator.fit_many(tables)
    return [clone(estimator).fit(X, y) for X, y in tables]


def work(estimator: Any, rows: int, targets: int) -> float:
    """What a fit costs an expensive estimator, in entries of covariance matrices; nothing to speak of for others."""
    return estimator.work(rows, targets) if hasattr(estimator, "work") else 0.0


def adopt(estimator: BaseEstimator, fitted: BaseEstimator) -> None:
    """Gives an estimator what a fitted clone has learnt; its own parameters stay the very objects they were."""
    vars(estimator).update({name: value for name, value in vars(fitted).items() if name.endswith("_")})


def predict_with_deviation(regressor: Any, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and their standard deviations [C, J], NaN from a regressor that does not know them."""
    if knows_deviation(regressor):
        return regressor.predict(design, return_std=True)
    mean = regressor.predict(design)
    return mean, np.full_like(mean, np.nan)


def knows_deviation(regressor: Any) -> bool:
    """Whether `predict` takes `return_std`."""
    return "return_std" in signature(regressor.predict).parameters
