"""How well proxies stand for models that were trained: correlations over unions, with intervals.

Unions share units, so they are not independent: sixteen unions of six sources say about as much as five unions that
share nothing. Resampling unions as if they were independent gives intervals that cover half of the time. So intervals
are Fisher's, with the effective number of unions of Clifford, Richardson and Hémon (Biometrics 1989), whose variance of
a correlation holds for two sides that are correlated over unions alike.

Shapes: U unions, P proxies, J domains.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm, rankdata

from mde.errors import UserError

LEAST = 3  # unions; through two points goes a line
LEVEL = 0.9  # of the intervals
FEWEST = 4.0  # effective unions below which an interval is not known
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
    overlap: npt.ArrayLike | None = None,
    level: float = LEVEL,
) -> dict[str, np.ndarray]:
    """Pearson's and Spearman's correlation of each proxy with what was observed, for each domain.

    Larger unions are trained for longer, and any proxy that sees their size looks good for it. So there is the partial
    correlation as well: Pearson's of what sizes leave of both sides, each less its regression on log size.

    Intervals are of the correlation over unions of other units. They take all differences between unions for those of
    their text, so noise of training makes them wider than they need be, never narrower.

    Args:
      observed: [U, J] perplexities of the trained models.
      predicted: [P, U, J] those of the proxies.
      sizes: [U] copies of units in each union.
      overlap: [U, U] how much text unions share, such as `unions.overlap`; by default they share nothing.
      level: of the intervals.

    Returns:
      `pearson`, `spearman` and `partial`, each [P, J], and their `_low` and `_high`. NaN where one side does not vary,
      and ends that are not known as fewer than four unions' worth is left; `effective`, that number by statistic.

    Raises:
      UserError: fewer than three unions.
    """
    observed, predicted = np.asarray(observed, np.float64), np.asarray(predicted, np.float64)
    logs, unions = np.log(np.asarray(sizes, np.float64)), len(observed)
    if unions < LEAST:
        raise UserError(f"{unions} unions: a correlation needs at least {LEAST}")
    shared = np.eye(unions) if overlap is None else np.asarray(overlap, np.float64)
    found: dict[str, np.ndarray] = {}
    for name in STATISTICS:
        value = np.stack([_statistic(name, observed, one, logs) for one in predicted])
        effective = effective_unions(shared, logs if name == "partial" else None)
        low, high = _fisher(value, effective, level, name == "spearman")
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
        found[f"{name}_effective"] = np.full(value.shape, effective)
    return found


def effective_unions(overlap: np.ndarray, covariate: np.ndarray | None = None) -> float:
    """How many unions that share nothing would say as much of a correlation as these, `1 + tr(K)² / tr(K²)`.

    K is the overlap [U, U] with the mean, and the covariate [U] if there is one, taken out of both sides.
    """
    unions = len(overlap)
    fixed = np.column_stack([np.ones(unions), *([] if covariate is None else [covariate])])
    remove = np.eye(unions) - fixed @ np.linalg.pinv(fixed)
    kernel = remove @ overlap @ remove
    total, square = np.trace(kernel), np.sum(kernel**2)
    return 1 + float(total**2 / square) if total > 1e-9 * np.trace(overlap) else 0.0


def _fisher(value: np.ndarray, effective: float, level: float, ranks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Fisher's interval; for ranks with the variance of Bonett and Wright (Psychometrika 2000)."""
    if effective < FEWEST:
        return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    centre = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    half = norm.ppf((1 + level) / 2) * np.sqrt((1 + value**2 / 2 if ranks else 1) / (effective - 3))
    return np.tanh(centre - half), np.tanh(centre + half)


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


def table(
    losses: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    sizes: Mapping[str, float],
    overlap: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Correlations of the proxies' perplexities with those of the trained models, by evaluation domain and group.

    Args:
      losses: nats per token, indexed by union; column `model` says whose they are, `seq` for the trained one.
      groups: domains to average over, by the name of the mean; groups without a domain are left out.
      sizes: copies of units in each union.
      overlap: how much text unions share, with their names on both sides; nothing by default.

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
    shared = None if overlap is None else overlap.loc[observed.index, observed.index].to_numpy()
    found = correlate(perplexity(observed), np.stack(predicted), copies, shared)
    cells = pd.MultiIndex.from_product([[*by_model, SIZE], columns], names=["proxy", "domain"])
    numbers = pd.DataFrame({name: values.ravel() for name, values in found.items()}, cells)
    numbers.insert(0, "unions", len(observed))
    return numbers.reset_index("domain")
