"""What predictions of held-out rows are scored by."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, rankdata

LEVEL = 0.9  # of the intervals whose coverage is reported
TAIL = 0.25  # share of the held-out rows with the lowest predictions in which optimism is measured

Round = tuple[np.ndarray, np.ndarray, np.ndarray]  # predictions, truths, deviations, [H] each


def summary(rounds: Sequence[Round]) -> dict[str, float]:
    """Mean and standard error over the rounds of every score, and `n`, their number.

    Rank correlations are NaN where predictions are all equal: a constant does not rank.
    """
    table = [score(*one) for one in rounds]
    found: dict[str, float] = {}
    for name in table[0]:
        values = np.array([row[name] for row in table])
        found[name] = float(values.mean())
        found[f"{name}_se"] = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return found | {"n": len(table)}


def score(predicted: np.ndarray, truth: np.ndarray, deviation: np.ndarray) -> dict[str, float]:
    """Scores of one round, losses in nats per token.

    `mse`, `mae`; `r2`, against the mean of the truths; `spearman`, `kendall` (tau-b); `regret`, the truth of the
    mixture that is predicted best minus that of the best; `optimism`, truth minus prediction on average over the quarter
    that is predicted best, where a search will look: positive where too much is promised; `coverage`, the share of
    truths within the interval of level 0.9, NaN where deviations are.
    """
    error = predicted - truth
    best = np.argsort(predicted, kind="stable")
    tail = best[: max(1, int(round(TAIL * len(best))))]
    variance = truth.var()
    inside = np.abs(error) <= norm.ppf((1 + LEVEL) / 2) * deviation
    return {
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(np.abs(error))),
        "r2": float(1 - np.mean(error**2) / variance) if variance > 0 else float("nan"),
        "spearman": _correlation(*(rankdata(values) for values in (predicted, truth))),
        "kendall": _kendall(predicted, truth),
        "regret": float(truth[best[0]] - truth.min()),
        "optimism": float(-error[tail].mean()),
        "coverage": float(inside.mean()) if np.isfinite(deviation).all() else float("nan"),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a - a.mean(), b - b.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def _kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Tau-b: the correlation of the signs of all pairs' differences."""
    signs = [np.sign(values[:, None] - values[None]).ravel() for values in (a, b)]
    scale = np.sqrt((signs[0] @ signs[0]) * (signs[1] @ signs[1]))
    return float(signs[0] @ signs[1] / scale) if scale > 0 else float("nan")
