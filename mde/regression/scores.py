"""What predictions of held-out rows are scored by; all rounds of a validation at once."""

import numpy as np
from scipy.stats import norm, rankdata

LEVEL = 0.9  # of the intervals whose coverage is reported
TAIL = 0.25  # share of the held-out rows with the lowest predictions in which optimism is measured


def summary(predicted: np.ndarray, truth: np.ndarray, deviation: np.ndarray) -> dict[str, float]:
    """Mean and standard error over the rounds of every score (`mse`, `mse_se`, ...), and `n`, the number of rounds.

    Args:
      predicted: [N, H], N rounds of H held-out rows, nats per token.
      truth: [N, H].
      deviation: [N, H], standard deviations of the predictions, NaN where they are not known.
    """
    n = len(predicted)
    found: dict[str, float] = {}
    for name, values in by_round(predicted, truth, deviation).items():
        found[name] = float(values.mean())
        found[f"{name}_se"] = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return found | {"n": n}


def by_round(predicted: np.ndarray, truth: np.ndarray, deviation: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each round, [N], from [N, H] values.

    `mse`, `mae`; `r2`, against the mean of the truths; `spearman`, `kendall` (tau-b), NaN where predictions are all
    equal, as a constant does not rank; `regret`, the truth of the mixture that is predicted best minus that of the
    best; `optimism`, truth minus prediction on average over the quarter that is predicted best, where a search will
    look: positive where too much is promised; `coverage`, the share of truths within the interval of level 0.9, NaN
    where deviations are.
    """
    error = predicted - truth
    order = np.argsort(predicted, axis=1, kind="stable")
    best, tail = order[:, :1], order[:, : max(1, round(TAIL * order.shape[1]))]
    mse = np.mean(error**2, axis=1)
    reach = norm.ppf((1 + LEVEL) / 2) * deviation
    return {
        "mse": mse,
        "mae": np.mean(np.abs(error), axis=1),
        "r2": 1 - _divide(mse, truth.var(axis=1)),
        "spearman": _correlation(*(rankdata(values, axis=1) for values in (predicted, truth))),
        "kendall": _correlation(*(_signs(values) for values in (predicted, truth))),
        "regret": np.take_along_axis(truth, best, axis=1)[:, 0] - truth.min(axis=1),
        "optimism": -np.take_along_axis(error, tail, axis=1).mean(axis=1),
        "coverage": np.where(np.isfinite(reach).all(axis=1), np.mean(np.abs(error) <= reach, axis=1), np.nan),
    }


def of_runs(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [N] of N targets, [N, H] values, on runs that may be of another model size.

    `spearman`, `mse` and `regret` as of `by_round`; `pearson`, NaN where one side is all equal; `shift`, truth minus
    prediction on average; `mse_shifted`, what is left of `mse` when the shift, the best one, is added to predictions.
    """
    found = by_round(predicted, truth, np.full_like(truth, np.nan))
    shift = np.mean(truth - predicted, axis=1)
    return {name: found[name] for name in ("spearman", "mse", "regret")} | {
        "pearson": _correlation(predicted, truth),
        "shift": shift,
        "mse_shifted": np.mean((predicted + shift[:, None] - truth) ** 2, axis=1),
    }


def _signs(values: np.ndarray) -> np.ndarray:
    """Signs of all pairs' differences, [N, H * H]; their correlation is tau-b."""
    return np.sign(values[:, :, None] - values[:, None, :]).reshape(len(values), -1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return _divide(np.sum(x * y, axis=1), np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1)))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
