"""The mixtures that constraints leave: a part of the simplex, as numbers.

A region is the simplex over K domains, cut by bounds on weights, bounds on sums of weights (those of a group, or
weighted ones, which can keep a ratio), and a ball of Kullback-Leibler divergence around a prior. All of these are
convex, and every method below takes many points at once.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize, special

from mde.errors import UserError
from mde.optimization import simplex

TOLERANCE = 1e-9  # how far a mixture may be outside and still count as inside; float64 sums leave about 1e-15
FAR = 1.5  # more than any two mixtures are apart
STEPS = 8  # of a random walk, a dimension; from a lopsided start the mean weight then is right to .006
PRECISE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}  # of linear programs


@dataclass(frozen=True)
class Region:
    """Bounds on weights and on their sums, and the max divergence from a prior.

    Attributes:
      low: [K], min weights.
      high: [K], max weights.
      member: [G, K], weights of the sums: one where a group has a domain, zero elsewhere; any others for ratios, whose
        weighed sum is zero.
      group_low: [G], min sums.
      group_high: [G], max sums.
      prior: [K], the centre of the ball; None for none.
      max_kl: nats, the max KL(mixture ‖ prior).
    """

    low: np.ndarray
    high: np.ndarray
    member: np.ndarray
    group_low: np.ndarray
    group_high: np.ndarray
    prior: np.ndarray | None = None
    max_kl: float = np.inf

    @classmethod
    def simplex(cls, k: int) -> "Region":
        """Every mixture of k domains."""
        return cls(np.zeros(k), np.ones(k), np.zeros((0, k)), np.zeros(0), np.zeros(0))

    @property
    def k(self) -> int:
        """Number of domains."""
        return len(self.low)

    @property
    def is_box(self) -> bool:
        """Whether weights have bounds and nothing else is asked of them."""
        return not len(self.member) and self.max_kl == np.inf

    def contains(self, points: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
        """Which rows of [C, K] are mixtures that obey every constraint to within `tolerance`, [C]."""
        sums = points @ self.member.T
        inside = np.abs(points.sum(axis=1) - 1) <= tolerance
        inside &= (points >= self.low - tolerance).all(axis=1) & (points <= self.high + tolerance).all(axis=1)
        inside &= (sums >= self.group_low - tolerance).all(axis=1) & (sums <= self.group_high + tolerance).all(axis=1)
        return inside & (self.divergence(points) <= self.max_kl + tolerance)

    def divergence(self, points: np.ndarray) -> np.ndarray:
        """KL(mixture ‖ prior) of each row, [C], in nats; zero without a prior."""
        if self.prior is None:
            return np.zeros(len(points))
        return special.rel_entr(np.maximum(points, 0), self.prior).sum(axis=1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """The nearest mixture within all bounds, in Euclidean distance, to each row of [C, K]; exact to rounding.

        All rows at once where there are only bounds on weights; with groups, a small quadratic program per row, about
        0.3 ms. What is too divergent from the prior is pulled in, and then need not be the nearest.
        """
        nearest = simplex.project(points, self.low, self.high)
        if self.is_box:
            return nearest
        outside = np.flatnonzero(~self.contains(nearest))
        if len(outside) and len(self.member):
            nearest[outside] = [self._nearest(point) for point in points[outside]]
        nearest[outside] = self.pull(nearest[outside])
        return nearest

    def nearby(self, points: np.ndarray) -> np.ndarray:
        """A mixture of the region not far from each row of [C, K]: the nearest for bounds on weights, pulled in."""
        near = simplex.project(points, self.low, self.high)
        return near if self.is_box else np.where(self.contains(near)[:, None], near, self.pull(near))

    def pull(self, points: np.ndarray) -> np.ndarray:
        """For each row of [C, K] the last mixture of the region on the way to it from the region's centre."""
        direction_CK = (points - self.centre) @ self._span @ self._span.T
        length = np.minimum(self._room(np.broadcast_to(self.centre, points.shape), direction_CK)[1], 1)
        return np.clip(self.centre + length[:, None] * direction_CK, self.low, self.high)

    def sample(self, n: int, seed: int, concentration: float | np.ndarray = 1.0) -> np.ndarray:
        """n mixtures [n, K] all over the region; the same for the same seed.

        Space-filling draws of the Dirichlet distribution are kept where they are inside. The others walk at random
        within the region (hit-and-run; Smith, 1984), which becomes uniform whatever its shape.
        """
        drawn = self.low + (1 - self.low.sum()) * simplex.space_filling(n, self.k, seed, concentration)
        outside = np.flatnonzero(~self.contains(drawn))
        drawn[outside] = self._walk(drawn[outside], np.random.default_rng(seed))
        return drawn

    def boundary(self, n: int, seed: int) -> np.ndarray:
        """n mixtures [n, K] all over the region's faces of every dimension: the nearest to points far outside."""
        direction = simplex.space_filling(n, self.k, seed) - self.centre
        length = np.linalg.norm(direction, axis=1, keepdims=True)
        return self.project(self.centre + FAR * direction / np.maximum(length, 1e-300))

    def divergence_slope(self, point: np.ndarray) -> np.ndarray:
        """Gradient [K] of the divergence at a point [K]; zero where the prior has no weight."""
        assert self.prior is not None
        used = self.prior > 0
        return np.where(used, np.log(np.maximum(point, 1e-300) / np.where(used, self.prior, 1.0)) + 1, 0.0)

    def vertex(self, slope: np.ndarray, ball: tuple[np.ndarray, float] | None = None) -> np.ndarray:
        """A mixture [K] of min `slope @ mixture`, exact: a vertex of the bounds (the divergence is not looked at).

        Args:
          slope: [K].
          ball: a mixture [K], and the total variation distance from it within which to stay.

        Raises:
          UserError: no mixture obeys all bounds.
        """
        if not len(self.member) and ball is None:
            return simplex.cheapest(slope[None], self.low, self.high)[0]
        rows, limits = np.vstack([self.member, -self.member]), np.concatenate([self.group_high, -self.group_low])
        bounds = np.stack([self.low, self.high], axis=1)
        total = np.ones((1, self.k))
        if ball is None:
            found = optimize.linprog(slope, rows, limits, total, [1.0], bounds, "highs", options=PRECISE).x
        else:  # what is added to the mixture and what is taken from it
            near, radius = ball
            split = np.hstack([np.eye(self.k), -np.eye(self.k)])
            rows = np.vstack([rows, np.eye(self.k), -np.eye(self.k)])
            limits = np.concatenate([limits, self.high, -self.low]) - rows @ near
            rows, limits = np.vstack([rows @ split, np.repeat([1.0, 0.0], self.k)]), np.append(limits, radius)
            moved = optimize.linprog(
                slope @ split, rows, limits, total @ split, [1 - near.sum()], (0, 1), "highs", options=PRECISE
            ).x
            found = None if moved is None else near + split @ moved
        if found is None:
            raise UserError("no mixture obeys the bounds on weights, groups and ratios at once")
        return found

    @functools.cached_property
    def centre(self) -> np.ndarray:
        """A mixture [K] away from every constraint that leaves any room.

        Raises:
          UserError: no mixture obeys all constraints.
        """
        if len(self.member):
            sides = np.vstack([np.eye(self.k), self.member])
            centre = np.mean([self.vertex(sign * side) for side in sides for sign in (-1, 1)], axis=0)
        else:
            centre = simplex.centre(self.low, self.high)
        if self.prior is None or self.max_kl == np.inf:
            return centre
        nearest = self._least_divergent()
        least = self.divergence(nearest[None])[0]
        if least > self.max_kl:
            raise UserError(
                f"max_kl={self.max_kl:g}: the mixture nearest to the prior that obeys the other constraints is "
                f"{least:.4g} nats away from it"
            )
        aim = least + 0.5 * (self.max_kl - least)
        towards = centre - nearest
        return nearest + last_inside(nearest[None], towards[None], self.divergence, aim)[0] * towards

    def _least_divergent(self) -> np.ndarray:
        """The mixture nearest to the prior in divergence, among those within the bounds."""
        from mde.optimization import convex, losses  # which use regions

        assert self.prior is not None
        if self.contains(self.prior[None])[0]:
            return self.prior
        bounds = dataclasses.replace(self, max_kl=np.inf)
        divergence = losses.Penalised(losses.Formula(0.0, np.zeros(self.k)), bounds, 1.0)
        found = convex.Program(divergence, bounds).solve()
        assert found is not None  # the centre obeys the bounds
        return found.mixture

    @functools.cached_property
    def _span(self) -> np.ndarray:
        """[K, D]: orthonormal directions in which the region extends, across all that is as good as equal."""
        sums = self.member @ self.centre
        pinned = np.minimum(self.centre - self.low, self.high - self.centre) < TOLERANCE
        tied = np.minimum(sums - self.group_low, self.group_high - sums) < TOLERANCE
        return linalg.null_space(np.vstack([np.ones((1, self.k)), np.eye(self.k)[pinned], self.member[tied]]))

    def _room(self, points: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far [C] points inside may go back and forth along directions [C, K] of the span."""
        position = np.hstack([points, points @ self.member.T])
        speed = np.hstack([direction, direction @ self.member.T])
        still = np.abs(speed) < 1e-14
        below = np.concatenate([self.low, self.group_low]) - position
        above = np.concatenate([self.high, self.group_high]) - position
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = below / speed, above / speed
        ahead = np.where(still, np.inf, np.maximum(one, other)).min(axis=1)
        behind = np.where(still, -np.inf, np.minimum(one, other)).max(axis=1)
        ahead, behind = np.clip(ahead, 0, 1e9), np.clip(behind, -1e9, 0)
        if self.max_kl == np.inf:
            return behind, ahead
        forth = last_inside(points, ahead[:, None] * direction, self.divergence, self.max_kl)
        back = last_inside(points, behind[:, None] * direction, self.divergence, self.max_kl)
        return behind * back, ahead * forth

    def _walk(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Hit-and-run: each row goes to a uniform point of a random line through it, again and again."""
        points = self.centre + 0.9 * (self.pull(points) - self.centre)
        dimensions = self._span.shape[1]
        for _ in range(STEPS * dimensions):
            direction = rng.normal(size=(len(points), dimensions)) @ self._span.T
            behind, ahead = self._room(points, direction)
            points = points + rng.uniform(behind, ahead)[:, None] * direction
        return np.clip(points, self.low, self.high)

    def _nearest(self, point: np.ndarray) -> np.ndarray:
        """The mixture within the bounds that is nearest to a point [K], exact.

        In coordinates of the span around the point this is the shortest vector that obeys inequalities, which has the
        residual of a non-negative least squares problem (Lawson and Hanson, Solving Least Squares Problems, ch. 23).
        """
        sides = np.vstack([np.eye(self.k), -np.eye(self.k), self.member, -self.member])
        limits = np.concatenate([self.low, -self.high, self.group_low, -self.group_high])
        foot = self.centre + self._span @ (self._span.T @ (point - self.centre))
        loose = np.linalg.norm(sides @ self._span, axis=1) > TOLERANCE
        if not loose.any():  # the region is a point
            return self.centre
        inequalities, needed = (sides @ self._span)[loose], (limits - sides @ foot)[loose]
        system = np.vstack([inequalities.T, needed])
        goal = np.append(np.zeros(len(inequalities.T)), 1.0)
        residual = system @ optimize.nnls(system, goal)[0] - goal
        return foot - self._span @ (residual[:-1] / residual[-1])


def last_inside(start: np.ndarray, direction: np.ndarray, value: Callable, cap: float) -> np.ndarray:
    """The largest t of [0, 1], [C], with `value(start + t * direction) <= cap`, for a convex value within it at 0."""
    least, most = np.zeros(len(start)), np.ones(len(start))
    everything = value(start + direction) <= cap
    for _ in range(30):  # halvings: 1e-9 of the way
        middle = (least + most) / 2
        inside = value(start + middle[:, None] * direction) <= cap
        least, most = np.where(inside, middle, least), np.where(inside, most, middle)
    return np.where(everything, 1.0, least)
