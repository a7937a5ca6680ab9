"""Runs that do not fit: found from the errors of predictions that had not seen them."""

from typing import NamedTuple

import numpy as np

from mde.regression.ridge import Ridge

DEVIATIONS = 8.0  # robust standard deviations beyond which a loss does not fit; more where there are few runs
SUSPECT = 2.5  # the same at first sight: outliers widen all other errors, in which milder ones hide
SPREADS = 2.0  # and it is off by more than so many robust standard deviations of its target


class Outlier(NamedTuple):
    """A loss that is far from what the other proxy runs predict.

    Attributes:
      row: of the proxy run.
      target: column of the evaluation domain.
      deviations: how far above (or, negative, below) the prediction, in robust standard deviations of such errors.
    """

    row: int
    target: int
    deviations: float


def find_outliers(
    residual_RJ: np.ndarray,
    spread_J: np.ndarray,
    expected_RJ: np.ndarray | float = 1.0,
    deviations: float = DEVIATIONS,
) -> list[Outlier]:
    """Losses that are far from predictions which had not seen them, the farthest first.

    A loss is outlying where its residual is more than 8 (1 + 8 / R) robust standard deviations (median absolute
    residual / .6745 of its target, among R runs) and more than twice the spread of its target: a small miss of a target
    that is predicted well is not.

    Args:
      residual_RJ: losses minus predictions from other proxy runs; NaN where there is none.
      spread_J: robust standard deviation of each target's losses, from `robust_spread`.
      expected_RJ: how large each residual was expected to be, in any unit: runs that are far from all others are
        predicted less well, and may be off by more.
      deviations: how many are needed of very many runs; 8 in the above.
    """
    relative_RJ = residual_RJ / expected_RJ
    scale_J = robust_spread(relative_RJ, centred=False)
    deviations_RJ = np.divide(relative_RJ, scale_J, out=np.zeros_like(residual_RJ), where=scale_J > 0)
    needed = deviations * (1 + 8 / max(len(residual_RJ), 1))
    with np.errstate(invalid="ignore"):
        far = (np.abs(deviations_RJ) > needed) & (np.abs(residual_RJ) > SPREADS * spread_J)
    found = [Outlier(int(row), int(j), float(deviations_RJ[row, j])) for row, j in np.argwhere(far)]
    return sorted(found, key=lambda one: -abs(one.deviations))


def robust_spread(values_RJ: np.ndarray, centred: bool = True) -> np.ndarray:
    """Standard deviation by target that outliers do not move: median absolute deviation / .6745; NaN is left out."""
    known = np.isfinite(values_RJ).any(axis=0)
    spread_J = np.zeros(values_RJ.shape[1])
    some = values_RJ[:, known]
    offset = np.nanmedian(some, axis=0) if centred else 0.0
    spread_J[known] = np.nanmedian(np.abs(some - offset), axis=0) / 0.6745
    return spread_J


def clipped(features: np.ndarray, losses: np.ndarray, folds: list[np.ndarray], rounds: int = 3) -> np.ndarray:
    """Losses [R, J] whose wildest values are replaced by what a ridge regression on the other folds predicts.

    A first look that costs nothing: values far beyond the median are brought near it, so that they cannot bend the
    ridge, and then those are replaced that are far from its prediction. It takes more than it should (`SUSPECT`); what
    looks at the result must check the replaced losses again, and keep those that fit.

    Args:
      features: [R, F].
      losses: [R, J].
      folds: the test rows of each fold.
      rounds: of ridge and replacement.
    """
    middle, spread = np.median(losses, axis=0), robust_spread(losses)
    reach = np.where(spread > 0, 2 * DEVIATIONS * spread, np.inf)
    cleaned = np.clip(losses, middle - reach, middle + reach)
    for _ in range(rounds):
        predicted = np.empty_like(losses)
        for rows in folds:
            kept = np.setdiff1d(np.arange(len(losses)), rows)
            predicted[rows] = Ridge().fit(features[kept], cleaned[kept]).predict(features[rows])
        before, cleaned = cleaned, losses.copy()
        for one in find_outliers(losses - predicted, spread, deviations=SUSPECT):
            cleaned[one.row, one.target] = predicted[one.row, one.target]
        if np.array_equal(before != losses, cleaned != losses):
            break
    return cleaned
