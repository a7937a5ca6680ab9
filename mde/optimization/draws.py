"""Mixtures of a swarm: drawn at random around a prior, under constraints, before anything is trained.

Shapes: n mixtures, K training domains, U units: groups of domains, and the domains that are in none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from mde.errors import UserError
from mde.optimization import simplex
from mde.optimization.region import Region

TRIES = 2**20  # draws until constraints that next to none obeys are given up; half a minute for 17 domains
BLOCK = 2**14  # draws at a time
SAME = 1e-9  # mixtures that differ in no more of their tokens are one, whatever the floor


@dataclass(frozen=True)
class Law:
    """The distribution that mixtures are drawn from.

    A strength s is drawn for each mixture, log-uniform. Weights of units are Dirichlet(s × their prior), and those
    inside a group Dirichlet(s × the prior inside the group) of its weight. Weights below the floor become zero, and
    what else the group has, or the mixture if nothing is left of the group, grows in proportion.

    The mean is the prior, but for what the floor takes. A small strength prefers corners, a large one the prior.

    Source: RegMix, arXiv 2407.01492, `mixture_config/synthesize_mixture.py`; by levels in Olmix.

    Attributes:
      prior: [K], concentrations at a strength of one, zero or more; a domain of zero never has a weight.
      strengths: the min and the max.
      groups: by group, the columns of its domains; no domain is in two.
      floor: the min weight beside zero.
    """

    prior: np.ndarray
    strengths: tuple[float, float]
    groups: Sequence[np.ndarray] = ()
    floor: float = 0.0

    def __post_init__(self) -> None:
        least, most = self.strengths
        if not 0 < least <= most < np.inf:
            raise UserError(f"strengths from {least:g} to {most:g}, expected positive numbers, the smaller first")
        if not 0 <= self.floor < 1:
            raise UserError(f"floor={self.floor:g}, expected a weight, from 0 to below 1")


def temper(prior: np.ndarray, temperature: float, groups: Sequence[np.ndarray] = ()) -> np.ndarray:
    """A prior [K] raised to a power and normalised: the weights of units, and those inside each group; zeros stay.

    Args:
      prior: [K], zero or more.
      temperature: the power, as RegMix and Olmix call it: 1 leaves the prior, 0 makes what is in it alike.
      groups: as in `Law`.
    """
    if not 0 <= temperature < np.inf:
        raise UserError(f"temperature={temperature:g}, expected zero or more")

    def raised(parts: np.ndarray) -> np.ndarray:
        powers = np.where(parts > 0, parts, 1) ** temperature * (parts > 0)
        return powers / max(powers.sum(), np.finfo(float).tiny)

    units = _units(groups, np.ones(len(prior), bool))
    totals = raised(np.array([prior[unit].sum() for unit in units]))
    tempered = np.zeros(len(prior))
    for unit, total in zip(units, totals, strict=True):
        tempered[unit] = total * raised(prior[unit])
    return tempered


def draw(n: int, law: Law, seed: int, region: Region | None = None, distinct: bool = False) -> np.ndarray:
    """The first n mixtures [n, K] of a space-filling sequence that obey the constraints.

    Points of a scrambled Sobol sequence become mixtures, and those outside the region are passed over. So what is drawn
    has exactly the law given that the constraints hold, and fewer mixtures are a prefix of more. What has no chance
    is not left to chance: given weights are set aside, and groups of a given sum get it. The others have the same
    concentrations then as before, which for a Dirichlet distribution is the law given those weights.

    Args:
      n: number of mixtures.
      law: where they are drawn from.
      seed: of the sequence; the same seed gives the same mixtures.
      region: the constraints; the whole simplex if None.
      distinct: pass over mixtures, too, that differ from an earlier one in no more of their tokens than the floor.

    Raises:
      UserError: n below 1; too few of a million draws obey the constraints, or differ.
    """
    k = len(law.prior)
    if n < 1:
        raise UserError(f"{n} mixtures of {k} domains, expected at least one of each")
    region = Region.simplex(k) if region is None else region
    plan = _Plan(law, region)
    if distinct and n > 1 and plan.is_point:
        raise UserError(f"{n:,} mixtures are wanted, and the constraints leave only one")
    points = qmc.Sobol(plan.dimensions, scramble=True, rng=np.random.default_rng(seed))
    kept, obeyed, tried = np.zeros((0, k)), 0, 0
    while len(kept) < n and tried < TRIES:
        block = max(tried, 1 << (n - 1).bit_length()) if tried < BLOCK else BLOCK
        drawn = plan.mixtures(points.random(block))
        inside = region.contains(drawn)
        obeyed, tried = obeyed + int(inside.sum()), tried + block
        kept = _added(kept, drawn[inside], n, max(law.floor, SAME)) if distinct else np.vstack([kept, drawn[inside]])
    if len(kept) < n:
        raise _too_few(n, len(kept), obeyed, tried, bool(region.contains(plan.mean[None])[0]))
    return kept[:n]


def difference(mixtures: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The part of the tokens, [n], that mixtures [n, K] have elsewhere than another [K]: total variation."""
    return np.abs(mixtures - other).sum(axis=1) / 2


def distances(mixtures: np.ndarray) -> np.ndarray:
    """By mixture of [n, K], the difference to the mixture most like it, [n]; n is 2 or more."""
    return np.array([difference(np.delete(mixtures, i, axis=0), one).min() for i, one in enumerate(mixtures)])


