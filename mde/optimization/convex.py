"""Convex losses minimised exactly, by CVXPY and Clarabel, with a bound on how far the answer is from the optimum.

A `Formula` becomes a CVXPY expression, a `Region` its constraints. A worst case is in epigraph form: min t such that
every function is at most t.
"""

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from mde.errors import UserError
from mde.optimization.losses import SHIFT, Differentiable, Formula, Penalised
from mde.optimization.region import PRECISE, TOLERANCE, Region

# Of Clarabel. It stops where it gains no more, at losses right to about 1e-9 and mixtures to 1e-7; `gap` says how far.
TIGHT = {"tol_gap_abs": 1e-14, "tol_gap_rel": 1e-14, "tol_feas": 1e-14}
FLOORS = (1e-13, 1e-11, 1e-9, 1e-7, 1e-6, 1e-5)  # smallest weights where a tangent is taken: at 0 a root's is vertical
TINY = (1e-5, 1e-6, 1e-7, 1e-8)  # an interior-point method leaves such weights where the optimum has none
GAIN = 1e-10  # of the loss, that such weights may cost


@dataclass(frozen=True)
class Solution:
    """The optimum of a convex loss.

    Attributes:
      mixture: [K].
      loss: its loss.
      gap: how far the loss is above the minimum at most, recomputed in float64 from the multipliers.
      tangent: value, point [K] and slope [K] of a linear function that is below the loss everywhere on the simplex.
    """

    mixture: np.ndarray
    loss: float
    gap: float
    tangent: tuple[float, np.ndarray, np.ndarray]


def is_convex_formula(loss: Any) -> bool:
    """Whether a loss is one that `Program` takes."""
    inner = loss.loss if isinstance(loss, Penalised) else loss
    return isinstance(inner, Formula) and inner.convex


