"""From the runs at several budgets to the optimum at each, and how far noise would have moved these.

Shapes: M budgets, K domains, J evaluation domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mde.errors import UserError
from mde.scaling.ddo import PowerLaws
from mde.scaling.effects import Effects


@dataclass(frozen=True)
class Point:
    """One budget's answer.

    Attributes:
      effects: what was measured.
      laws: fitted to it.
      optimum: the best quantities of the same total, tokens, [K].
      held: -1 where the least quantity holds them, 1 where the greatest does, 0 elsewhere, [K].
    """

    effects: Effects
    laws: PowerLaws
    optimum: np.ndarray
    held: np.ndarray


def solve(
    effects: Effects,
    goal: npt.ArrayLike,
    fit: str = "domain",
    floor: float | None = None,
    upper: npt.ArrayLike = np.inf,
) -> Point:
    """Laws and optimum at one budget.

    Args:
      effects: of its runs.
      goal: weight of each evaluation domain, [J].
      fit: `domain` or `joint`.
      floor: least quantity of a domain, in base quantities; by default as little as was measured.
      upper: tokens of each domain at most, [K] or one number.

    Raises:
      UserError: no law fits, or no quantities obey the bounds.
    """
    laws = effects.power_laws(goal, fit)
    least = effects.factors[:, 0] if floor is None else np.full(len(effects.names), floor)
    return Point(effects, laws, *laws.optimum(effects.budget, least * effects.base, upper))


def resampled_optima(
    measured: Sequence[Effects],
    goal: npt.ArrayLike,
    deviation: float,
    resamples: int,
    seed: int,
    fit: str = "domain",
    floor: float | None = None,
    upper: npt.ArrayLike = np.inf,
) -> np.ndarray:
    """Optima that other seeds might have led to: a parametric bootstrap of the fits at all budgets.

    Args:
      measured: effects at each of the M budgets.
      goal: weight of each evaluation domain, [J].
      deviation: standard deviation of the objective of one run.
      resamples: how often the noise is drawn.
      seed: of the noise.
      fit: as in `solve`.
      floor: as in `solve`.
      upper: as in `solve`.

    Returns:
      [n, M, K] tokens; n is less than `resamples` where noise left losses that no law fits.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in tqdm(range(resamples), "resample", unit="fit", leave=False):
        drawn = [each.resampled(goal, deviation, rng) for each in measured]
        try:
            found.append([solve(each, [1.0], fit, floor, upper).optimum for each in drawn])
        except UserError:
            continue
    return np.array(found).reshape(len(found), len(measured), len(measured[0].names))


def cautions(points: Sequence[Point]) -> list[str]:
    """Where the optima leave what was measured, a sentence each."""
    found = []
    for point in points:
        effects = point.effects
        for k, name in enumerate(effects.names):
            factor = point.optimum[k] / effects.base[k]
            where = f"domain {name!r} at {effects.budget:,.0f} tokens: its best quantity"
            if point.held[k]:
                bound = "least" if point.held[k] < 0 else "greatest"
                found.append(f"{where} is the {bound} that is allowed, {factor:.3g} times its base quantity")
            elif factor > effects.factors[k, 1]:
                found.append(
                    f"{where} is {factor:.3g} times its base quantity, {effects.factors[k, 1]:.3g} was measured"
                )
    return found
