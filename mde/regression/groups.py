"""Replicates: proxy runs of the same mixture (other seeds), which are always split together.

A fold that trains on one seed of a mixture and tests on another would measure the noise of a run, not how well new
mixtures are predicted.
"""

import numpy as np

from mde.errors import UserError

DIGITS = 8  # weights that agree to so many decimal places are the same


def mixture_groups(design: np.ndarray) -> np.ndarray:
    """A label for each row, [R]: rows with equal features have the same label, 0, 1, … in order of appearance.

    Args:
      design: mixtures [R, K], or features of mixtures, [R, F] or [R, J, F].
    """
    table = np.round(np.asarray(design, dtype=np.float64).reshape(len(design), -1), DIGITS) + 0.0  # no -0.0
    _, first, label = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label.ravel()]


def group_folds(groups: np.ndarray, n_folds: int, seed: int) -> list[np.ndarray]:
    """Test rows of each fold: a random partition that never splits a group; at most as many folds as groups.

    Raises:
      UserError: fewer than two mixtures.
    """
    names = np.unique(groups)
    if len(names) < 2:
        raise UserError(f"all {len(groups)} proxy runs have the same mixture; expected at least two mixtures")
    order = np.random.default_rng(seed).permutation(names)
    return [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(order, min(n_folds, len(names)))]


def replicate_variance(losses: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Variance of a run around the mean of its mixture, by target, [J], and its degrees of freedom; zero without any.

    Args:
      losses: [R, J].
      groups: [R], from `mixture_groups`.
    """
    counts = np.bincount(groups)
    means = np.stack([np.bincount(groups, column) for column in losses.T], axis=1) / np.maximum(counts, 1)[:, None]
    freedom = int((counts[counts > 0] - 1).sum())
    squares = ((losses - means[groups]) ** 2).sum(axis=0)
    return squares / max(freedom, 1), freedom
