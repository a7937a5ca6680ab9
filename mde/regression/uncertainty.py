"""How much the recommended mixture and its predicted loss depend on the proxy runs."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.stats import norm, t
from sklearn.base import BaseEstimator, clone

from mde.errors import UserError
from mde.regression.designs import fit_many, work
from mde.regression.groups import group_folds, mixture_groups

FEW = 32  # mixtures up to which every mixture is left out alone
BATCH = 10  # refits at once
FOLDS = 5  # parts that are left out of more mixtures than that
BUDGET = 2e7  # entries of covariance matrices, summed over the halves, that an expensive regressor is fitted on
MOST = 30  # refits of such a regressor, however few its rows


def half_sample_refits(
    design: np.ndarray,
    observed: np.ndarray,
    estimator: BaseEstimator,
    n: int = 200,
    seed: int = 0,
    shown: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[Any]:
    """Clones that are each fitted on half of the mixtures: the spread of their answers is that of an answer.

    Halves are drawn without replacement: the delete-d jackknife with d = G / 2 of G mixtures (Shao and Wu, Annals of
    Statistics, 1989), for which the spread of the refits is that of the estimate, with no factor. They have no copies
    of a row, so that a regressor which tunes itself by cross-validation tunes itself honestly; replicates, runs of one
    mixture, stay together.

    Args:
      design: features of the proxy runs, [R, F] or [R, J, F].
      observed: their losses, [R, J], nats per token.
      estimator: regressor; it is cloned.
      n: number of halves; an expensive regressor is given fewer, at most 30.
      seed: of the halves.
      shown: goes through the batches of refits, for a bar.

    Raises:
      UserError: numbers of rows that do not agree, fewer than 6 mixtures, or no refit asked for.
    """
    if n < 1:
        raise UserError(f"{n} refits, expected at least one")
    groups = _check_tables(design, observed)
    count = groups.max() + 1
    half = (count + 1) // 2
    if cost := work(estimator, (len(observed) + 1) // 2, observed.shape[1]):
        n = min(n, max(10, min(MOST, int(BUDGET / cost))))
    rng = np.random.default_rng(seed)
    halves = [np.flatnonzero(np.isin(groups, rng.permutation(count)[:half])) for _ in range(n)]
    refits: list[Any] = []
    for batch in shown([halves[i : i + BATCH] for i in range(0, n, BATCH)]):
        refits += fit_many(estimator, [(design[rows], observed[rows]) for rows in batch])
    return refits


def objective_intervals(
    design: np.ndarray,
    observed: np.ndarray,
    candidate_design: np.ndarray,
    estimator: BaseEstimator,
    objective: np.ndarray,
    level: float = 0.9,
    seed: int = 0,
) -> np.ndarray:
    """Low and high objective of a run of each candidate, [C, 2], nats per token.

    A regressor whose deviations are calibrated out of fold is asked for them. Another is refitted without each mixture,
    or each of five folds of many mixtures, and its residuals make the interval, so that whatever it gets wrong is in
    it: CV+, which holds a new run at least 2 level - 1 of the time and in practice about level (Barber et al., Annals
    of Statistics, 2021, theorem 1 and section 3). Ask for candidates chosen beforehand.

    Args:
      design: features of the proxy runs, [R, F] or [R, J, F].
      observed: their losses, [R, J], nats per token.
      candidate_design: features of the candidates, [C, F] or [C, J, F].
      estimator: regressor; it is cloned.
      objective: weights of the evaluation domains, [J].
      level: of the intervals.
      seed: of the folds.

    Raises:
      UserError: numbers of rows or of domains that do not agree, fewer than 6 mixtures, an impossible level.
    """
    if not 0 < level < 1:
        raise UserError(f"interval level {level}, expected a share between 0 and 1")
    groups = _check_tables(design, observed)
    if np.shape(objective) != (observed.shape[1],):
        raise UserError(f"objective of shape {np.shape(objective)} for {observed.shape[1]} evaluation domains")
    rows = len(observed)
    if getattr(estimator, "calibrated", False):
        fitted = estimator if hasattr(estimator, "out_of_fold_") else clone(estimator).fit(design, observed)
        mean, deviations = fitted.predict(candidate_design, return_std=True)
        reach = norm.ppf((1 + level) / 2) * objective_deviation(fitted, deviations, objective)
        return np.stack([mean @ objective - reach, mean @ objective + reach], axis=1)
    count = int(groups.max()) + 1
    parts = group_folds(groups, count if count <= FEW else FOLDS, seed)
    kept = [np.setdiff1d(np.arange(rows), part) for part in parts]
    left_out, residual = np.empty((rows, len(candidate_design))), np.empty((rows, 1))
    for one, part in zip(fit_many(estimator, [(design[rest], observed[rest]) for rest in kept]), parts, strict=True):
        left_out[part] = one.predict(candidate_design) @ objective
        residual[part, 0] = np.abs(one.predict(design[part]) @ objective - observed[part] @ objective)
    rank = min(rows, int(np.ceil(level * (rows + 1)))) - 1
    low, high = np.sort(left_out - residual, axis=0)[rows - 1 - rank], np.sort(left_out + residual, axis=0)[rank]
    return np.stack([low, high], axis=1)


def selected_interval(interval: np.ndarray, predicted: float, refitted: np.ndarray, level: float = 0.9) -> np.ndarray:
    """An interval [2] for the mixture that a search chose, which must allow for its having been chosen.

    Where predictions err, a search goes to where they err low (the winner's curse). What refits on half of the proxy
    runs, which chose other mixtures, say of this one tells how far: their distance from the prediction is added to
    both sides, in squares.

    Args:
      interval: low and high of a mixture that was not chosen by its prediction.
      predicted: the prediction.
      refitted: those of the refits, [B].
      level: of the interval.
    """
    reach = norm.ppf((1 + level) / 2) * np.sqrt(np.mean((refitted - predicted) ** 2))
    return predicted + np.array([-1, 1]) * np.hypot(np.abs(interval - predicted), reach)


def objective_deviation(regressor: Any, deviations: np.ndarray, objective: np.ndarray) -> np.ndarray:
    """Standard deviations of the objective, [C], from those of the targets, [C, J].

    Errors of the targets hang together as the regressor's `correlation_` [J, J] says; without one, fully: the widest. A
    regressor that keeps its out-of-fold errors has the objective's own calibrated on them.
    """
    correlation = getattr(regressor, "correlation_", np.ones((len(objective), len(objective))))
    found = _of_sum(deviations * objective, correlation)
    if not hasattr(regressor, "out_of_fold_"):
        return found
    expected = _of_sum(regressor.out_of_fold_deviation_ * objective, correlation)
    residual = np.where(objective != 0, regressor.out_of_fold_, 0) @ objective
    return found * calibration(residual[:, None], expected[:, None], regressor.row_weights_)[0]


def _of_sum(deviations: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Standard deviation [C] of the sum of correlated terms [C, J]."""
    return np.sqrt(np.maximum(np.einsum("ci,ij,cj->c", deviations, correlation, deviations, optimize=True), 0))


def shrunk_correlation(residual: np.ndarray, belief: float = 8.0) -> np.ndarray:
    """Correlation [J, J] of residuals [R, J] about zero, with `belief` rows' worth of independence mixed in.

    A residual that is NaN counts as zero.
    """
    residual = np.nan_to_num(residual)
    scale = np.sqrt(np.mean(residual**2, axis=0))
    unit = residual / np.where(scale > 0, scale, 1)
    correlation = (unit.T @ unit + belief * np.eye(residual.shape[1])) / (len(residual) + belief)
    diagonal = np.sqrt(np.diagonal(correlation))
    return correlation / diagonal[:, None] / diagonal


def _check_tables(design: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The label of each row's mixture, [R]."""
    if len(design) != len(observed):
        raise UserError(f"{len(design)} rows of features for {len(observed)} proxy runs")
    groups = mixture_groups(design)
    if (count := groups.max() + 1) < 6:
        runs = f"{len(observed)} proxy runs" + (f" of {count} mixtures" if count != len(observed) else "")
        raise UserError(f"{runs}: expected at least 6 mixtures, to be fitted again on a part of them")
    return groups


def calibration(
    residual_RJ: np.ndarray,
    deviation_RJ: np.ndarray,
    weight_R: np.ndarray | None = None,
    level: float = 0.9,
    belief: float = 8.0,
) -> np.ndarray:
    """What standard deviations are multiplied by, by target, [J], so that normal intervals hold new runs at this level.

    The quantile of each target's own out-of-fold ratios of error to deviation, with all targets' ratios mixed in as if
    they were `belief` more rows, one row more than there are, as in conformal prediction (Vovk et al., 2005). A few
    rows say little of their own spread: the factor is larger by Student's t against the normal distribution. Residuals
    that are NaN, of outlying losses, are left out. Replicates are one row together: each has a part of its weight.

    Args:
      residual_RJ: out-of-fold errors.
      deviation_RJ: the standard deviations that were expected of them.
      weight_R: 1 / number of runs of the row's mixture; ones by default.
      level: of the intervals.
      belief: rows' worth of all targets' ratios.
    """
    targets = residual_RJ.shape[1]
    known_RJ = np.isfinite(residual_RJ) * (np.ones(len(residual_RJ)) if weight_R is None else weight_R)[:, None]
    rows_J = known_RJ.sum(axis=0)
    ratio = np.divide(np.abs(residual_RJ), deviation_RJ, out=np.zeros_like(residual_RJ), where=deviation_RJ > 0)
    ratio[known_RJ == 0] = 0
    values = np.concatenate([ratio, np.repeat(ratio.reshape(-1, 1), targets, axis=1)])
    shared = belief * known_RJ.reshape(-1, 1) / max(known_RJ.sum(), 1e-300)
    weights = np.concatenate([known_RJ, np.repeat(shared, targets, axis=1)])
    needed_J = np.minimum(level * (rows_J + belief + 1), rows_J + belief)
    order = np.argsort(values, axis=0)
    reached = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0) >= needed_J - 1e-9
    found = np.take_along_axis(np.take_along_axis(values, order, axis=0), reached.argmax(axis=0)[None], axis=0)[0]
    few = t.ppf((1 + level) / 2, np.maximum(rows_J - 4, 2)) / norm.ppf((1 + level) / 2)
    return np.maximum(found * few / norm.ppf((1 + level) / 2), 1e-3)
