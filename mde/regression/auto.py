"""The default regressor: a blend of regressors on several feature sets, weighted by honest cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from mde.errors import UserError
from mde.regression import designs
from mde.regression.designs import adopt, check_fit, check_predict, fit_many, predict_with_deviation
from mde.regression.features import assemble, traceable
from mde.regression.gaussian_process import GaussianProcess
from mde.regression.groups import group_folds, mixture_groups
from mde.regression.laws import MixingLaw
from mde.regression.ridge import Ridge
from mde.regression.robust import Outlier, clipped, find_outliers, robust_spread
from mde.regression.support import Support
from mde.regression.uncertainty import calibration, shrunk_correlation

Candidate = tuple[BaseEstimator, str]  # an unfitted regressor and the feature set it sees

FOLDS = 4
SHRINKAGE = 1.0  # how strongly weights are pulled to their centre, in units of the best candidate's squared error
REACH = 2.0  # distances between neighbouring runs (`Support.spacing`) beyond which predictions fall back to the mean
CAUTION = 1.5  # standard errors that are taken off what predictions are worth beside the mean
HARDLY = 0.02  # of the typical variation of a domain's weight: with less, nothing can be learnt from it
ROUNDS = 2  # of leaving out or replacing what does not fit, and fitting again
LEFT_OUT = 1 / 8  # of the runs, at most; where more do not fit, it is the predictions that are wrong
MOVED = 0.1  # spreads of a target that a loss must be replaced by more, or less, for that to matter
FEATURES_BEYOND = 3.0  # how far features may leave the range that the proxy runs cover, in units of that range
LOSSES_BEYOND = 1.0  # the same of the predictions of a candidate


@dataclass
class _Table:
    """One fit of a blend: its data, and what was learnt from the inner folds.

    Attributes:
      design: [R, K] or [R, J, E + K].
      losses: [R, J], as observed.
      cleaned: [R, J], the losses that are fitted: outlying ones are replaced by what the other proxy runs predict.
      groups: [R], the label of each row's mixture.
      folds: the test rows of each inner fold; replicates are together.
      candidates: what is blended.
      rows: [R], which of the proxy runs these are.
      left_out: losses of the other proxy runs, which do not fit.
      fitted: each candidate, fitted on all rows.
      predicted: [M, R, J], each row predicted by candidates that had not seen its mixture.
      deviation: [M, R, J], the standard deviations they gave; NaN from those that do not know.
      mean: [R, J], the mean of the losses in the other folds.
      failed: by candidate's number, why it cannot be used.
    """

    design: np.ndarray
    losses: np.ndarray
    cleaned: np.ndarray
    groups: np.ndarray
    folds: list[np.ndarray]
    candidates: list[Candidate]
    rows: np.ndarray
    left_out: list[Outlier] = field(default_factory=list)
    fitted: list[Any] = field(default_factory=list)
    predicted: np.ndarray = field(default_factory=lambda: np.empty(0))
    deviation: np.ndarray = field(default_factory=lambda: np.empty(0))
    mean: np.ndarray = field(default_factory=lambda: np.empty(0))
    failed: dict[int, str] = field(default_factory=dict)


class Auto(RegressorMixin, BaseEstimator):
    """Blends candidates by their errors on mixtures they were not fitted on; knows what it chose and how sure it is.

    Its design holds the J own columns of each evaluated feature first and then the mixture, as
    `assemble("mde[0]+mde[1]+lambda", ...)` makes it, [R, J, E + K]; with no evaluated feature it is the mixtures, [R,
    K]. The candidates' feature sets are made from it inside, so that cross-validation of an `Auto` is nested.

    Weights are those of least squared out-of-fold error (Breiman, Stacked regressions, 1996), not negative, of sum one:
    first for all targets together, pulled towards equality, then for each target, pulled towards the common ones. Every
    candidate is refitted in every inner fold, hyper-parameters and all, and replicates stay in one fold. What the blend
    says beyond the mean counts as far as out-of-fold rows bear it out, minus 1.5 standard errors, so a target that does
    not respond to the mixture is predicted by its mean.

    It cannot explode. Features count as far as `FEATURES_BEYOND` outside the range of the proxy runs, predictions of a
    candidate as far as `LOSSES_BEYOND` outside the range of the losses, and far from all runs (`Support`) predictions
    fall back to the mean and their deviations grow. A loss that is far from what the other runs predict
    (`find_outliers`) is replaced by that prediction; a run with more than half of its losses so far off is left out.

    Args:
      evaluated: names of the E evaluated features, in the order of their columns.
      candidates: pairs (unfitted regressor, feature set); by default ridge and Gaussian processes on
        functions of the mixture, and the mixing law. With evaluated features, processes and ridge on these with and
        without functions of the mixture, and a process on the mixture alone.
      folds: of the inner cross-validation.
      seed: of its splits.

    Attributes:
      weights_: [M, J] of the candidates; what is left of one is the weight of the mean.
      inner_error_: [M, J], mean squared out-of-fold error in units of the target's variance.
      outliers_: losses that do not fit, as a list of `Outlier`.
      failed_: by candidate, why it was not used.
      rows_: [R'], the proxy runs that it is fitted on.
      out_of_fold_: [R', J], the blend's errors on rows it had not seen; NaN for outlying losses.
      out_of_fold_deviation_: [R', J], the deviations that it gave there.
      row_weights_: [R'], 1 / number of runs of each run's mixture.
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
        """What a fit costs, in the unit of its candidates: each is fitted on all rows and on those of every fold."""
        parts = [rows, *[rows - rows // self.folds] * self.folds]
        return sum(designs.work(regressor, part, targets) for regressor, _ in self._candidates() for part in parts)

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits the candidates (`regressors_`, on the feature sets `chosen_`), their weights and the calibration."""
        adopt(self, self.fit_many([(X, y)])[0])
        return self

    def fit_many(self, tables: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> list[Self]:
        """A fitted clone for each (X, y); their inner folds are fitted in common batches."""
        prepared = [self._prepare(*check_fit(X, y)) for X, y in tables]
        self._fit_candidates(prepared)
        # The first look at outlying losses was rough. Where the blend replaces others, or by other values, all is
        # fitted once more; what replaces a loss comes nearer to what the other runs say each time.
        for _ in range(ROUNDS):
            again = {i: changed for i, table in enumerate(prepared) if (changed := self._clean_again(table))}
            self._fit_candidates(list(again.values()))
            prepared = [again.get(i, table) for i, table in enumerate(prepared)]
        return [self._blend(table) for table in prepared]

    def predict(self, X: npt.ArrayLike, return_std: bool = False) -> Any:
        """Losses [C, J] in the losses' unit; with `return_std` also the standard deviation of a new run's, [C, J].

        The deviations hold the candidates' own and their disagreement, and are scaled to the out-of-fold errors.
        """
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        inside = self.inputs_(design)
        means, deviations = [], []
        for i, regressor in enumerate(self.regressors_):
            part = self._part(self.chosen_[i], inside)
            mean, deviation = (
                predict_with_deviation(regressor, part) if return_std else (regressor.predict(part), np.nan)
            )
            means.append(np.clip(mean, self.lowest_, self.highest_))
            deviations.append(np.where(np.isnan(deviation), self.inner_deviation_[i], deviation) + 0 * mean)
        away_C1 = self._away(design)[:, None]
        trust_C1 = np.minimum(1, REACH / np.maximum(away_C1, 1e-12)) ** 2
        blend, deviation = _blended(self.weights_, self.mean_, np.stack(means), np.stack(deviations), self.spread_)
        trusted = self.mean_ + trust_C1 * (blend - self.mean_)
        if not return_std:
            return trusted
        wider = np.maximum(1, away_C1) * self.calibration_ * deviation
        return trusted, np.hypot(wider, (1 - trust_C1) * (self.highest_ - self.lowest_) / 2)

    def describe(self) -> str:
        """What was chosen, in a line: each candidate's feature set, weight and inner R², means over the targets."""
        check_is_fitted(self)
        weights, errors = self.weights_.mean(axis=1), self.inner_error_.mean(axis=1)
        rest = 1 - weights.sum()
        parts = [
            f"{type(self.regressors_[i]).__name__}({self.chosen_[i]}) {weights[i]:.0%} (inner R² {1 - errors[i]:.3f})"
            for i in np.argsort(-weights, kind="stable")
        ]
        return "blend of " + ", ".join([*parts, *([f"the mean {rest:.0%}"] if rest > 0.005 else [])])

    def jax_predict(self) -> Any:
        """A pure JAX function from one row of the design, [K] or [J, E + K], to its losses [J].

        Raises:
          UserError: a candidate that has no such form.
        """
        import jax.numpy as jnp

        check_is_fitted(self)
        parts = []
        for i, regressor in enumerate(self.regressors_):
            if not hasattr(regressor, "jax_predict"):
                raise UserError(f"{type(regressor).__name__} has no form that JAX can differentiate")
            parts.append((self.weights_[i], regressor.jax_predict(), traceable(self.chosen_[i], self.evaluated)))
        known, spacing, n = self.support_.mixtures, self.support_.spacing, len(self.evaluated)
        limits = (self.lowest_, self.highest_)

        def losses(row: Any) -> Any:
            inside = jnp.clip(row, self.inputs_.low, self.inputs_.high)
            each = [w * (jnp.clip(f(design(inside)), *limits) - self.mean_) for w, f, design in parts]
            distance = jnp.min(jnp.sum(jnp.abs((row if row.ndim == 1 else row[0, n:]) - known), axis=1)) / 2
            trust = jnp.minimum(1, REACH * spacing / jnp.maximum(distance, 1e-12)) ** 2
            return self.mean_ + trust * sum(each)

        return losses

    def _candidates(self) -> list[Candidate]:
        if self.candidates is not None:
            return list(self.candidates)
        if not self.evaluated:
            processes = [(GaussianProcess(), features) for features in ("cbrt", "log", "lambda")]
            return [(Ridge(), "sqrt"), (Ridge(), "log"), (MixingLaw(), "lambda"), *processes]
        together = "+".join(self.evaluated)
        sets = (f"{together}+cbrt", f"{together}+log", together, "cbrt")
        lines = (f"{self.evaluated[0]}+log", together)  # where a process goes back to its mean, these go on
        processes = [(GaussianProcess(), features) for features in sets]
        return [*processes, *((Ridge(), features) for features in lines)]

    def _prepare(self, design: np.ndarray, losses: np.ndarray) -> _Table:
        self._check(design.shape, losses)
        mixtures = self._mixtures(design)
        groups = mixture_groups(mixtures)
        folds = group_folds(groups, self.folds, self.seed)
        cleaned = clipped(np.log(mixtures + 0.01), losses, folds)
        return _Table(design, losses, cleaned, groups, folds, self._candidates(), np.arange(len(losses)))

    def _check(self, shape: tuple[int, ...], losses: np.ndarray) -> None:
        expected = 3 if self.evaluated else 2
        if len(shape) != expected or shape[-1] <= len(self.evaluated):
            wanted = "own columns of the evaluated features and then the mixture, [R, J, E + K]"
            raise UserError(
                f"a design of shape {shape} for `auto` with {len(self.evaluated)} evaluated features, expected "
                + (wanted if self.evaluated else "mixtures, [R, K]")
            )
        if self.folds < 2 or len(losses) < 3:
            raise UserError(f"{len(losses)} proxy runs, {self.folds} inner folds: expected at least 3 and 2")

    def _mixtures(self, design: np.ndarray) -> np.ndarray:
        return design if design.ndim == 2 else design[:, 0, len(self.evaluated) :]

    def _part(self, features: str, design: np.ndarray) -> np.ndarray:
        """A candidate's design."""
        named = {name: design[:, :, i] for i, name in enumerate(self.evaluated)}
        return assemble(features, self._mixtures(design), named)

    def _fit_candidates(self, tables: list[_Table]) -> None:
        """Each table's candidates, fitted on all rows and on those of every fold, in batches over the tables."""
        if not tables:
            return
        for table in tables:
            shape = (len(table.candidates), *table.losses.shape)
            table.fitted, table.failed = [None] * len(table.candidates), {}
            table.predicted, table.deviation = np.full(shape, np.nan), np.full(shape, np.nan)
            table.mean = np.empty_like(table.losses)
            for rows in table.folds:
                table.mean[rows] = np.delete(table.cleaned, rows, axis=0).mean(axis=0)
        for number in range(max(len(table.candidates) for table in tables)):
            self._fit_candidate(number, [table for table in tables if number < len(table.candidates)])

    def _fit_candidate(self, number: int, tables: list[_Table]) -> None:
        regressor, features = tables[0].candidates[number]
        jobs, places = [], []
        for table in tables:
            for rows in (np.empty(0, int), *table.folds):
                kept = np.setdiff1d(np.arange(len(table.losses)), rows)
                part = self._part(features, _Inputs(table.design[kept], len(self.evaluated))(table.design))
                jobs.append((part[kept], table.cleaned[kept]))
                places.append((table, rows, part[rows]))
        try:
            every = fit_many(regressor, jobs)
        except (UserError, np.linalg.LinAlgError) as error:
            if len(tables) == 1:
                tables[0].failed[number] = str(error)
            else:  # which of them it was
                for table in tables:
                    self._fit_candidate(number, [table])
            return
        for (table, rows, part), job, fitted in zip(places, jobs, every, strict=True):
            if not len(rows):
                table.fitted[number] = fitted
                continue
            mean, table.deviation[number, rows] = predict_with_deviation(fitted, part)
            if not np.isfinite(mean).all():
                table.failed[number] = "predicted a loss that is not finite"
            table.predicted[number, rows] = np.clip(mean, *_extended(job[1], LOSSES_BEYOND))

    def _clean_again(self, table: _Table) -> _Table | None:
        """The table to fit next: outlying losses replaced by the blend's, runs that do not fit left out.

        None where this makes no difference that matters.
        """
        blend, _, outliers = self._out_of_fold(table)
        if unfit := self._unfit_runs(table, outliers):
            rest = np.setdiff1d(np.arange(len(table.losses)), unfit)
            fewer = self._prepare(table.design[rest], table.losses[rest])
            fewer.left_out = table.left_out + [
                one._replace(row=int(table.rows[one.row])) for one in outliers if one.row in unfit
            ]
            fewer.rows = table.rows[rest]
            return fewer
        before, table.cleaned = table.cleaned, table.losses.copy()
        for one in outliers:
            table.cleaned[one.row, one.target] = blend[one.row, one.target]
        moved = np.abs(table.cleaned - before) > MOVED * robust_spread(table.losses)
        return table if moved.any() else None

    def _unfit_runs(self, table: _Table, outliers: list[Outlier]) -> list[int]:
        """Rows with more than half of their losses outlying, if they are few."""
        counts = np.bincount([one.row for one in outliers], minlength=len(table.losses))
        unfit = np.flatnonzero(counts > table.losses.shape[1] / 2)
        already = len({one.row for one in table.left_out})
        total = len(table.losses) + already
        few = len(unfit) + already <= max(1, LEFT_OUT * total) and len(table.losses) - len(unfit) >= 4
        return unfit.tolist() if few else []

    def _out_of_fold(self, table: _Table) -> tuple[np.ndarray, np.ndarray, list[Outlier]]:
        """Predictions [R, J] of rows that the blend had not seen, their deviations, and losses that do not fit."""
        predicted = np.nan_to_num(table.predicted)  # of a candidate that failed, whose weight is zero
        typical_M1J = np.sqrt(np.mean((predicted - table.cleaned) ** 2, axis=1))[:, None]
        deviation = np.where(np.isnan(table.deviation), typical_M1J, table.deviation)
        blend, expected = _blended(self._weights(table), table.mean, predicted, deviation, table.cleaned.std(axis=0))
        return blend, expected, find_outliers(table.losses - blend, robust_spread(table.losses), expected)

    def _errors(self, table: _Table) -> np.ndarray:
        """Out-of-fold errors of the candidates in units of each target's standard deviation, [M, R, J]."""
        scale_J = table.cleaned.std(axis=0)
        return (table.predicted - table.cleaned) / np.where(scale_J > 0, scale_J, 1.0)

    def _weights(self, table: _Table) -> np.ndarray:
        """[M, J]; a candidate that failed has none."""
        used = [m for m in range(len(table.candidates)) if m not in table.failed]
        if not used:
            raise UserError("no candidate of `auto` could be fitted: " + "; ".join(table.failed.values()))
        errors = self._errors(table)[used]
        best_J = np.sqrt((errors**2).sum(axis=1).min(axis=0))
        each = errors / np.where(best_J > 0, best_J, 1.0)
        common = stacking_weights(each.reshape(len(used), -1).T, SHRINKAGE)
        weights = np.zeros((len(table.candidates), errors.shape[2]))
        for j in range(errors.shape[2]):
            weights[used, j] = stacking_weights(errors[:, :, j].T, SHRINKAGE, common)
        blend = np.sum(weights[:, None] * np.nan_to_num(table.predicted), axis=0)
        return weights * _believed(blend - table.mean, table.cleaned - table.mean, table.groups)

    def _blend(self, table: _Table) -> Self:
        """A fitted clone."""
        one = clone(self)
        kept = [m for m in range(len(table.candidates)) if m not in table.failed]
        blend, deviation, outliers = self._out_of_fold(table)
        named = [off._replace(row=int(table.rows[off.row])) for off in outliers]
        one.outliers_ = sorted(table.left_out + named, key=lambda off: -abs(off.deviations))
        one.rows_ = table.rows
        one.design_shape_ = table.design.shape[1:]
        one.chosen_ = tuple(table.candidates[m][1] for m in kept)
        one.regressors_ = [table.fitted[m] for m in kept]
        one.failed_ = {
            f"{type(table.candidates[m][0]).__name__}({table.candidates[m][1]})": why for m, why in table.failed.items()
        }
        one.weights_ = self._weights(table)[kept]
        one.inner_error_ = np.mean(self._errors(table)[kept] ** 2, axis=1)
        one.inner_deviation_ = np.sqrt(np.mean((table.predicted[kept] - table.cleaned) ** 2, axis=1))
        one.mean_, one.spread_ = table.cleaned.mean(axis=0), table.cleaned.std(axis=0)
        one.lowest_, one.highest_ = _extended(table.cleaned, LOSSES_BEYOND)
        one.inputs_ = _Inputs(table.design, len(self.evaluated))
        one.support_ = Support(self._mixtures(table.design))
        one.out_of_fold_ = table.losses - blend
        for outlier in outliers:
            one.out_of_fold_[outlier.row, outlier.target] = np.nan
        one.correlation_ = shrunk_correlation(one.out_of_fold_)
        one.row_weights_ = 1 / np.bincount(table.groups)[table.groups]
        one.calibration_ = calibration(one.out_of_fold_, deviation, one.row_weights_)
        one.out_of_fold_deviation_ = one.calibration_ * deviation
        return one

    def _away(self, design: np.ndarray) -> np.ndarray:
        """Distance to the nearest proxy run, [C], in units of how far the most isolated run is from its neighbour."""
        return self.support_.distance(self._mixtures(design)) / max(self.support_.spacing, 1e-12)


def stacking_weights(errors: np.ndarray, shrinkage: float = SHRINKAGE, centre: np.ndarray | None = None) -> np.ndarray:
    """Weights [M] on the simplex of least squared blended error plus `shrinkage` times squared distance from a centre.

    Args:
      errors: [N, M], out-of-fold errors of M candidates in a common unit.
      shrinkage: in units of the best candidate's sum of squared errors.
      centre: [M], weights to be near to; equal ones by default.
    """
    n_candidates = errors.shape[1]
    centre = np.full(n_candidates, 1 / n_candidates) if centre is None else centre
    unit = np.sqrt((errors**2).sum(axis=0).min())
    if unit == 0:
        return np.eye(n_candidates)[(errors**2).sum(axis=0).argmin()]
    pull = np.sqrt(shrinkage) * np.eye(n_candidates)
    heavy = np.full((1, n_candidates), 1e4)  # the weights sum to one, to eight digits
    rows = np.vstack([errors / unit, pull, heavy])
    goal = np.concatenate([np.zeros(len(errors)), np.sqrt(shrinkage) * centre, [1e4]])
    weights, _ = nnls(rows, goal)
    return weights / weights.sum()


def _believed(predicted: np.ndarray, observed: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Part of the predicted differences to the mean that out-of-fold rows bear out, by target, [J], between 0 and 1.

    The slope of observed [R, J] on predicted differences [R, J], minus `CAUTION` standard errors of it. Errors of
    replicates, rows of one group, go together.
    """
    squares = np.maximum((predicted**2).sum(axis=0), 1e-300)
    moments = np.zeros((groups.max() + 1, predicted.shape[1]))
    np.add.at(moments, groups, predicted * (observed - predicted))
    error = np.sqrt((moments**2).sum(axis=0))
    return np.clip(((predicted * observed).sum(axis=0) - CAUTION * error) / squares, 0, 1)


def _blended(
    weights_MJ: np.ndarray, mean: np.ndarray, predicted_MCJ: np.ndarray, deviation_MCJ: np.ndarray, spread_J: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, [C, J] both, of a mixture of distributions; what is left of one is the mean's."""
    weights, rest = weights_MJ[:, None], 1 - weights_MJ.sum(axis=0)
    blend = mean + np.sum(weights * (predicted_MCJ - mean), axis=0)
    variance = np.sum(weights * (deviation_MCJ**2 + (predicted_MCJ - blend) ** 2), axis=0)
    return blend, np.sqrt(np.maximum(variance + rest * (spread_J**2 + (mean - blend) ** 2), 1e-24))


class _Inputs:
    """Brings designs to what was covered by the proxy runs that a blend is fitted on.

    Features count as far as `FEATURES_BEYOND` outside of their range. The weight of a domain that hardly varies, or
    in a single run only, is set to its mean: it would explain whatever else was odd about that run.

    Args:
      design: that is fitted on.
      n_evaluated: number of own columns that come before the mixture.
    """

    def __init__(self, design: np.ndarray, n_evaluated: int):
        self.low, self.high = (bound.copy() for bound in _extended(design, FEATURES_BEYOND))
        mixtures = design if design.ndim == 2 else design[:, 0, n_evaluated:]
        off = np.sort(np.abs(mixtures - np.median(mixtures, axis=0)), axis=0)
        spread = np.sqrt(np.mean(off[:-1] ** 2, axis=0))  # without the run that is farthest off
        self.unused = spread <= HARDLY * np.median(spread)
        fixed = np.flatnonzero(self.unused) + (0 if design.ndim == 2 else n_evaluated)
        self.low[..., fixed] = self.high[..., fixed] = design.mean(axis=0)[..., fixed]

    def __call__(self, design: np.ndarray) -> np.ndarray:
        """The design as candidates are given it."""
        return np.clip(design, self.low, self.high)


def _extended(table: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    """The range of each column, extended by a part of it on both sides."""
    low, high = table.min(axis=0), table.max(axis=0)
    return low - part * (high - low), high + part * (high - low)
