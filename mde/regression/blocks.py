"""Mixtures that were trained with the same seeds: what their losses say of each other, and what the seeds share.

Runs of one seed read the same sequences of a domain, only more or fewer of them, so a seed moves all mixtures
together. Seeds are therefore blocks (two-way analysis of variance without replication): loss = mixture + seed + rest. A
difference of two mixtures is free of the seeds; an absolute loss is not.

Shapes: S seeds, M mixtures.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

LEVEL = 0.95  # of the test of a difference


def compare(losses_SxM: pd.DataFrame, against: str) -> pd.DataFrame:
    """One row per mixture: how it compares with one of them.

    Columns: measured (mean over the seeds); noise (standard deviation of one run over the seeds); seeds; difference
    (to `against`); error (standard error of a difference, from what is left of the losses when each mixture's and each
    seed's mean is taken away); clear (whether the difference is beyond what seeds explain, a two-sided t-test at 5%;
    of two mixtures it is the paired one). One seed says nothing of noise: noise and error are NaN and clear false.

    Args:
      losses_SxM: one row per seed, one column per mixture; nats per token.
      against: the mixture that the others are compared with.
    """
    values = losses_SxM.to_numpy()
    seeds, mixtures = values.shape
    left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    freedom = (seeds - 1) * (mixtures - 1)
    error = float(np.sqrt(2 * (left**2).sum() / freedom / seeds)) if freedom else np.nan
    found = pd.DataFrame({"measured": losses_SxM.mean(), "noise": losses_SxM.std(ddof=1)})
    found["seeds"] = seeds
    found["difference"] = found["measured"] - found["measured"][against]
    found["error"] = error
    found["clear"] = found["difference"].abs() > error * stats.t.ppf((1 + LEVEL) / 2, max(freedom, 1))
    return found.rename_axis("mixture")


def compare_runs(runs: pd.DataFrame, against: str) -> pd.DataFrame:
    """`compare` of runs of full length; where there are shorter ones of each mixture too, what more tokens do.

    Args:
      runs: one row per run: role (its mixture), seed, steps and objective.
      against: the mixture that the others are compared with.
    """
    whole = runs["steps"] == runs["steps"].max()
    labels = list(dict.fromkeys(runs["role"]))
    found = compare(runs[whole].pivot(index="seed", columns="role", values="objective")[labels], against)
    return found if whole.all() else slopes(runs, found)


def slopes(runs: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """A comparison [M] with two more columns, from runs of full length and shorter ones of the first seed.

    Columns: slope (how much lower the objective is than that of the shorter run of the same seed) and tokens_to_equal
    (how many times its tokens the mixture needs to be as good as the one that it is compared with).
    """
    whole = runs["steps"] == runs["steps"].max()
    full_SxM = runs[whole].pivot(index="seed", columns="role", values="objective")[list(found.index)]
    shorter = runs[~whole].set_index("role").loc[list(found.index)]
    slope = shorter["objective"] - full_SxM.loc[shorter["seed"].iloc[0]]
    growth = runs["steps"].max() / shorter["steps"].to_numpy()
    return found.assign(slope=slope, tokens_to_equal=tokens_to_equal(found["difference"], slope, growth))


def difference_interval(
    first: npt.ArrayLike, first_interval: npt.ArrayLike, second: npt.ArrayLike, second_interval: npt.ArrayLike
) -> np.ndarray:
    """The interval [..., 2] of first − second from the intervals [..., 2] of each, errors taken as independent.

    The distances of the bounds add up in squares, each side for itself (method of variance estimates recovery; Zou and
    Donner, Statistics in Medicine, 2008). Errors that go together cancel in a difference, so it is rather too wide.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    low_a, high_a = np.moveaxis(np.asarray(first_interval, dtype=np.float64), -1, 0)
    low_b, high_b = np.moveaxis(np.asarray(second_interval, dtype=np.float64), -1, 0)
    below, above = np.hypot(a - low_a, high_b - b), np.hypot(high_a - a, b - low_b)
    return np.stack([a - b - below, a - b + above], axis=-1)


def tokens_to_equal(
    difference_M: npt.ArrayLike, slope_M: npt.ArrayLike, growth: float | npt.ArrayLike = 2.0
) -> np.ndarray:
    """How many times its tokens a mixture needs to lose a difference, [M].

    Its loss falls by `slope_M` where its tokens grow `growth` times, and is taken to go on falling so, in a straight
    line in the logarithm of the tokens. NaN where it does not fall.
    """
    slope = np.asarray(slope_M, dtype=np.float64)
    return np.asarray(growth) ** (np.asarray(difference_M, dtype=np.float64) / np.where(slope > 0, slope, np.nan))
