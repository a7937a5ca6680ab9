"""The mixtures that are allowed: bounds and caps on the simplex. Sees numbers only.

Shapes: N problems, K experts, F experts whose weight is free, G caps, R inequalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mde.errors import UserError
from mde.optimization import simplex

NOTHING = 1e-12  # room or weight below this is rounding


@dataclass(frozen=True)
class Polytope:
    """Weights on the simplex with `lower` ≤ λ ≤ `upper` and `cap_rows @ λ` ≤ `cap_limits`; `polytope` makes one.

    Attributes:
      names: of the K experts.
      lower: [K]; equal to `upper` where the weight is fixed.
      upper: [K].
      cap_rows: [G, K].
      cap_limits: [G].
      start: [K], a point inside.
    """

    names: Sequence[str]
    lower: np.ndarray
    upper: np.ndarray
    cap_rows: np.ndarray
    cap_limits: np.ndarray
    start: np.ndarray

    @property
    def free(self) -> np.ndarray:
        """[F] indices of the weights that are not fixed by their bounds."""
        return np.flatnonzero(self.upper - self.lower > NOTHING)


def polytope(
    names: Sequence[str],
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    caps: tuple[np.ndarray, np.ndarray] | None = None,
) -> Polytope:
    """Checks the bounds [K] and caps ([G, K] rows and [G] limits) on the weights of the named experts.

    Raises:
      UserError: bounds that cross or leave no mixture; a cap that no mixture within the bounds satisfies; caps that
        leave no room together.
    """
    k = len(names)
    low = _vector("lower", lower, np.zeros(k), names)
    high = np.minimum(_vector("upper", upper, np.ones(k), names), 1.0)
    for i in np.flatnonzero(~((low >= 0) & (low <= high))).tolist():
        raise UserError(
            f"domain {names[i]}: lower bound {low[i]:g} and upper bound {high[i]:g}, expected 0 ≤ lower ≤ upper"
        )
    if low.sum() > 1 + NOTHING:
        i = int(np.argmax(low))
        raise UserError(
            f"lower bounds sum to {low.sum():g}, expected at most 1; the largest is {low[i]:g} of {names[i]}"
        )
    if high.sum() < 1 - NOTHING:
        i = int(np.argmin(high))
        raise UserError(
            f"upper bounds sum to {high.sum():g}, expected at least 1; the least is {high[i]:g} of {names[i]}"
        )
    # A weight is fixed where its bounds meet, or where the others' leave it no room.
    least, most = np.maximum(low, 1 - (high.sum() - high)), np.minimum(high, 1 - (low.sum() - low))
    fixed = most - least <= NOTHING
    low, high = np.where(fixed, least, low), np.where(fixed, least, high)
    start = simplex.centre(low, high)
    if caps is None:
        return Polytope(names, low, high, np.zeros((0, k)), np.zeros(0), start)
    rows, limits = (np.asarray(part, np.float64) for part in caps)
    if rows.ndim != 2 or rows.shape[1] != k or limits.shape != (len(rows),):
        raise UserError(f"caps of shapes {rows.shape} and {limits.shape}: expected [caps, {k}] and [caps]")
    if not (np.isfinite(rows).all() and np.isfinite(limits).all()):
        raise UserError("caps: expected finite numbers")
    whole = Polytope(names, low, high, rows, limits, start)
    needed = least_linear(whole, rows)
    for i in np.flatnonzero(needed > limits + NOTHING).tolist():
        members = ", ".join(names[j] for j in np.flatnonzero(rows[i]).tolist())
        raise UserError(f"cap {i} on {members} is {limits[i]:g}, but the bounds leave {needed[i]:g} at the least")
    return Polytope(names, low, high, rows, limits, _inside(whole))


def _vector(what: str, given: np.ndarray | None, default: np.ndarray, names: Sequence[str]) -> np.ndarray:
    values = default if given is None else np.asarray(given, np.float64)
    if values.shape != default.shape:
        raise UserError(f"{what} bounds of shape {values.shape}, expected one for each of the {len(names)} domains")
    return values


def _inside(allowed: Polytope) -> np.ndarray:
    """The point [K] whose least room in any inequality is largest."""
    from scipy.optimize import linprog

    free = allowed.free
    if not len(free):
        return allowed.start
    rows, limits = inequalities(allowed)
    rows, limits = rows[np.isfinite(limits)], limits[np.isfinite(limits)]
    found = linprog(
        c=np.append(np.zeros(len(free)), -1.0),
        A_ub=np.column_stack([rows, np.ones(len(rows))]),
        b_ub=limits,
        A_eq=np.append(np.ones(len(free)), 0.0)[None],
        b_eq=[1 - (allowed.lower.sum() - allowed.lower[free].sum())],
        bounds=[*[(0, 1)] * len(free), (None, 1)],
    )
    if found.x is None or found.x[-1] < 1e-9:
        raise UserError("caps: together with the bounds they leave no room; state weights that are fixed as bounds")
    point = allowed.lower.copy()
    point[free] = found.x[:-1]
    return point


def inequalities(allowed: Polytope) -> tuple[np.ndarray, np.ndarray]:
    """Rows [R, F] and limits [R] on the free weights: F lower bounds, F upper bounds, caps.

    An upper bound that the lower bounds imply has limit infinity.
    """
    free, low, high = allowed.free, allowed.lower, allowed.upper
    rows = np.vstack([-np.eye(len(free)), np.eye(len(free)), allowed.cap_rows[:, free]])
    fixed = low - np.where(np.isin(np.arange(len(low)), free), low, 0)
    implied = high >= 1 - (low.sum() - low) - NOTHING
    upper_limits = np.where(implied[free], np.inf, high[free])
    return rows, np.concatenate([-low[free], upper_limits, allowed.cap_limits - allowed.cap_rows @ fixed])


def least_linear(allowed: Polytope, costs_NxK: np.ndarray) -> np.ndarray:
    """[N] least of `costs @ λ` within the bounds, caps aside."""
    return (costs_NxK * simplex.cheapest(costs_NxK, allowed.lower, allowed.upper)).sum(axis=1)
