"""Where the best mixture moves with the budget (AutoScale, arXiv 2407.20177, section 4 and theorem 1).

Where each domain's loss falls as a power law, equal marginal gains make the logarithms of the best quantities move
along a straight line as the budget grows: `log N_i = a_i + b_i · s`, with one s a budget. Two optima fix the line, and
the next one is `N3 = N2 · N1⁻¹ · N2`; more than two are fitted by least squares.

Shapes: M budgets, K domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from mde.errors import UserError

ROUNDING = 1e-12  # of a logarithm of a sum: a budget may be all that the domains have


@dataclass(frozen=True)
class BudgetPath:
    """The line on which the best quantities move: `log tokens_i = start_i + direction_i · s`.

    Attributes:
      names: [K].
      start: [K], at the smallest of the budgets it was fitted to (s = 0).
      direction: [K]; s = 1 is the largest of them.
      positions: s of each of the M budgets.
      budgets: tokens of each, [M].
      misfit: the largest error of a logarithm of a quantity; nothing for two budgets.
    """

    names: tuple[str, ...]
    start: np.ndarray
    direction: np.ndarray
    positions: np.ndarray
    budgets: np.ndarray
    misfit: float

    def at(self, budget: float, upper: npt.ArrayLike = np.inf) -> np.ndarray:
        """The best quantities [K] for a budget in tokens.

        Args:
          budget: tokens.
          upper: tokens of each domain at most, [K] or one number; a domain that has no more stays there, and the others
            go on to where they make up the budget.

        Raises:
          UserError: a budget below the largest one that was fitted, or one that the path never comes to.
        """
        if not budget >= self.budgets[-1] * (1 - 1e-9):
            raise UserError(f"budget of {budget:g} tokens: the path starts from optima at up to {self.budgets[-1]:g}")
        log_upper = np.log(np.broadcast_to(np.asarray(upper, np.float64), self.start.shape))

        def logs(s: float) -> np.ndarray:
            return np.minimum(self.start + self.direction * s, log_upper)

        def excess(s: float) -> float:
            return np.logaddexp.reduce(logs(s)) - np.log(budget)

        last = 1.0
        while excess(last) < -ROUNDING:
            last *= 2
            if last > 1e6:
                raise UserError(f"budget of {budget:g} tokens: no domain's best quantity grows that far")
        first = 0.0 if excess(0.0) <= 0 else -1.0
        s = optimize.brentq(excess, first, last, xtol=1e-15, rtol=1e-15) if excess(last) > 0 else last
        tokens = np.exp(logs(s))
        return tokens * (budget / tokens.sum())

    def after(self, steps: int) -> np.ndarray:
        """Quantities [K] that many steps beyond the last of two optima: `N2 · (N2 / N1)^steps`, as the paper has it."""
        return np.exp(self.start + self.direction * (1 + steps))

    def cautions(
        self, budget: float, available: npt.ArrayLike | None = None, small: float = 0.01, max_epochs: float = 1.0
    ) -> list[str]:
        """What speaks against the quantities predicted for a budget, one sentence each.

        Args:
          budget: tokens.
          available: tokens that each domain has, [K].
          small: a weight below this is called vanishing.
          max_epochs: how often a domain may be read.
        """
        tokens = self.at(budget)
        weights, before = tokens / budget, np.exp(self.start + self.direction)
        found = []
        span = self.budgets[-1] / self.budgets[0]
        if budget / self.budgets[-1] > span**2:
            found.append(
                f"the budget is {budget / self.budgets[-1]:.3g} times the largest that was fitted, "
                f"and the fits span a factor of {span:.3g}"
            )
        for k, name in enumerate(self.names):
            if self.direction[k] <= 0:
                found.append(f"domain {name!r}: its best quantity does not grow with the budget")
            if weights[k] < small <= before[k] / before.sum():
                fall = f"{before[k] / before.sum():.2%} to {weights[k]:.2%}"
                found.append(f"domain {name!r}: its weight vanishes ({fall})")
            stock = np.inf if available is None else np.broadcast_to(np.asarray(available, np.float64), tokens.shape)[k]
            if tokens[k] > stock * max_epochs:
                found.append(f"domain {name!r}: {tokens[k]:.3g} tokens are {tokens[k] / stock:.2f} times what there is")
        return found


def fit_path(names: Sequence[str], optima: npt.ArrayLike) -> BudgetPath:
    """The line through the optima at two budgets, or the nearest one to more (least squares of the logarithms).

    Args:
      names: the K domains.
      optima: best quantities in tokens, [M, K], budgets increasing.

    Raises:
      UserError: fewer than two optima, a quantity that is not positive, budgets that do not increase.
    """
    tokens = np.asarray(optima, np.float64)
    if tokens.ndim != 2 or len(tokens) < 2 or tokens.shape[1] != len(names):
        raise UserError(f"optima of shape {tokens.shape}, expected at least two budgets of {len(names)} domains")
    bad = ~(np.isfinite(tokens) & (tokens > 0))
    if bad.any():
        m, k = np.argwhere(bad)[0]
        raise UserError(f"optimum {m}, domain {names[k]!r}: {tokens[m, k]:g} tokens, expected a positive number")
    budgets = tokens.sum(axis=1)
    if not (np.diff(budgets) > 0).all():
        raise UserError(f"budgets of {', '.join(f'{b:g}' for b in budgets)} tokens, expected them to increase")
    logs = np.log(tokens)
    mean = logs.mean(axis=0)
    # The first principal axis is the least-squares line; two points lie on it exactly.
    left, sizes, right = np.linalg.svd(logs - mean, full_matrices=False)
    along = left[:, 0] * sizes[0]
    positions = (along - along[0]) / (along[-1] - along[0])
    direction = right[0] * (along[-1] - along[0])
    start = mean + right[0] * along[0]
    misfit = float(np.abs(start + positions[:, None] * direction - logs).max())
    return BudgetPath(tuple(names), start, direction, positions, budgets, misfit)
