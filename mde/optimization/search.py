"""The mixture of lowest loss, under constraints: one entry point, and the way to search that the loss allows."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from mde.errors import UserError, unknown
from mde.optimization import convex, descent, refinement, simplex, trust
from mde.optimization.losses import Differentiable, Loss
from mde.optimization.refinement import best, evaluate
from mde.optimization.region import Region
from mde.optimization.trust import Area, TrustRegion

METHODS = ("auto", "exact", "gradient", "simulation", "refinement")
STARTS = 16  # of the descents of all restarts: the best simulated ones; two where all lead to the same optimum


@dataclass(frozen=True)
class Optimum:
    """What a search found.

    Attributes:
      mixture: [K], the best candidate of all that were evaluated.
      loss: its loss.
      method: how it was found, one of `METHODS`.
      evaluations: number of mixtures evaluated, not counting the steps of a descent or solver.
      gap: how far the loss is above the minimum at most; None where the loss is not known to be convex.
      restarts: how many independent searches it is the best of.
      loss_spread: how far the worst of these searches is above the best; None for a single one.
      mixture_spread: the largest total variation distance between two of their mixtures; None for a single one.
    """

    mixture: np.ndarray
    loss: float
    method: str
    evaluations: int
    gap: float | None = None
    restarts: int = 1
    loss_spread: float | None = None
    mixture_spread: float | None = None


def minimize(
    loss: Loss,
    region: Area,
    seed: int,
    method: str = "auto",
    n_candidates: int = 4096,
    rounds: int = 30,
    top: int = 64,
    start: np.ndarray | None = None,
    concentration: float | np.ndarray | None = None,
    restarts: int = 1,
) -> Optimum:
    """Searches a region of the simplex for the min loss.

    The result is the same for the same seed, and never worse than any mixture the search has seen, those of `start`
    that lie in the region included (with `simulation` it is the mean of the best instead).

    Args:
      loss: mixtures [C, K] -> losses [C], nats per token, of many mixtures a call. A convex `losses.Formula` is
        minimised exactly, another `losses.Differentiable` by descent from many starts, anything else by simulation and
        refinement.
      region: the mixtures to choose from.
      seed: of the draws.
      method: `auto` chooses as said. `exact`: of a convex loss, with its gap; a formula by CVXPY, others by descent.
        `gradient`: multi-start descent. `simulation`: the mean of the `top` best of `n_candidates` draws (RegMix, arXiv
        2407.01492, section 3.4). `refinement`: rounds of ever smaller steps around the `top` best.
      n_candidates: mixtures simulated at first; a quarter of them are proposed in each round.
      rounds: rounds of refinement.
      top: how many of the best are averaged, and kept as the elite around which a round proposes.
      start: further candidates, [C0, K], such as the mixtures that were trained.
      concentration: of the Dirichlet distribution drawn from, one number or [K]; by default half of the draws are
        uniform and half prefer faces.
      restarts: independent searches with seeds of their own, of which the best is taken; what is exact is solved once.

    Raises:
      UserError: settings that make no sense; a method that the loss does not allow; `start` is not made of mixtures;
        no mixture is in the region; a loss that is not finite.
    """
    if method not in METHODS:
        raise unknown("search method", method, METHODS)
    if n_candidates < 1 or top < 1 or rounds < 0 or restarts < 1:
        raise UserError(
            f"n_candidates={n_candidates}, top={top}, rounds={rounds}, restarts={restarts}: expected at least 1, 1, 0 "
            "and 1"
        )
    if method in ("auto", "exact") and convex.is_convex_formula(loss):
        return _exact(loss, region)
    if method == "auto":
        method = "gradient" if isinstance(loss, Differentiable) else "refinement"
    if method in ("gradient", "exact") and getattr(loss, "convex", False) and isinstance(region, Region):
        restarts = 1  # all end at the same optimum, and the gap says how near

    def once(number: int) -> Optimum:
        spaced = seed + 1000 * number  # a search uses a few seeds from its own on
        starts = max(STARTS // restarts, 4)
        return _from_draws(loss, region, spaced, method, n_candidates, rounds, top, start, concentration, starts)

    found = [once(number) for number in range(restarts)]
    least = min(found, key=lambda one: one.loss)
    if restarts == 1:
        return least
    mixtures = np.stack([one.mixture for one in found])
    return replace(
        least,
        evaluations=sum(one.evaluations for one in found),
        restarts=restarts,
        loss_spread=max(one.loss for one in found) - least.loss,
        mixture_spread=float(pdist(mixtures, "cityblock").max() / 2),
    )


def _exact(loss: Any, region: Area) -> Optimum:
    """The optimum of a convex formula."""
    if isinstance(region, TrustRegion):
        mixture, value, gap, looked = trust.minimize(loss, region)
        return Optimum(mixture, value, "exact", looked, gap)
    found = convex.Program(loss, region).solve()
    if found is None:
        raise UserError("no mixture obeys the bounds on weights, groups and ratios at once")
    return Optimum(found.mixture, found.loss, "exact", 1, found.gap)


def _from_draws(
    loss: Loss,
    region: Area,
    seed: int,
    method: str,
    n_candidates: int,
    rounds: int,
    top: int,
    start: np.ndarray | None,
    concentration: float | np.ndarray | None,
    starts: int,
) -> Optimum:
    points = _candidates(region, n_candidates, seed, start, concentration)
    values = evaluate(loss, points)
    elite, elite_values = best(points, values, top)
    average = elite.mean(axis=0)
    if method == "simulation":
        average = average if region.contains(average[None])[0] else region.project(average[None])[0]
        return Optimum(average, float(evaluate(loss, average[None])[0]), method, len(points) + 1)
    if region.contains(average[None])[0]:  # always, where the region is convex
        points = np.vstack([points, average])
        elite, elite_values = best(
            np.vstack([elite, average]), np.append(elite_values, evaluate(loss, average[None])), top
        )
    if method == "refinement":
        per_round = max(n_candidates // 4, 1)
        mixture, value, more = refinement.refine(loss, region, elite, elite_values, rounds, per_round, seed)
        return Optimum(mixture, value, method, len(points) + more)
    used = elite[: 2 if getattr(loss, "convex", False) else starts]
    return _by_gradient(loss, region, method, used, len(points))


def _by_gradient(loss: Loss, region: Area, method: str, starts: np.ndarray, evaluations: int) -> Optimum:
    if not isinstance(loss, Differentiable):
        raise UserError(f"search method {method!r} needs a loss with a gradient; 'refinement' takes any")
    if method == "exact" and not loss.convex:
        raise UserError("search method 'exact' needs a convex loss; 'gradient' takes any differentiable one")
    distance = None
    if isinstance(region, TrustRegion):
        points, values = descent.descend(loss, region, starts)
    elif region.max_kl < np.inf:
        points, values, distance = descent.descend_in_ball(loss, region, starts)
    else:
        points, values = descent.descend(loss, region, starts)
        distance = descent.gap(loss, region, points[np.argmin(values)])
    least = int(np.argmin(values))
    return Optimum(points[least], float(values[least]), method, evaluations, distance if loss.convex else None)


def _candidates(
    region: Area, n: int, seed: int, start: np.ndarray | None, concentration: float | np.ndarray | None
) -> np.ndarray:
    """What the caller adds, and draws; without a concentration half of these near or on faces, and the corners."""
    if concentration is not None:
        parts = [region.sample(n, seed, concentration)]
    else:
        parts = [np.full((1, region.k), 1 / region.k), simplex.corners(region.k), region.sample(n - n // 2, seed)]
        if n >= 4:
            parts += [region.sample(n // 2 - n // 4, seed + 1, concentration=0.3), region.boundary(n // 4, seed + 2)]
    points = np.vstack([_given(region, start), *parts])
    inside = region.contains(points)
    return np.vstack([points[inside], region.project(points[~inside])])


def _given(region: Area, start: np.ndarray | None) -> np.ndarray:
    """The caller's candidates, checked."""
    if start is None:
        return np.empty((0, region.k))
    return simplex.check_mixtures(start, [str(i) for i in range(region.k)], where="start of the search")
