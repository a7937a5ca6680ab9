"""Regressors from features of mixtures to losses, as scikit-learn estimators.

Every regressor takes a design X (`mde.regression.designs`) and observed losses y [R, J] (nats per token) and predicts
losses [C, J].
"""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.dummy import DummyRegressor
from sklearn.utils.validation import check_is_fitted

from mde.errors import UserError, unknown
from mde.regression.auto import Auto
from mde.regression.designs import check_fit, check_predict, own
from mde.regression.features import evaluated_parts
from mde.regression.gaussian_process import GaussianProcess
from mde.regression.laws import BiMix, MixingLaw, PowerLaw

ALPHAS = tuple(np.logspace(-4, 4, 33))


class Ridge(RegressorMixin, BaseEstimator):
    """Linear regression on standardised features, each target with the penalty of least leave-one-out error.

    The same model as scikit-learn's `StandardScaler` before `RidgeCV(alphas, alpha_per_target=True)`, for both shapes
    of a design and from a single (batched) SVD, which makes hundreds of fits on a few rows a matter of a second.
    Leave-one-out errors come in closed form, residual / (1 - leverage), so no target row is used to judge itself.

    Args:
      alphas: the penalties to choose from, in units of standardised features.
    """

    def __init__(self, alphas: tuple[float, ...] = ALPHAS):
        self.alphas = alphas

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `coef_` [F, J] and `intercept_` [J] in the features' own units, and `alpha_` [J]."""
        design, losses = check_fit(X, y)
        # One group of targets when they share their features, one group a target otherwise: [G, R, F] and [G, R, M].
        shared = design.ndim == 2
        x_GRF = design[None] if shared else design.transpose(1, 0, 2)
        y_GRM = losses[None] if shared else losses.T[:, :, None]

        mean_G1F, scale_G1F = x_GRF.mean(axis=1, keepdims=True), x_GRF.std(axis=1, keepdims=True)
        scale_G1F = np.where(scale_G1F > 1e-12 * np.abs(mean_G1F), scale_G1F, 1.0)  # a constant feature stays zero
        offset_G1M = y_GRM.mean(axis=1, keepdims=True)
        target_GRM = y_GRM - offset_G1M
        u_GRS, s_GS, vt_GSF = np.linalg.svd((x_GRF - mean_G1F) / scale_G1F, full_matrices=False)
        rotated_GSM = u_GRS.transpose(0, 2, 1) @ target_GRM

        alphas = np.asarray(self.alphas, dtype=np.float64)
        shrink_AGS = s_GS**2 / (s_GS**2 + alphas[:, None, None])
        residual_AGRM = target_GRM - u_GRS @ (shrink_AGS[..., None] * rotated_GSM)
        leverage_AGR = 1 / len(losses) + np.einsum("grs,ags->agr", u_GRS**2, shrink_AGS)
        error_AGM = np.mean((residual_AGRM / (1 - leverage_AGR)[..., None]) ** 2, axis=2)
        alpha_GM = alphas[np.argmin(error_AGM, axis=0)]

        inverse_GSM = s_GS[..., None] / (s_GS[..., None] ** 2 + alpha_GM[:, None, :])
        coef_GFM = vt_GSF.transpose(0, 2, 1) @ (inverse_GSM * rotated_GSM) / scale_G1F.transpose(0, 2, 1)
        intercept_GM = (offset_G1M - mean_G1F @ coef_GFM)[:, 0]
        self.coef_ = coef_GFM[0] if shared else coef_GFM[:, :, 0].T
        self.intercept_, self.alpha_ = intercept_GM.ravel(), alpha_GM.ravel()
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        if design.ndim == 2:
            return design @ self.coef_ + self.intercept_
        return np.einsum("cjf,fj->cj", design, self.coef_) + self.intercept_

    def jax_predict(self) -> Callable[[Any], Any]:
        """A pure JAX function from one design, [F] or [J, F], to its losses [J]: traceable and differentiable."""
        import jax.numpy as jnp

        check_is_fitted(self)
        coef_FJ, intercept_J = self.coef_, self.intercept_
        if len(self.design_shape_) == 1:
            return lambda design: design @ coef_FJ + intercept_J
        return lambda design: jnp.einsum("jf,fj->j", design, coef_FJ) + intercept_J


