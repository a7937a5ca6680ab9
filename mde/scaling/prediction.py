"""From the runs at several budgets to the optimum at each.

Shapes: M budgets, K domains, J evaluation domains.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mde.scaling.ddo import PowerLaws
from mde.scaling.effects import Effects

EXACT = 1e-6  # misfit of a law that runs through its losses, in units of the base loss


@dataclass(frozen=True)
class Point:
    """One budget's answer.

    Attributes:
      effects: what was measured.
      laws: fitted to it.
      optimum: the best quantities of the same total, tokens, [K].
      held: -1 where the min quantity holds them, 1 where the max does, 0 elsewhere, [K].
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
    nearest: bool = False,
) -> Point:
    """Laws and optimum at one budget.

    Args:
      effects: of its runs.
      goal: weight of each evaluation domain, [J].
      fit: `domain` or `joint`.
      floor: min quantity of a domain, in base quantities; by default as little as was measured.
      upper: tokens of each domain at most, [K] or one number.
      nearest: whether a domain that no law fits gets the nearest one.

    Raises:
      UserError: no law fits, or no quantities obey the bounds.
    """
    laws = effects.power_laws(goal, fit, nearest)
    least = effects.factors[:, 0] if floor is None else np.full(len(effects.names), floor)
    return Point(effects, laws, *laws.optimum(effects.budget, least * effects.base, upper))


def cautions(points: Sequence[Point]) -> list[str]:
    """Where the optima leave what was measured, and where budgets are too small to say much, a sentence each."""
    found = []
    budgets = np.array([point.effects.budget for point in points])
    falls = -np.diff([point.laws.level for point in points]) / np.diff(np.log(budgets))
    for m in np.flatnonzero(np.diff(falls) > 0):
        found.append(
            f"the base run's objective falls faster beyond {budgets[m + 1]:,.0f} tokens than before "
            f"({falls[m + 1]:.3g} against {falls[m]:.3g} for a factor e of tokens): smaller budgets end early in "
            "training, and power laws describe what comes later"
        )
    return found + [caution for point in points for caution in _cautions_of(point)]


def _cautions_of(point: Point) -> Iterator[str]:
    effects, laws = point.effects, point.laws
    factors = point.optimum / effects.base
    missed = (laws.misfit > EXACT) & (not len(effects.others))
    beyond = (factors > effects.factors[:, 1]) & (point.held == 0)
    for which, numbers, what in (
        (missed, laws.misfit * laws.level, "no power law falls as evenly as the losses, the nearest misses them by"),
        (point.held < 0, factors, "the best quantity is the min that is allowed, in base quantities"),
        (point.held > 0, factors, "the best quantity is the max that is allowed, in base quantities"),
        (beyond, factors, "the best quantity is beyond what was measured, in base quantities"),
    ):
        domains = [f"{effects.names[k]} {numbers[k]:.2g}" for k in np.flatnonzero(which)]
        if domains:
            yield f"at {effects.budget:,.0f} tokens {what}: {', '.join(domains)}"
