"""What predictions of held-out rows are scored by; all rounds of a validation at once."""

import numpy as np
from scipy.stats import norm, rankdata

LEVEL = 0.9  # of the intervals whose coverage is reported
TAIL = 0.25  # share of the held-out rows with the lowest predictions in which optimism is measured


def summary(predicted: np.ndarray, truth: np.ndarray, deviation: np.ndarray, ratio: float) -> dict[str, float]:
    """Mean over the rounds of every score and its standard error (`mse`, `mse_se`, ...), and `n`, the number of rounds.

    Splits share their rows, so their spread alone would say how much the choice of training rows matters, and not how
    far the score of another swarm may lie. The standard errors are the corrected ones, see `corrected_error`.

    Args:
      predicted: [N, S, H], N rounds of S splits with up to H held-out rows, in the unit of the losses.
      truth: [N, S, H], NaN where nothing is scored.
      deviation: [N, S, H], standard deviations of the predictions, NaN where they are not known.
      ratio: held-out rows per training row.
    """
    n, splits, _ = predicted.shape
    whole = by_round(*(values.reshape(n, -1) for values in (predicted, truth, deviation)))
    single = whole if splits == 1 else by_round(*(v.reshape(n * splits, -1) for v in (predicted, truth, deviation)))
    found: dict[str, float] = {}
    for name, values in whole.items():
        found[name] = float(values.mean())
        found[f"{name}_se"] = float(corrected_error(single[name], ratio))
    return found | {"n": n}


def corrected_error(values: np.ndarray, ratio: float) -> np.ndarray:
    """Standard error of the mean of splits' scores [N, ...], or of their differences, over new swarms, [...].

    Nadeau and Bengio, Inference for the generalization error (Machine Learning, 2003): the variance of the splits times
    1 / N plus the held-out rows per training row. Splits without a score (NaN) are left out; NaN with a single one.
    """
    known = np.isfinite(values)
    n = known.sum(axis=0)
    mean = np.where(known, values, 0).sum(axis=0) / np.maximum(n, 1)
    squares = np.where(known, values - mean, 0) ** 2
    error = np.sqrt(squares.sum(axis=0) / np.maximum(n - 1, 1) * (1 / np.maximum(n, 1) + ratio))
    return np.where(n > 1, error, np.nan)


def by_round(predicted: np.ndarray, truth: np.ndarray, deviation: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each round, [N], from [N, H] values; NaN truths are not scored.

    `mse`, `mae`; `r2`, against the mean of the truths; `spearman`, `kendall` (tau-b), NaN where predictions are all
    equal, as a constant does not rank; `regret`, the truth of the mixture that is predicted best minus that of the
    best; `optimism`, truth minus prediction on average over the quarter that is predicted best, where a search will
    look: positive where too much is promised; `coverage`, the fraction of truths within the interval of level 0.9, NaN
    where deviations are.
    """
    scored = np.isfinite(truth)
    count = scored.sum(axis=1)
    error = np.where(scored, predicted - truth, 0.0)
    ranked = np.where(scored, predicted, np.inf)
    order = np.argsort(ranked, axis=1, kind="stable")
    best, in_order = order[:, :1], np.take_along_axis(error, order, axis=1)
    tail = np.maximum(1, np.round(TAIL * count))
    mse = _divide((error**2).sum(axis=1), count)
    reach = norm.ppf((1 + LEVEL) / 2) * deviation
    known = (np.isfinite(reach) | ~scored).all(axis=1)
    covered = _divide((scored & (np.abs(error) <= reach)).sum(axis=1), count)
    lowest = np.where(scored, truth, np.inf).min(axis=1)
    regret = np.take_along_axis(truth, best, axis=1)[:, 0] - np.where(count, lowest, np.nan)
    return {
        "mse": mse,
        "mae": _divide(np.abs(error).sum(axis=1), count),
        "r2": 1 - _divide(mse, _variance(truth, scored)),
        "spearman": _correlation(_ranks(predicted, scored), _ranks(truth, scored), scored),
        "kendall": _correlation(_signs(predicted, scored), _signs(truth, scored)),
        "regret": regret,
        "optimism": -np.where(np.arange(error.shape[1]) < tail[:, None], in_order, 0).sum(axis=1) / tail,
        "coverage": np.where(known, covered, np.nan),
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


def _ranks(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Ranks among the values of a round that are scored."""
    return rankdata(np.where(scored, values, np.inf), axis=1)


def _signs(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Signs of all pairs' differences, [N, H * H]; their correlation is tau-b."""
    pairs = scored[:, :, None] & scored[:, None, :]
    return np.sign(np.where(pairs, values[:, :, None] - values[:, None, :], 0)).reshape(len(values), -1)


def _variance(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    count = scored.sum(axis=1)
    centred = _centred(values, scored)
    return _divide((centred**2).sum(axis=1), count)


def _centred(values: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Values less their mean over what is scored; zero elsewhere."""
    mean = _divide(np.where(scored, values, 0).sum(axis=1), scored.sum(axis=1))
    return np.where(scored, values - mean[:, None], 0)


def _correlation(a: np.ndarray, b: np.ndarray, scored: np.ndarray | None = None) -> np.ndarray:
    scored = np.ones(a.shape, bool) if scored is None else scored
    x, y = _centred(a, scored), _centred(b, scored)
    return _divide(np.sum(x * y, axis=1), np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1)))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
