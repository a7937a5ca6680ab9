"""Differences between mixtures that were trained with the same seeds and scored on the same documents.

Two things make a measured difference uncertain: the seeds of the runs and the text that they are scored on. The seeds
are blocks (`mde.regression.blocks`). The text is resampled: documents within each evaluation domain, the same ones for
all runs (bootstrap). The two variances add up, and the degrees of freedom are Welch and Satterthwaite's. Noise of
single runs on single documents is counted in both, so intervals are rather too wide than too narrow. Simulated 95%
intervals cover 93 to 96% (tests/regression/test_paired.py).

Shapes: S seeds, M mixtures, D documents, J evaluation domains, B bootstrap draws.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from mde.errors import UserError
from mde.regression import blocks
from mde.regression.power import seeds_needed

LEVEL = 0.95
DRAWS = 1000

Objective = Callable[[np.ndarray], np.ndarray]


def compare(
    nats_SxMxD: np.ndarray,
    tokens_D: np.ndarray,
    domain_D: np.ndarray,
    objective: Objective,
    mixtures: Sequence[str],
    against: str,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per mixture: how its objective compares with that of one of them.

    Columns: measured (mean over the seeds), noise (standard deviation of one run over the seeds), seeds, difference (to
    `against`), error_seeds and error_text (standard errors of the difference), error (root of their sum of squares),
    freedom (degrees of freedom), p (two-sided t-test), p_holm (corrected for the number of baselines by Holm's method),
    clear (p_holm below 5%), seeds_needed (to find a difference of this size with a probability of 80%, at 5% divided by
    the number of baselines; of the noise of runs alone, since more seeds do not reduce that of the text).

    With one seed, or one document in a domain that counts, the noise is not known: error and p are NaN, clear is false.

    Args:
      nats_SxMxD: summed loss of each document.
      tokens_D: scored tokens of each document.
      domain_D: index of its evaluation domain, 0 to J - 1.
      objective: of the losses [S, M, J] of all runs in nats per token; returns [S, M].
      mixtures: the M names.
      against: the mixture that the others are compared with.
      draws: bootstrap draws.
      seed: of the draws.
    """
    one = list(mixtures).index(against)
    losses_SxMxJ = domain_losses(nats_SxMxD, tokens_D, domain_D)
    values = pd.DataFrame(objective(losses_SxMxJ), columns=list(mixtures))
    found = blocks.compare(values, against).drop(columns="clear").rename(columns={"error": "error_seeds"})
    drawn = np.stack([objective(each) for each in bootstrap(nats_SxMxD, tokens_D, domain_D, draws, seed)]).mean(axis=1)
    found["error_text"] = (drawn - drawn[:, [one]]).std(axis=0, ddof=1)
    documents_J = np.bincount(domain_D, minlength=losses_SxMxJ.shape[-1])
    if _counts(objective, losses_SxMxJ, np.flatnonzero(documents_J < 2)):
        found["error_text"] = np.nan
    found.loc[against, ["error_seeds", "error_text"]] = 0.0
    found["error"] = np.hypot(found["error_seeds"], found["error_text"])

    seeds, count = nats_SxMxD.shape[:2]
    parts = np.stack([found["error_seeds"], found["error_text"]]) ** 2
    freedom = np.array([[(seeds - 1) * (count - 1)], [(documents_J[documents_J > 0] - 1).sum()]])
    with np.errstate(divide="ignore", invalid="ignore"):
        found["freedom"] = parts.sum(axis=0) ** 2 / (parts**2 / freedom).sum(axis=0)
        statistic = found["difference"].abs() / found["error"]
    found["p"] = 2 * stats.t.sf(statistic, found["freedom"])
    certain = (found["error"] == 0) & (found["difference"] != 0)  # nothing varies: all seeds and documents agree
    found.loc[certain, "p"] = 0.0
    found.loc[against, "p"] = np.nan
    found["p_holm"] = holm(found["p"].to_numpy())
    found["clear"] = found["p_holm"] < 1 - LEVEL
    noise = found["error_seeds"] * np.sqrt(seeds / 2)
    found["seeds_needed"] = [
        _seeds(each, gap, count - 1) for each, gap in zip(noise, found["difference"].abs(), strict=True)
    ]
    return found


def domain_losses(nats: np.ndarray, tokens: np.ndarray, domain_D: np.ndarray) -> np.ndarray:
    """Losses [..., J] in nats per token, total nats over total tokens, from sums by document [..., D]."""
    domains = np.eye(int(domain_D.max()) + 1)[domain_D]
    return (nats @ domains) / (tokens @ domains)


def bootstrap(
    nats_SxMxD: np.ndarray, tokens_D: np.ndarray, domain_D: np.ndarray, draws: int, seed: int = 0
) -> np.ndarray:
    """Losses [B, S, M, J] on resampled documents, drawn within each domain.

    Of n documents n - 1 are drawn, which makes the variance of the draws an unbiased estimate (Rao and Wu, JASA 1988);
    with n it would be (n - 1) / n times too small. A domain with a single document stays as it is.
    """
    rng = np.random.default_rng(seed)
    found = np.empty((draws, *nats_SxMxD.shape[:2], int(domain_D.max()) + 1))
    for j in range(found.shape[-1]):
        mine = np.flatnonzero(domain_D == j)
        n = len(mine)
        counts = rng.multinomial(max(n - 1, 1), np.full(n, 1 / n), draws)
        totals = np.tensordot(counts, nats_SxMxD[..., mine], axes=(1, 2))
        found[..., j] = totals / (counts @ tokens_D[mine])[:, None, None]
    return found


def holm(p: npt.ArrayLike) -> np.ndarray:
    """Holm's corrected p values; NaN is no test and stays."""
    values = np.asarray(p, dtype=np.float64)
    found = np.full(values.shape, np.nan)
    order = np.argsort(values)[: np.isfinite(values).sum()]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return found


def regret(found: pd.DataFrame, against: str) -> tuple[float, float, float]:
    """How much worse a mixture is than the best measured one, with its interval; `found` is that of `compare`.

    The interval holds the true regret with a probability of at least 95%: the largest bound of simultaneous intervals
    of the differences to all others (Bonferroni). Without error bars it is NaN.
    """
    others = found.drop(index=against)
    if others.empty:
        return 0.0, np.nan, np.nan
    if others["error"].isna().any():
        return max(0.0, -others["difference"].min()), np.nan, np.nan
    reach = others["error"] * stats.t.ppf(1 - (1 - LEVEL) / 2 / len(others), others["freedom"].fillna(1))
    value, low, high = (max(0.0, (by * reach - others["difference"]).max()) for by in (0, -1, 1))
    return value, low, high


def _counts(objective: Objective, losses: np.ndarray, domains: np.ndarray) -> bool:
    """Whether the objective depends on any of these domains."""
    before = objective(losses)
    return any(not np.array_equal(objective(losses + np.eye(losses.shape[-1])[j]), before) for j in domains)


def _seeds(noise: float, difference: float, comparisons: int) -> float:
    """As `seeds_needed`; NaN where the noise is not known or there is no difference, infinite beyond its limit."""
    if not (np.isfinite(noise) and difference > 0 and comparisons):
        return np.nan
    try:
        return seeds_needed(noise, difference, comparisons)
    except UserError:
        return np.inf
