"""The mixture of least loss, under constraints: one entry point, and the way to search that the loss allows."""

from dataclasses import dataclass

import numpy as np

from mde.errors import UserError, unknown
from mde.optimization import descent, refinement, simplex
from mde.optimization.losses import Differentiable, Linear, Loss
from mde.optimization.refinement import best, evaluate
from mde.optimization.region import Region

METHODS = ("auto", "exact", "gradient", "simulation", "refinement", "vizier")
STARTS = 16  # of the descent: the best simulated ones; two where all lead to the same optimum


@dataclass(frozen=True)
class Optimum:
    """What a search found.

    Attributes:
      mixture: [K], the best candidate of all that were evaluated.
      loss: its loss.
      method: how it was found, one of `METHODS`.
      evaluations: number of mixtures evaluated, not counting the steps of a descent.
      gap: how far the loss is above the least one at most; None where the loss is not known to be convex.
    """

    mixture: np.ndarray
    loss: float
    method: str
    evaluations: int
    gap: float | None = None


def minimize(
    loss: Loss,
    region: Region,
    seed: int,
    method: str = "auto",
    n_candidates: int = 4096,
    rounds: int = 30,
    top: int = 64,
    start: np.ndarray | None = None,
    concentration: float | np.ndarray | None = None,
) -> Optimum:
    """Searches a region of the simplex for the least loss.

    The result is the same for the same seed, and never worse than any mixture the search has seen, those of `start`
    that lie in the region included (with `simulation` it is the mean of the best instead).

    Args:
      loss: mixtures [C, K] -> losses [C], nats per token, of many mixtures a call. A `losses.Linear` is minimised
        exactly, a `losses.Differentiable` by descent from many starts, anything else by simulation and refinement.
      region: the mixtures to choose from.
      seed: of the draws.
      method: `auto` chooses as said. `exact`: a linear program, or the descent of a convex loss, with its gap.
        `gradient`: multi-start descent. `simulation`: the mean of the `top` best of `n_candidates` draws (RegMix, arXiv
        2407.01492, section 3.4). `refinement`: rounds of ever smaller steps around the `top` best. `vizier`: OSS
        Vizier's Eagle strategy with `n_candidates` trials.
      n_candidates: mixtures simulated at first; a quarter of them are proposed in each round.
      rounds: rounds of refinement.
      top: how many of the best are averaged, and kept as the elite around which a round proposes.
      start: further candidates, [C0, K], such as the mixtures that were trained.
      concentration: of the Dirichlet distribution drawn from, one number or [K]; by default half of the draws are
        uniform and half prefer faces.

    Raises:
      UserError: settings that make no sense; a method that the loss does not allow; `start` is not made of mixtures;
        no mixture is in the region; a loss that is not finite.
    """
    if method not in METHODS:
        raise unknown("search method", method, METHODS)
    if n_candidates < 1 or top < 1 or rounds < 0:
        raise UserError(f"n_candidates={n_candidates}, top={top}, rounds={rounds}: expected at least 1, 1 and 0")
    program = isinstance(loss, Linear) and region.max_kl == np.inf
    if method == "auto":
        method = "exact" if program else "gradient" if isinstance(loss, Differentiable) else "refinement"
    if isinstance(loss, Linear) and program and method == "exact":
        mixture = loss.minimum(region)
        return Optimum(mixture, float(loss(mixture[None])[0]), method, 1, gap=0.0)
    if method == "vizier":
        from mde.optimization import vizier

        mixture, _ = vizier.search(loss, region, seed, n_candidates)
        given = _given(region, start)  # Eagle has no way to be told of them
        points = np.vstack([mixture, given[region.contains(given)]])
        points, values = best(points, evaluate(loss, points), 1)
        return Optimum(points[0], float(values[0]), method, n_candidates + len(given))

    points = _candidates(region, n_candidates, seed, start, concentration)
    values = evaluate(loss, points)
    elite, elite_values = best(points, values, top)
    average = elite.mean(axis=0)  # in the region, which is convex
    average_loss = float(evaluate(loss, average[None])[0])
    if method == "simulation":
        return Optimum(average, average_loss, method, len(points) + 1)
    elite, elite_values = best(np.vstack([elite, average]), np.append(elite_values, average_loss), top)
    if method == "refinement":
        per_round = max(n_candidates // 4, 1)
        mixture, value, more = refinement.refine(loss, region, elite, elite_values, rounds, per_round, seed)
        return Optimum(mixture, value, method, len(points) + 1 + more)
    starts = elite[: 2 if getattr(loss, "convex", False) else STARTS]
    return _by_gradient(loss, region, method, starts, len(points) + 1)


def _by_gradient(loss: Loss, region: Region, method: str, starts: np.ndarray, evaluations: int) -> Optimum:
    if not isinstance(loss, Differentiable):
        raise UserError(f"search method {method!r} needs a loss with a gradient; 'refinement' takes any")
    if method == "exact" and not loss.convex:
        raise UserError("search method 'exact' needs a convex loss; 'gradient' takes any differentiable one")
    if region.max_kl < np.inf:
        points, values, distance = descent.descend_in_ball(loss, region, starts)
    else:
        points, values = descent.descend(loss, region, starts)
        distance = descent.gap(loss, region, points[np.argmin(values)])
    least = int(np.argmin(values))
    gap = distance if loss.convex else None
    return Optimum(points[least], float(values[least]), method, evaluations, gap)


def _candidates(
    region: Region, n: int, seed: int, start: np.ndarray | None, concentration: float | np.ndarray | None
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


def _given(region: Region, start: np.ndarray | None) -> np.ndarray:
    """The caller's candidates, checked."""
    if start is None:
        return np.empty((0, region.k))
    return simplex.check_mixtures(start, [str(i) for i in range(region.k)], where="start of the search")