class _Plan:
    """How points of the unit cube become mixtures.

    Attributes:
      dimensions: of the cube.
      is_point: whether all of them become the same mixture.
      mean: [K], of the law with what is given.
    """

    def __init__(self, law: Law, region: Region):
        given = (region.low == region.high) | (law.prior == 0)
        self.law = law
        self.start = np.where(given, region.low, 0.0)
        self.units = _units(law.groups, ~given)
        self.prior = np.array([law.prior[unit].sum() for unit in self.units])  # [U]
        self.sums = np.array([_given_sum(region, unit, self.start) for unit in self.units])  # [U], NaN where drawn
        self.free = np.isnan(self.sums)
        self.rest = 1 - self.start.sum() - self.sums[~self.free].sum()
        self.ranged = law.strengths[0] < law.strengths[1]
        inner = [len(unit) for unit in self.units if len(unit) > 1]
        self.is_point = self.free.sum() <= 1 and not inner
        self.dimensions = max(self.ranged + int(self.free.sum()) + sum(inner), 1)

        self.mean = self.start.copy()
        sums = np.where(self.free, self.rest * self.prior / max(self.prior[self.free].sum(), 1e-300), self.sums)
        for unit, total, prior in zip(self.units, sums, self.prior, strict=True):
            self.mean[unit] = total * law.prior[unit] / prior

    def mixtures(self, points: np.ndarray) -> np.ndarray:
        """Mixtures [n, K] out of points [n, dimensions]; where the floor leaves nothing, weights that sum to less."""
        least, most = self.law.strengths
        strength, left = np.full((len(points), 1), least), points
        if self.ranged:
            strength, left = np.exp(np.log(least) + points[:, :1] * np.log(most / least)), points[:, 1:]
        sums = np.tile(self.sums, (len(points), 1))
        if self.free.any():
            drawn, left = np.split(left, [self.free.sum()], axis=1)
            sums[:, self.free] = self.rest * simplex.dirichlet(drawn, strength * self.prior[self.free])
        weights = np.tile(self.start, (len(points), 1))
        for i, unit in enumerate(self.units):
            inside = np.ones((len(points), 1))
            if len(unit) > 1:
                drawn, left = np.split(left, [len(unit)], axis=1)
                inside = simplex.dirichlet(drawn, strength * (self.law.prior[unit] / self.prior[i]))
            weights[:, unit] = sums[:, [i]] * inside
        return self._floored(weights, sums) if self.law.floor else weights

    def _floored(self, weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Weights [n, K] without those below the floor; sums [n, U] of units are kept while something of them is."""
        kept = np.where(weights < self.law.floor, 0.0, weights)
        left = np.stack([kept[:, unit].sum(axis=1) for unit in self.units], axis=1) if self.units else sums
        alive = np.where(left > 0, sums, 0.0)
        total = alive[:, self.free].sum(axis=1, keepdims=True)
        growth = np.where(self.free, self.rest / np.where(total > 0, total, np.inf), 1.0)
        scale = alive * growth / np.where(left > 0, left, 1.0)
        floored = np.tile(self.start, (len(weights), 1))
        for i, unit in enumerate(self.units):
            floored[:, unit] = kept[:, unit] * scale[:, [i]]
        return floored


def _units(groups: Sequence[np.ndarray], free: np.ndarray) -> list[np.ndarray]:
    """The free domains of each group, and each free domain that is in none, by their columns, in the order of these."""
    grouped = np.zeros(len(free), bool)
    units = []
    for group in groups:
        grouped[group] = True
        units.append(group[free[group]])
    units += [np.array([k]) for k in np.flatnonzero(free & ~grouped)]
    return sorted((unit for unit in units if len(unit)), key=lambda unit: int(unit[0]))


def _given_sum(region: Region, unit: np.ndarray, given: np.ndarray) -> float:
    """What is left for a unit where the constraints give its sum together with given weights [K]; NaN elsewhere."""
    for member, low, high in zip(region.member > 0, region.group_low, region.group_high, strict=True):
        others = np.setdiff1d(np.flatnonzero(member), unit)
        if low == high and member[unit].all() and (region.low[others] == region.high[others]).all():
            return float(low - given[others].sum())
    return np.nan


def _added(kept: np.ndarray, more: np.ndarray, n: int, apart: float) -> np.ndarray:
    """The mixtures that are kept and the next ones of `more` that differ from all before in a greater part, up to n."""
    found = list(kept)
    for mixture in more[np.sort(np.unique(more, axis=0, return_index=True)[1])]:
        if len(found) < n and (not found or difference(np.array(found), mixture).min() > apart):
            found.append(mixture)
    return np.array(found).reshape(-1, more.shape[1])


def _too_few(n: int, kept: int, obeyed: int, tried: int, prior_obeys: bool) -> UserError:
    found = f"{n:,} mixtures are wanted, and of {tried:,} draws {obeyed:,} obey the constraints"
    if kept < obeyed:
        return UserError(f"{found}, {kept:,} of them distinct; a smaller floor or greater strengths leave more")
    if prior_obeys:
        return UserError(f"{found}; the prior does: greater strengths keep draws near it")
    return UserError(
        f"{found}; the prior does not: give one that does and greater strengths, or loosen the constraints"
    )
