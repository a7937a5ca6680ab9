"""The default regressor: a blend of regressors on several feature sets, weighed by inner cross-validation."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted

from mde.errors import UserError
from mde.regression import designs
from mde.regression.designs import adopt, check_fit, check_predict, fit_many, predict_with_deviation
from mde.regression.features import assemble, traceable
from mde.regression.gaussian_process import GaussianProcess
from mde.regression.laws import MixingLaw
from mde.regression.ridge import Ridge
from mde.regression.uncertainty import shrunk_correlation

Candidate = tuple[BaseEstimator, str]  # an unfitted regressor and the feature set it sees

FOLDS = 4
MANY = 96  # rows from which a process's hyper-parameters hardly hang on a row, and closed-form errors are used
SHRINKAGE = 1.0  # how hard weights are pulled to equality, in units of the best candidate's squared error
DOUBT = 8.0  # rows' worth of belief that the deviations are right before residuals are looked at


class Auto(RegressorMixin, BaseEstimator):
    """Weighs candidates by their errors on rows they were not fitted on; knows what it chose and how sure it is.

    Its design holds the J own columns of each evaluated feature first and then the mixture, as
    `assemble("mde[0]+mde[1]+lambda", ...)` makes it, [R, J, E + K]; with no evaluated feature it is the mixtures, [R,
    K]. The candidates' feature sets are made from it inside, so that cross-validation of an `Auto` is nested.

    The weights are those of least squared out-of-fold error (Breiman, Stacked regressions, 1996), not negative, of sum
    one, the same for all targets, and pulled towards equality, so that candidates which are about as good share about
    equally and only a bad one is left out. Errors are measured in units of each target's standard deviation. Candidates
    are refitted in every inner fold, hyper-parameters and all; from `MANY` rows on, those that know their leave-one-out
    errors without a refit are asked for them instead.

    Args:
      evaluated: names of the E evaluated features, in the order of their columns.
      candidates: pairs (unfitted regressor, feature set); by default Gaussian processes on the cube root and on the
        logarithm of the mixture, on the evaluated features, and on both together, and beside them ridge on evaluated
        features with and without the logarithm. Without evaluated features, processes on the mixture, its cube root and
        its logarithm, and the mixing law if all losses are positive and there are two rows for each of its parameters.
      folds: of the inner cross-validation.
      seed: of its splits.
    """

    calibrated = True  # its deviations have been held against out-of-fold errors

    def __init__(
        self,
        evaluated: Sequence[str] = (),
        candidates: Sequence[Candidate] | None = None,
        folds: int = FOLDS,
        seed: int = 0,
    ):
        self.evaluated = evaluated
        self.candidates = candidates
        self.folds = folds
        self.seed = seed

    def work(self, rows: int, targets: int) -> float:
        """What a fit costs, in the unit of its candidates: each is fitted on all rows, and on fewer than `MANY` on
        those of every inner fold as well.
        """
        folds = [rows, *([rows - rows // self.folds] * self.folds if rows < MANY else [])]
        return sum(designs.work(regressor, part, targets) for regressor, _ in self._candidates(True) for part in folds)

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `regressors_` on all rows, their `weights_`, `inner_error_` and the calibration of deviations."""
        adopt(self, self.fit_many([(X, y)])[0])
        return self

    def fit_many(self, tables: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> list[Self]:
        """A fitted clone for each (X, y); their inner folds are fitted in common batches."""
        checked = [check_fit(X, y) for X, y in tables]
        for design, losses in checked:
            self._check(design.shape, losses)
        laws = [_has_law(design, losses) for design, losses in checked]
        if len(set(laws)) > 1:  # other candidates, so not fitted together
            return [self.fit_many([table])[0] for table in tables]
        candidates = self._candidates(laws[0])
        fitted, deviations, residuals = [], [], []
        for regressor, features in candidates:
            parts = [(self._part(features, design), losses) for design, losses in checked]
            whole = fit_many(regressor, parts)
            left_out = self._left_out(regressor, parts, whole)
            fitted.append(whole)
            residuals.append([residual for residual, _ in left_out])
            deviations.append([deviation for _, deviation in left_out])
        blends = []
        for i, (design, losses) in enumerate(checked):
            blend = clone(self)
            blend.design_shape_ = design.shape[1:]
            blend.chosen_ = tuple(features for _, features in candidates)
            blend.regressors_ = [whole[i] for whole in fitted]
            blend._weigh(
                np.stack([residual[i] for residual in residuals]), np.stack([d[i] for d in deviations]), losses
            )
            blends.append(blend)
        return blends

    def predict(self, X: npt.ArrayLike, return_std: bool = False) -> Any:
        """Losses [C, J], nats per token; with `return_std` also the standard deviation of a new run's losses, [C, J].

        The deviations hold both the candidates' own and their disagreement, and are scaled to the out-of-fold errors.
        """
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        used = [i for i, weight in enumerate(self.weights_) if weight > 0]
        weights = self.weights_[used, None, None]
        parts = [(self.regressors_[i], self._part(self.chosen_[i], design)) for i in used]
        if not return_std:
            return np.sum(weights * np.stack([regressor.predict(part) for regressor, part in parts]), axis=0)
        both = [predict_with_deviation(regressor, part) for regressor, part in parts]
        means, deviations = (np.stack(values) for values in zip(*both, strict=True))
        deviations = np.where(np.isnan(deviations), self.inner_deviation_[used, None], deviations)
        mean = np.sum(weights * means, axis=0)
        return mean, self.calibration_ * _blended(weights, means - mean, deviations)

    def describe(self) -> str:
        """What was chosen, in a line: each candidate's feature set, weight and inner R², the mean over targets."""
        check_is_fitted(self)
        order = np.argsort(-self.weights_, kind="stable")
        parts = [
            f"{type(self.regressors_[i]).__name__}({self.chosen_[i]}) {self.weights_[i]:.0%} "
            f"(inner R² {1 - self.inner_error_[i]:.3f})"
            for i in order
        ]
        return "blend of " + ", ".join(parts)

    def jax_predict(self) -> Any:
        """A pure JAX function from one row of the design, [K] or [J, E + K], to its losses [J].

        Raises:
          UserError: a candidate that has no such form.
        """
        check_is_fitted(self)
        for regressor in self.regressors_:
            if not hasattr(regressor, "jax_predict"):
                raise UserError(f"{type(regressor).__name__} has no form that JAX can differentiate")
        parts = [
            (float(weight), regressor.jax_predict(), traceable(features, self.evaluated))
            for weight, regressor, features in zip(self.weights_, self.regressors_, self.chosen_, strict=True)
            if weight > 0
        ]
        return lambda row: sum(weight * losses(design(row)) for weight, losses, design in parts)

    def _candidates(self, law: bool) -> list[Candidate]:
        if self.candidates is not None:
            return [(regressor, features) for regressor, features in self.candidates]
        if not self.evaluated:
            processes = [(GaussianProcess(), features) for features in ("cbrt", "log", "lambda")]
            return [*processes, (MixingLaw(), "lambda")] if law else processes
        together = "+".join(self.evaluated)
        sets = (f"{together}+cbrt", f"{together}+log", together, "cbrt")
        lines = (f"{self.evaluated[0]}+log", together)  # where a process goes back to its mean, these go on
        return [*((GaussianProcess(), features) for features in sets), *((Ridge(), features) for features in lines)]

    def _check(self, shape: tuple[int, ...], losses: np.ndarray) -> None:
        expected = 3 if self.evaluated else 2
        if len(shape) != expected or shape[-1] <= len(self.evaluated):
            wanted = "own columns of the evaluated features and then the mixture, [R, J, E + K]"
            raise UserError(
                f"a design of shape {shape} for `auto` with {len(self.evaluated)} evaluated features, expected "
                + (wanted if self.evaluated else "mixtures, [R, K]")
            )
        if self.folds < 2 or len(losses) < 3:
            raise UserError(f"{len(losses)} observations, {self.folds} inner folds: expected at least 3 and 2")

    def _part(self, features: str, design: np.ndarray) -> np.ndarray:
        """A candidate's design."""
        n = len(self.evaluated)
        mixtures = design if design.ndim == 2 else design[:, 0, n:]
        return assemble(features, mixtures, {name: design[:, :, i] for i, name in enumerate(self.evaluated)})

    def _left_out(
        self, regressor: BaseEstimator, parts: list[tuple[np.ndarray, np.ndarray]], whole: list[Any]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Residuals and predicted deviations of every row of each table, by candidates that had not seen it."""
        if min(len(losses) for _, losses in parts) >= MANY and hasattr(whole[0], "leave_one_out"):
            return [one.leave_one_out() for one in whole]
        folds = [
            list(KFold(min(self.folds, len(losses)), shuffle=True, random_state=self.seed).split(losses))
            for _, losses in parts
        ]
        if hasattr(whole[0], "left_out"):
            errors = [one.left_out([test for _, test in rows]) for one, rows in zip(whole, folds, strict=True)]
            return [(residual, np.full_like(residual, np.nan)) for residual in errors]
        every = [(d[train], y[train]) for (d, y), rows in zip(parts, folds, strict=True) for train, _ in rows]
        inner = iter(fit_many(regressor, every))
        found = []
        for (design, losses), rows in zip(parts, folds, strict=True):
            residual, deviation = np.empty_like(losses), np.empty_like(losses)
            for _, test in rows:
                mean, deviation[test] = predict_with_deviation(next(inner), design[test])
                residual[test] = losses[test] - mean
            found.append((residual, deviation))
        return found

    def _weigh(self, residual_MRJ: np.ndarray, deviation_MRJ: np.ndarray, losses_RJ: np.ndarray) -> None:
        scale_J = losses_RJ.std(axis=0)
        scale_J = np.where(scale_J > 0, scale_J, 1.0)
        errors_MN = (residual_MRJ / scale_J).reshape(len(residual_MRJ), -1)
        self.inner_error_ = np.mean(errors_MN**2, axis=1)
        self.weights_ = stacking_weights(errors_MN.T)
        self.inner_deviation_ = np.sqrt(np.mean(residual_MRJ**2, axis=1))
        deviation_MRJ = np.where(np.isnan(deviation_MRJ), self.inner_deviation_[:, None], deviation_MRJ)
        weights = self.weights_[:, None, None]
        residual_RJ = np.sum(weights * residual_MRJ, axis=0)
        self.correlation_ = shrunk_correlation(residual_RJ)
        deviation_RJ = _blended(weights, residual_MRJ - residual_RJ, deviation_MRJ)
        ratio = np.divide(residual_RJ, deviation_RJ, out=np.ones_like(residual_RJ), where=deviation_RJ > 0)
        rows = len(losses_RJ)
        self.calibration_ = float(np.sqrt((DOUBT + rows * np.mean(ratio**2)) / (DOUBT + rows)))


def _has_law(design: np.ndarray, losses: np.ndarray) -> bool:
    """Whether a mixing law can be told from these rows: with few it goes through them, and anywhere beyond."""
    return len(losses) >= 2 * (1 + design.shape[-1]) and bool((losses > 0).all())


def stacking_weights(errors: np.ndarray, shrinkage: float = SHRINKAGE) -> np.ndarray:
    """Weights [M] on the simplex of least squared blended error plus `shrinkage` times distance from equal weights.

    Args:
      errors: [N, M], out-of-fold errors of M candidates in a common unit.
      shrinkage: in units of the best candidate's sum of squared errors.
    """
    n_candidates = errors.shape[1]
    unit = np.sqrt((errors**2).sum(axis=0).min())
    if unit == 0:
        return np.eye(n_candidates)[(errors**2).sum(axis=0).argmin()]
    pull = np.sqrt(shrinkage) * np.eye(n_candidates)
    heavy = np.full((1, n_candidates), 1e4)  # the weights sum to one, to eight digits
    rows = np.vstack([errors / unit, pull, heavy])
    goal = np.concatenate([np.zeros(len(errors)), np.full(n_candidates, np.sqrt(shrinkage) / n_candidates), [1e4]])
    weights, _ = nnls(rows, goal)
    return weights / weights.sum()


def _blended(weights: np.ndarray, offsets: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Standard deviation of a mixture of distributions with these offsets from its mean."""
    return np.sqrt(np.sum(weights * (deviations**2 + offsets**2), axis=0))
