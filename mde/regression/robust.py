"""Runs that do not fit: found from the errors of predictions that had not seen them."""

from typing import NamedTuple

import numpy as np

DEVIATIONS = 8.0  # robust standard deviations beyond which a loss does not fit


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


def find_outliers(residual_RJ: np.ndarray, spread_J: np.ndarray) -> list[Outlier]:
    """Losses that are far from predictions which had not seen them, the farthest first.

    A loss is outlying where its residual is more than 8 robust standard deviations (median absolute residual / .6745 of
    its target) and more than the spread of its target: a small miss of a target that is predicted well is not.

    Args:
      residual_RJ: losses minus predictions from other proxy runs; NaN where there is none.
      spread_J: robust standard deviation of each target's losses, from `robust_spread`.
    """
    scale_J = robust_spread(residual_RJ, centred=False)
    deviations_RJ = np.divide(residual_RJ, scale_J, out=np.zeros_like(residual_RJ), where=scale_J > 0)
    with np.errstate(invalid="ignore"):
        far = (np.abs(deviations_RJ) > DEVIATIONS) & (np.abs(residual_RJ) > spread_J)
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
