"""Ridge regression, for designs of both shapes, with its penalties chosen in closed form."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from mde.regression.designs import check_fit, check_predict

ALPHAS = tuple(np.logspace(-4, 4, 33))


class Ridge(RegressorMixin, BaseEstimator):
    """Linear regression on standardised features, each target with the penalty of least leave-one-out error.

    The same model as scikit-learn's `StandardScaler` before `RidgeCV(alphas, alpha_per_target=True)`, for both shapes
    of a design and from a single (batched) SVD, which makes hundreds of fits on a few rows a matter of a second.
    Leave-one-out errors come in closed form, residual / (1 - leverage), so no row is used to predict itself.

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
