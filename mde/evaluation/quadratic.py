"""Small convex quadratic programs on the simplex, many at once, by a primal-dual interior point method.

Mehrotra's predictor and corrector (Nocedal and Wright, "Numerical Optimization", 2nd ed., section 16.6).
Shapes: N problems, F variables, R inequalities.
"""

from typing import NamedTuple

import numpy as np

_ITERATIONS = 60
_PATIENCE = 8  # iterations without progress, after which rounding has the say
_EXACT = 1e-14  # complementarity and residuals, relative to the scale of the problem, at which a problem is solved
_RIDGE = 1e-14  # keeps the linear systems regular where two experts are identical; the residuals do not see it


class _Point(NamedTuple):
    """Where the iteration is, or a step of it: x [N, F], slacks and multipliers [N, R], the price of the sum [N]."""

    x: np.ndarray
    slack: np.ndarray
    price: np.ndarray
    total: np.ndarray


class _Residual(NamedTuple):
    """What is left of the conditions of an optimum, shaped as in `_Point`."""

    dual: np.ndarray
    slack: np.ndarray
    total: np.ndarray


def minimize(
    curvature_NxFxF: np.ndarray,
    slope_NxF: np.ndarray,
    rows_RxF: np.ndarray,
    limits_R: np.ndarray,
    start_F: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises ½ xᵀHx + cᵀx subject to Σx = Σstart and rows @ x ≤ limits.

    Args:
      curvature_NxFxF: H, positive semidefinite.
      slope_NxF: c.
      rows_RxF: the inequalities, which all problems share.
      limits_R: their limits; infinity for none.
      start_F: a point that satisfies all of them strictly.

    Returns:
      The points [N, F] and the multipliers of the inequalities [N, R].
    """
    real = np.isfinite(limits_R)
    limits = rows_RxF[real], limits_R[real], start_F
    program = _Program(curvature_NxFxF, slope_NxF, *limits)
    found = program.unlimited()
    inside = (found.slack >= 0).all(axis=1) & (program.residual(found)[1] <= _EXACT)
    if not inside.all():
        limited = _Program(curvature_NxFxF[~inside], slope_NxF[~inside], *limits).limited(start_F)
        for every, some in zip(found, limited, strict=True):
            every[~inside] = some
    multipliers = np.zeros((len(slope_NxF), len(limits_R)))
    multipliers[:, real] = found.price * program.scale[:, None]
    return found.x, multipliers


def _choose(which_N: np.ndarray, one: _Point, other: _Point) -> _Point:
    return _Point(*(np.where(which_N.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(one, other, strict=True)))


class _Program:
    """The problems, scaled so that their coefficients are about one."""

    def __init__(
        self, curvature: np.ndarray, slope: np.ndarray, rows: np.ndarray, limits: np.ndarray, start: np.ndarray
    ):
        scale = np.abs(curvature).max(axis=(1, 2)) + np.ptp(slope, axis=1)
        self.scale = np.where(scale > 0, scale, 1.0)
        self.curvature = curvature / self.scale[:, None, None]
        self.slope = (slope - slope.mean(axis=1, keepdims=True)) / self.scale[:, None]
        self.rows, self.limits, self.total = rows, limits, start.sum()

    def unlimited(self) -> _Point:
        """The optima without the inequalities."""
        n, f = self.slope.shape
        system = np.zeros((n, f + 1, f + 1))
        system[:, :f, :f] = self.curvature
        system[:, range(f), range(f)] += _RIDGE
        system[:, :f, -1] = system[:, -1, :f] = 1
        right = np.column_stack([-self.slope, np.full(n, self.total)])
        found = np.linalg.solve(system, right[..., None])[..., 0]
        x = found[:, :f]
        return _Point(x, self.limits - x @ self.rows.T, np.zeros((n, len(self.rows))), found[:, -1])

    def limited(self, start: np.ndarray) -> _Point:
        """The optima, from a point inside."""
        n, r = len(self.slope), len(self.limits)
        at = _Point(
            np.tile(start, (n, 1)), np.tile(self.limits - self.rows @ start, (n, 1)), np.ones((n, r)), np.zeros(n)
        )
        best, least, stalled = at, np.full(n, np.inf), np.zeros(n, int)
        for _ in range(_ITERATIONS):
            residual, error = self.residual(at)
            better = error < least
            best, least = _choose(better, at, best), np.where(better, error, least)
            stalled = np.where(better, 0, stalled + 1)
            going = (least > _EXACT) & (stalled < _PATIENCE)
            if not going.any():
                break
            at = _choose(going, self.advance(at, residual), best)
        return best

    def residual(self, at: _Point) -> tuple[_Residual, np.ndarray]:
        """What is left of the conditions, and the largest error [N] in any, complementarity included."""
        dual = np.einsum("nij,nj->ni", self.curvature, at.x) + self.slope + at.price @ self.rows + at.total[:, None]
        residual = _Residual(dual, at.x @ self.rows.T + at.slack - self.limits, at.x.sum(axis=1) - self.total)
        parts = np.column_stack([*residual, at.slack * at.price])
        return residual, np.abs(parts).max(axis=1)

    def advance(self, at: _Point, residual: _Residual) -> _Point:
        """One predictor and corrector."""
        n, f = at.x.shape
        # Multipliers stay unknowns of the system, which is larger and far better conditioned than without them.
        r = len(self.rows)
        system = np.zeros((n, f + r + 1, f + r + 1))
        system[:, :f, :f] = self.curvature
        system[:, range(f), range(f)] += _RIDGE
        system[:, :f, f:-1], system[:, f:-1, :f] = self.rows.T, self.rows
        system[:, range(f, f + r), range(f, f + r)] = -at.slack / at.price
        system[:, :f, -1] = system[:, -1, :f] = 1

        def solve(relaxed: np.ndarray) -> _Point:
            """The step after which each slack times its multiplier is less by `relaxed`, to first order."""
            right = np.column_stack([-residual.dual, relaxed / at.price - residual.slack, -residual.total])
            found = np.linalg.solve(system, right[..., None])[..., 0]
            x, price = found[:, :f], found[:, f:-1]
            return _Point(x, -residual.slack - x @ self.rows.T, price, found[:, -1])

        product = at.slack * at.price
        affine = solve(product)
        size = self._longest(at, affine)
        reached = (at.slack + size * affine.slack) * (at.price + size * affine.price)
        mean, reached_mean = (x.mean(axis=1, keepdims=True) for x in (product, reached))
        centre = (reached_mean / mean) ** 3 * mean
        step = solve(product + affine.slack * affine.price - centre)
        size = self._longest(at, step)
        x, slack, price = (a + size * d for a, d in zip(at[:3], step[:3], strict=True))
        return _Point(x, slack, price, at.total + size[:, 0] * step.total)

    def _longest(self, at: _Point, step: _Point) -> np.ndarray:
        """[N, 1] share of the step, at most 1, that keeps positive what must be."""
        now, change = np.hstack([at.slack, at.price]), np.hstack([step.slack, step.price])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            until = np.where(change < 0, -now / change, np.inf)
        return np.minimum(1, 0.995 * until.min(axis=1, keepdims=True, initial=np.inf))
