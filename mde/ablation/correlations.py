"""How well proxies stand for models that were trained: correlations over unions, with bootstrap intervals.

Shapes: U unions, P proxies, J domains, B resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from mde.errors import UserError

LEAST = 3  # unions; through two points goes a line
LEVEL = 0.9  # of the intervals
STATISTICS = ("pearson", "spearman", "partial")
SEQ = "seq"  # the model that is trained on a union
SIZE = "size"  # the proxy that knows nothing but how much text there is: more is better
INSIDE, OUTSIDE = "mean inside", "mean outside"  # over the domains that units come from, and over the others


def perplexity(losses: npt.ArrayLike) -> np.ndarray:
    """exp of losses in nats per token; of a mean of losses it is the geometric mean of the domains' perplexities."""
    return np.exp(np.asarray(losses, np.float64))


def correlate(
    observed: npt.ArrayLike,
    predicted: npt.ArrayLike,
    sizes: npt.ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, np.ndarray]:
    """Pearson's and Spearman's correlation of each proxy with what was observed, for each domain.

    Larger unions are trained for longer, and any proxy that sees their size looks good for it. So there is the partial
    correlation as well: Pearson's of what sizes leave of both sides, each less its regression on log size.

    Unions are resampled with replacement, the same ones for all proxies and domains; intervals are percentiles.

    Args:
      observed: [U, J] perplexities of the trained models.
      predicted: [P, U, J] those of the proxies.
      sizes: [U] copies of units in each union.
      resamples: B; 0 for no intervals.
      seed: of the resamples.
      level: of the intervals.

    Returns:
      `pearson`, `spearman` and `partial`, each [P, J], and their `_low` and `_high`. NaN where one side does not vary.

    Raises:
      UserError: fewer than three unions.
    """
    observed, predicted = np.asarray(observed, np.float64), np.asarray(predicted, np.float64)
    logs, unions = np.log(np.asarray(sizes, np.float64)), len(observed)
    if unions < LEAST:
        raise UserError(f"{unions} unions: a correlation needs at least {LEAST}")
    draws_BxU = np.random.default_rng(seed).integers(unions, size=(resamples, unions))
    tails = [(1 - level) / 2, (1 + level) / 2]
    found: dict[str, np.ndarray] = {}
    for name in STATISTICS:
        found[name] = np.stack([_statistic(name, observed, one, logs) for one in predicted])
        low, high = np.full((2, *found[name].shape), np.nan)
        for p, one in enumerate(predicted if resamples else []):
            again = _statistic(name, observed[draws_BxU], one[draws_BxU], logs[draws_BxU])
            low[p], high[p] = _quantiles(again, tails)
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def _statistic(name: str, a: np.ndarray, b: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """A correlation of [..., U, J] with [..., U, J], for log sizes [..., U]: [..., J]."""
    if name == "spearman":
        return _pearson(*(rankdata(values, axis=-2) for values in (a, b)))
    if name == "partial":
        return _pearson(*(_left(values, logs[..., None]) for values in (a, b)))
    return _pearson(a, b)


def _left(values: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """What the regression on log size leaves of values; their mean is left in them."""
    x = logs - logs.mean(axis=-2, keepdims=True)
    xx, xy = (x * x).sum(axis=-2, keepdims=True), (x * values).sum(axis=-2, keepdims=True)
    slope = np.divide(xy, xx, out=np.zeros_like(xy), where=xx > 1e-12)
    return values - slope * x


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation along the axis before the last, [..., J]; NaN where a side does not vary but by rounding."""
    x, y = (values - values.mean(axis=-2, keepdims=True) for values in (a, b))
    xx, yy = (x**2).sum(axis=-2), (y**2).sum(axis=-2)
    varies = (xx > 1e-24 * (a**2).sum(axis=-2)) & (yy > 1e-24 * (b**2).sum(axis=-2))
    product = (x * y).sum(axis=-2)
    return np.divide(product, np.sqrt(xx * yy), out=np.full(product.shape, np.nan), where=varies)


def _quantiles(values_BxJ: np.ndarray, tails: list[float]) -> np.ndarray:
    """[2, J], of the resamples in which both sides vary; NaN where there are none."""
    out = np.full((2, values_BxJ.shape[1]), np.nan)
    for j, column in enumerate(values_BxJ.T):
        finite = column[np.isfinite(column)]
        if len(finite):
            out[:, j] = np.quantile(finite, tails)
    return out


def table(
    losses: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    sizes: Mapping[str, float],
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlations of the proxies' perplexities with those of the trained models, by evaluation domain and group.

    Args:
      losses: nats per token, indexed by union; column `model` says whose they are, `seq` for the trained one.
      groups: domains to average over, by the name of the mean; groups without a domain are left out.
      sizes: copies of units in each union.
      resamples: of the unions, for the intervals.
      seed: of the resamples.

    Returns:
      Indexed by proxy, the last of which is `size`; columns domain, unions (how many), and those of `correlate`.

    Raises:
      UserError: fewer than three unions.
    """
    domains = [name for name in losses if name != "model"]
    means = {name: losses[list(members)].mean(axis=1) for name, members in groups.items() if members}
    columns = pd.concat([losses[domains], pd.DataFrame(means)], axis=1)
    by_model = {model: columns[losses["model"] == model] for model in losses["model"].unique()}
    observed = by_model.pop(SEQ)
    copies = np.array([sizes[union] for union in observed.index])
    predicted = [perplexity(rows.loc[observed.index]) for rows in by_model.values()]
    predicted.append(np.broadcast_to(-np.log(copies)[:, None], observed.shape))
    found = correlate(perplexity(observed), np.stack(predicted), copies, resamples, seed)
    cells = pd.MultiIndex.from_product([[*by_model, SIZE], columns], names=["proxy", "domain"])
    numbers = pd.DataFrame({name: values.ravel() for name, values in found.items()}, cells)
    numbers.insert(0, "unions", len(observed))
    return numbers.reset_index("domain")
