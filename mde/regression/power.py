"""How many runs it takes to tell two mixtures apart: seeds of each, or proxy runs under a regressor."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from mde.errors import UserError, check_positive

MAX_RUNS = 1_000_000


def power_of_seeds(seeds: int, noise: float, difference: float, comparisons: int = 1, level: float = 0.05) -> float:
    """Probability that a two-sided paired t-test over these seeds finds a true difference between two mixtures.

    Exact for normal noise (noncentral t distribution). With several comparisons, Holm's procedure tests the smallest p
    value at level / comparisons, and that is used for each: a comparison is found at least so often.

    Args:
      seeds: runs per mixture, at least 2; run i of one mixture is paired with run i of the other.
      noise: standard deviation of one run after the seed effect that all mixtures share is removed: that of a paired
        difference, divided by √2.
      difference: true difference, in the unit of the noise.
      comparisons: number of baselines that the mixture is compared with.
      level: probability of a false claim in any of the comparisons.
    """
    if noise == 0:
        return 1.0
    return _power(abs(difference) / noise * np.sqrt(seeds / 2), seeds - 1, level / comparisons)


def seeds_needed(noise: float, difference: float, comparisons: int = 1, power: float = 0.8, level: float = 0.05) -> int:
    """Smallest number of seeds per mixture whose `power_of_seeds` is at least `power`.

    Args:
      noise: standard deviation of one run after the seed effect that all mixtures share is removed.
      difference: the smallest difference between two mixtures that should be found, in the unit of the noise.
      comparisons: number of baselines that the mixture is compared with.
      power: probability of finding it, above `level`.
      level: probability of a false claim in any of the comparisons.

    Raises:
      UserError: an argument out of its range; more than a million seeds.
    """
    _check(noise, difference, comparisons, power, level)
    return _smallest(lambda seeds: power_of_seeds(seeds, noise, difference, comparisons, level) >= power, 2)


def proxy_runs_needed(noise: float, difference: float, parameters: int, power: float = 0.8, level: float = 0.05) -> int:
    """Smallest number of proxy runs with which a linear regressor tells two mixtures apart, as far as noise goes.

    The variance of a prediction, on average over the proxy runs, is noise² × parameters / runs; the predictions of two
    mixtures are taken as independent. A two-sided t-test with runs − parameters degrees of freedom. What the regressor
    itself gets wrong comes on top, so this is a lower bound.

    Args:
      noise: standard deviation of one run.
      difference: the smallest difference between two mixtures that should be found, in the unit of the noise.
      parameters: of the regressor per evaluation domain: domains + 1 for a line or a log-linear law.
      power: probability of finding it, above `level`.
      level: probability of a false claim.

    Raises:
      UserError: an argument out of its range; more than a million runs.
    """
    _check(noise, difference, parameters, power, level)

    def enough(runs: int) -> bool:
        error = noise * np.sqrt(2 * parameters / runs)
        return error == 0 or _power(difference / error, runs - parameters, level) >= power

    return _smallest(enough, parameters + 1)


def _power(shift: float, freedom: int, level: float) -> float:
    """Power of a two-sided t-test whose statistic is centred at `shift`."""
    critical = stats.t.ppf(1 - level / 2, freedom)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def _check(noise: float, difference: float, count: int, power: float, level: float) -> None:
    check_positive(difference=difference, count=count)
    if not (noise >= 0 and np.isfinite(noise)):
        raise UserError(f"noise={noise!r}, expected a standard deviation: zero or more")
    if not 0 < level < power < 1:
        raise UserError(f"level={level!r} and power={power!r}: expected 0 < level < power < 1")


def _smallest(enough: Callable[[int], bool], low: int) -> int:
    """The smallest number from `low` on that is enough; more are, too."""
    if enough(low):
        return low
    high = 2 * low
    while not enough(high):
        if high >= MAX_RUNS:
            raise UserError(f"the difference is too small for this noise: it takes more than {MAX_RUNS:,} runs")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
