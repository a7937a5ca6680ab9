"""The mixtures that the data support: those of a region that are near a proxy run.

Distance is total variation, the part of the tokens that would have to move. The mixtures within a distance of some run
are a union of balls, which is not convex, but each of its balls is.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from mde.errors import UserError
from mde.optimization import convex
from mde.optimization.losses import Differentiable
from mde.optimization.region import TOLERANCE, Region, last_inside

FLOOR = 1e-3  # weights of a run where the tangents are taken that tell which balls to look into first
MOST = 64  # balls looked into; the gap says what the others could hold
SURE = 1e-9  # nats per token: a ball whose bound is no further below the best found is not looked into


@dataclass(frozen=True)
class TrustRegion:
    """The mixtures of a region within a distance of a proxy run. A search takes it in place of a region.

    Attributes:
      region: what the constraints leave.
      runs: [G, K], mixtures of the proxy runs.
      radius: the largest total variation distance to the nearest of them.

    Raises:
      UserError: no mixture of the region is near a run.
    """

    region: Region
    runs: np.ndarray
    radius: float

    max_kl = np.inf  # a search need not know of the ball around the prior: `project` keeps to it

    def __post_init__(self) -> None:
        nearest = self.region.project(self.runs)
        distance = np.abs(nearest - self.runs).sum(axis=1) / 2
        if not (distance <= self.radius).any():
            raise UserError(
                f"max_distance={self.radius:.4g}: no mixture that obeys the constraints is so near a proxy run; the "
                f"nearest is {distance.min():.4g} away"
            )

    @property
    def k(self) -> int:
        """Number of domains."""
        return self.region.k

    @property
    def low(self) -> np.ndarray:
        """[K], smallest weights."""
        return self.region.low

    @property
    def high(self) -> np.ndarray:
        """[K], largest weights."""
        return self.region.high

    @functools.cached_property
    def _anchored(self) -> tuple[np.ndarray, np.ndarray]:
        """The runs [A, K] that have a mixture of the region near them, and that mixture [A, K]: themselves, mostly."""
        inside = self.region.contains(self.runs)[:, None]
        anchors = np.where(inside, self.runs, self.region.project(self.runs))
        near = np.abs(anchors - self.runs).sum(axis=1) / 2 <= self.radius
        return self.runs[near], anchors[near]

    def contains(self, points: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
        """Which rows of [C, K] are in the region and near a run, to within `tolerance`, [C]."""
        near = cdist(points, self.runs, "cityblock").min(axis=1) / 2 <= self.radius + tolerance
        return self.region.contains(points, tolerance) & near

    def project(self, points: np.ndarray) -> np.ndarray:
        """For each row of [C, K] the nearest mixture of the region, pulled to the run that is nearest to it."""
        return self._pulled(self.region.project(points))

    def nearby(self, points: np.ndarray) -> np.ndarray:
        """As `project`, with a mixture of the region that need not be the nearest."""
        return self._pulled(self.region.nearby(points))

    def sample(self, n: int, seed: int, concentration: float | np.ndarray = 1.0) -> np.ndarray:
        """n mixtures [n, K] all over the balls: draws from the region, each pulled to a random run."""
        runs, anchors = self._anchored
        which = np.random.default_rng(seed).integers(len(runs), size=n)
        return self._towards(self.region.sample(n, seed, concentration), runs[which], anchors[which])

    def boundary(self, n: int, seed: int) -> np.ndarray:
        """n mixtures [n, K] on the region's faces, each pulled to a random run."""
        runs, anchors = self._anchored
        which = np.random.default_rng(seed).integers(len(runs), size=n)
        return self._towards(self.region.boundary(n, seed), runs[which], anchors[which])

    def _pulled(self, points: np.ndarray) -> np.ndarray:
        runs, anchors = self._anchored
        which = cdist(points, runs, "cityblock").argmin(axis=1)
        return self._towards(points, runs[which], anchors[which])

    def _towards(self, points: np.ndarray, runs: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        """For each of [C, K] the last mixture near its run on the way to it from the run's anchor."""

        reach = np.abs(points - runs).sum(axis=1) / 2
        part = np.minimum(self.radius / np.maximum(reach, 1e-300), 1)
        apart = np.flatnonzero((anchors != runs).any(axis=1))  # of runs that do not obey the constraints themselves
        if len(apart):
            start, of = anchors[apart], runs[apart]

            def distance(found: np.ndarray) -> np.ndarray:
                return np.abs(found - of).sum(axis=1) / 2

            part[apart] = last_inside(start, points[apart] - start, distance, self.radius)
        return np.where(part[:, None] == 1, points, anchors + part[:, None] * (points - anchors))


Area = Region | TrustRegion  # what a search takes


def minimize(loss: Differentiable, trusted: TrustRegion) -> tuple[np.ndarray, float, float, int]:
    """The optimum of a convex formula among the mixtures near a run: its mixture, loss, gap, and balls looked into.

    Every ball is a convex problem. They are looked into in the order of lower bounds on their losses, which are from
    tangents at the runs and at the optima found so far, until no bound is below the best loss: then it is the optimum
    over all of them. After `MOST` the search stops, and the gap is larger.
    """
    program = convex.Program(loss, trusted.region, trusted.radius)
    best, lowest, looked = None, np.inf, 0
    bounds = _first_bounds(loss, trusted)
    left = np.ones(len(bounds), bool)
    while left.any():
        i = int(np.where(left, bounds, np.inf).argmin())
        if best is not None and (bounds[i] >= best.loss - SURE or looked >= MOST):
            break
        left[i], looked = False, looked + 1
        found = program.solve(trusted.runs[i])
        if found is None:  # the ball lies outside of the region
            continue
        if best is None or found.loss < best.loss:
            best = found
        lowest = min(lowest, found.loss - found.gap)
        value, point, slope = found.tangent
        tangents = value + (trusted.runs - point) @ slope
        everywhere = np.broadcast_to(slope, trusted.runs.shape)
        bounds = np.maximum(bounds, tangents - _decrease(everywhere, trusted))
    if best is None:
        raise UserError(f"max_distance={trusted.radius:.4g}: no mixture that obeys the constraints is so near a run")
    lowest = min(lowest, np.min(bounds, where=left, initial=np.inf))
    return best.mixture, best.loss, max(best.loss - lowest, 0.0), looked


def _first_bounds(loss: Differentiable, trusted: TrustRegion) -> np.ndarray:
    """Lower bounds on a convex loss in the ball around each run, from a tangent near the run, [G]."""
    free = trusted.high > 0
    points = np.where(free, np.maximum(trusted.runs, FLOOR), 0.0)
    values, slopes = loss.value_and_gradient(points)
    slopes = np.where(free, slopes, slopes.max(axis=1, keepdims=True))  # the others have no weight to be given
    tangents = values + np.sum(slopes * (trusted.runs - points), axis=1)
    return tangents - _decrease(slopes, trusted)


def _decrease(slopes: np.ndarray, trusted: TrustRegion) -> np.ndarray:
    """How much a linear function of each slope [G, K] can fall within the radius of each run and under the caps, [G].

    Tokens move from the domains of the largest slopes to those of the smallest that have room; what they gain is
    concave in how many move, and piecewise linear.
    """
    runs, order = trusted.runs, np.argsort(slopes, axis=1, kind="stable")
    steps = np.take_along_axis(slopes, order, axis=1)
    room = np.take_along_axis(np.maximum(trusted.high - runs, 0), order, axis=1)
    mass = np.take_along_axis(runs, order, axis=1)[:, ::-1]
    found = np.zeros(len(runs))
    for i, radius in enumerate(np.minimum(trusted.radius, room.sum(axis=1))):
        taken, given = np.append(0, np.cumsum(mass[i])), np.append(0, np.cumsum(room[i]))
        saved, spent = np.append(0, np.cumsum(mass[i] * steps[i, ::-1])), np.append(0, np.cumsum(room[i] * steps[i]))
        moved = np.minimum(np.concatenate([taken, given]), radius)
        found[i] = np.max(np.interp(moved, taken, saved) - np.interp(moved, given, spent))
    return found