class Program:
    """A convex loss over a region, compiled once.

    Args:
      loss: a convex `Formula`, or one with a price on divergence.
      region: the mixtures to choose from.
      radius: with a number, `solve` is asked for the optimum within this total variation distance of a mixture.
    """

    def __init__(self, loss: Differentiable, region: Region, radius: float | None = None):
        cp = _cvxpy()
        self._loss, self._region, self._radius = loss, region, radius
        self._price = loss.weight if isinstance(loss, Penalised) else 0.0
        formula = loss.loss if isinstance(loss, Penalised) else loss
        assert isinstance(formula, Formula)
        self._formula = formula
        self._x, top = cp.Variable(region.k), cp.Variable()
        self._below: Any = _functions(cp, formula, self._x) <= top
        constraints = [self._below, *_bounds(cp, region, self._x)]
        divergence: Any = _divergence(cp, region, self._x) if self._price or region.max_kl < np.inf else None
        self._ball: Any = None
        if region.max_kl < np.inf:
            self._ball = divergence <= region.max_kl
            constraints.append(self._ball)
        self._near = cp.Parameter(region.k)
        if radius is not None:
            constraints.append(cp.norm1(self._x - self._near) <= 2 * radius)
        objective = top if not self._price else top + self._price * divergence
        self._problem = cp.Problem(cp.Minimize(objective), constraints)
        lp = formula.is_linear and divergence is None
        # CVXPY's own interface to HiGHS prints a banner; SciPy's is as exact: its answers are vertices.
        exact = {"solver": cp.SCIPY, "scipy_options": {"method": "highs", **PRECISE}}
        self._how: dict[str, Any] = exact if lp else {"solver": cp.CLARABEL, **TIGHT}

    def solve(self, near: np.ndarray | None = None) -> Solution | None:
        """The optimum, near a mixture [K] where there is a radius; None where no mixture obeys the constraints.

        Raises:
          UserError: the solver gave up.
        """
        self._near.value = near
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a solution may be inaccurate: the gap says how much
            self._problem.solve(**self._how)
        status = self._problem.status
        if status in ("infeasible", "infeasible_inaccurate"):
            return None
        if self._x.value is None:
            name = self._how["solver"]
            raise UserError(f"{name} did not solve the convex search ({status}); --method=refinement does without it")
        mixture = self._feasible(np.asarray(self._x.value), near)
        loss = float(self._loss(mixture[None])[0])
        bound, tangent = max(self._tangents(np.asarray(self._x.value), near), key=lambda found: found[0])
        return Solution(mixture, loss, max(loss - bound, 0.0), tangent)

    def _feasible(self, mixture: np.ndarray, near: np.ndarray | None) -> np.ndarray:
        """The solver's mixture, moved into the region where it is off by rounding, and without weights so small."""
        region = self._region
        found = self._into(mixture, near)
        limit = self._loss(found[None])[0] + GAIN
        for tiny in TINY:
            trimmed = np.where((found < tiny) & (region.low <= 0), 0.0, found)
            trimmed = self._into(trimmed / trimmed.sum(), near)
            if self._loss(trimmed[None])[0] <= limit:
                return trimmed
        return found

    def _into(self, mixture: np.ndarray, near: np.ndarray | None) -> np.ndarray:
        mixture = self._region.project(mixture[None])[0]
        if near is None:
            return mixture
        distance, radius = np.abs(mixture - near).sum() / 2, self._radius
        assert radius is not None
        if distance <= radius or not self._region.contains(near[None])[0]:
            return mixture
        return near + radius / distance * (mixture - near)

    def _tangents(self, mixture: np.ndarray, near: np.ndarray | None) -> list[tuple[float, Any]]:
        """Lower bounds on the loss in the region, and the tangents that they are from.

        With the multipliers of the solver, weights of the functions that sum to one and the price of the ball, the
        Lagrangian lies below the loss, and its tangent at any point below the Lagrangian (it is convex); the minimum of
        the tangent over the bounds is a linear program.
        """
        weights = np.maximum(np.atleast_1d(self._below.dual_value), 0)
        weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
        extra = 0.0 if self._ball is None else max(float(self._ball.dual_value), 0.0)
        price = self._price + extra
        ball = None if near is None or self._radius is None else (near, self._radius)
        found = []
        for floor in FLOORS:
            point = np.where(self._region.high > 0, np.maximum(mixture, floor), mixture)
            value = float(weights @ self._formula.functions(point[None])[0])
            slope = self._formula.slope(point, weights)
            if price:
                value += price * float(self._region.divergence(point[None])[0])
                slope = slope + price * self._region.divergence_slope(point)
            if extra:
                value -= extra * self._region.max_kl
            least = self._region.vertex(slope, ball)
            found.append((value + slope @ (least - point), (value, point, slope)))
        return found


def _functions(cp: Any, formula: Formula, x: Any) -> Any:
    """The values [M] of a convex formula."""
    found = formula.linear @ x + formula.offset
    if formula.root.any():
        found = found + formula.root @ cp.sqrt(x)
    if formula.log.any():
        found = found + formula.log @ cp.log(x + SHIFT)
    if formula.factors.any():
        found = found + formula.factors @ cp.exp(formula.exponents @ x)
    return found


def _bounds(cp: Any, region: Region, x: Any) -> list[Any]:
    """Bounds on weights and on their sums."""
    found = [cp.sum(x) == 1, x >= region.low, x <= region.high]
    if len(region.member):
        given = region.group_high - region.group_low < TOLERANCE
        sums = region.member @ x
        if given.any():
            found.append(sums[given] == region.group_low[given])
        if not given.all():
            found += [sums[~given] >= region.group_low[~given], sums[~given] <= region.group_high[~given]]
    return found


def _divergence(cp: Any, region: Region, x: Any) -> Any:
    """KL(x ‖ prior); weights that the prior has not are bounded by zero."""
    assert region.prior is not None
    used = np.flatnonzero(region.prior > 0)
    return cp.sum(cp.rel_entr(x[used], region.prior[used]))


def _cvxpy() -> Any:
    """CVXPY, without JAX, which it would import to see whether a solver that is written in it (MPAX) is there."""
    hidden = "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        import cvxpy
    finally:
        if hidden:
            del sys.modules["jax"]
    return cvxpy
