"""How many seeds it takes to tell two mixtures apart."""

import numpy as np
from scipy import stats

from mde.errors import UserError, check_positive

MAX_SEEDS = 1_000_000


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
    freedom = seeds - 1
    critical = stats.t.ppf(1 - level / comparisons / 2, freedom)
    shift = abs(difference) / noise * np.sqrt(seeds / 2)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


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
    check_positive(difference=difference, comparisons=comparisons)
    if not (noise >= 0 and np.isfinite(noise)):
        raise UserError(f"noise={noise!r}, expected a standard deviation: zero or more")
    if not 0 < level < power < 1:
        raise UserError(f"level={level!r} and power={power!r}: expected 0 < level < power < 1")

    def enough(seeds: int) -> bool:
        return power_of_seeds(seeds, noise, difference, comparisons, level) >= power

    high = 2
    while not enough(high):
        if high >= MAX_SEEDS:
            raise UserError(
                f"difference={difference:g} is too small for a noise of {noise:g}: more than {MAX_SEEDS:,} seeds"
            )
        high *= 2
    low = high // 2
    while high - low > 1 and high > 2:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