class GradientBoosting(RegressorMixin, BaseEstimator):
    """LightGBM regression trees, one model a target; silent, one thread, the same every time.

    The defaults are for a few dozen rows, where LightGBM's own (leaves of 20 rows) would not split at all.

    Args:
      n_estimators: number of trees.
      learning_rate: how much of each tree counts.
      num_leaves: leaves a tree at most.
      min_child_samples: rows a leaf at least.
      min_data_in_bin: rows a histogram bin at least; 1 lets a split fall between any two rows.
    """

    def __init__(
        self,
        n_estimators: int = 100,
        learning_rate: float = 0.05,
        num_leaves: int = 4,
        min_child_samples: int = 2,
        min_data_in_bin: int = 1,
    ):
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_child_samples = min_child_samples
        self.min_data_in_bin = min_data_in_bin

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `boosters_`, one a target."""
        import lightgbm  # half a second that only those who boost should pay

        design, losses = check_fit(X, y)
        settings = self.get_params() | {
            "objective": "regression",
            "verbosity": -1,
            "num_threads": 1,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
        }
        rounds = settings.pop("n_estimators")
        self.boosters_ = [
            lightgbm.train(settings, lightgbm.Dataset(own(design, j), losses[:, j]), rounds)
            for j in range(losses.shape[1])
        ]
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        return np.stack([b.predict(own(design, j), num_threads=1) for j, b in enumerate(self.boosters_)], axis=1)


class Alone(RegressorMixin, BaseEstimator):
    """The evaluator's own losses as the prediction, nothing fitted: "MDE alone" of arXiv 2502.15950, table 1.

    Its design is a single evaluated feature, [R, J, 1].
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Learns nothing but the shape."""
        design, losses = check_fit(X, y)
        if design.shape[1:] != (losses.shape[1], 1):
            raise UserError(f"regressor 'alone' takes exactly one evaluated feature, not a design {design.shape}")
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        return check_predict(X, self.design_shape_)[:, :, 0].copy()


class Residual(RegressorMixin, BaseEstimator):
    """Learns what the evaluator got wrong: observed losses minus the first evaluated feature.

    The design is [R, J, F], whose first feature is the first evaluated one (nats per token) that was named.

    Args:
      regressor: what learns the difference, from all features of the design.
    """

    def __init__(self, regressor: BaseEstimator):
        self.regressor = regressor

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `regressor_`, a clone of `regressor`."""
        design, losses = check_fit(X, y)
        if design.ndim != 3:
            raise UserError("a residual regressor takes a feature set with an evaluated feature, a design [R, J, F]")
        self.regressor_ = clone(self.regressor).fit(design, losses - design[:, :, 0])
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        return self.regressor_.predict(design) + design[:, :, 0]


REGRESSORS: dict[str, Callable[[], Any]] = {
    "mean": DummyRegressor,
    "alone": Alone,
    "ridge": Ridge,
    "ridge-residual": lambda: Residual(Ridge()),
    "gbm": GradientBoosting,
    "gbm-residual": lambda: Residual(GradientBoosting()),
    # RegMix (arXiv 2407.01492): 1000 trees, rate 0.01, LightGBM's defaults otherwise. It needs 40 rows for its first
    # split into two leaves of 20, and predicts a constant with fewer.
    "gbm-regmix": lambda: GradientBoosting(1000, 0.01, num_leaves=31, min_child_samples=20, min_data_in_bin=3),
    "gp": GaussianProcess,
    "gp-residual": lambda: Residual(GaussianProcess()),
    "mixing-law": MixingLaw,
    "log-linear": lambda: MixingLaw(huber=0.02),
    "bimix": BiMix,
    "power-law": PowerLaw,
    "auto": Auto,
}


def make(name: str, features: str = "") -> Any:
    """An unfitted regressor by its name in `REGRESSORS`.

    Args:
      name: of the regressor.
      features: the feature set it will be given; `auto` must know it, and takes evaluated features and then `lambda`.

    Raises:
      UserError: no such regressor; names the nearest. A feature set that `auto` cannot take.
    """
    if name not in REGRESSORS:
        raise unknown("regressor", name, REGRESSORS)
    if name != "auto":
        return REGRESSORS[name]()
    evaluated = evaluated_parts(features) if features else []
    if features and features != "+".join([*evaluated, "lambda"]):
        raise UserError(f"regressor 'auto' on {features!r}: expected evaluated features and then lambda")
    return Auto(evaluated)
