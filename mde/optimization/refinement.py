"""Search with nothing but values: ever smaller steps around the best mixtures seen.

Trees, whose gradients are zero, and evaluators that have none to give are searched like anything else.
"""

import numpy as np

from mde.errors import UserError
from mde.optimization.losses import Loss
from mde.optimization.trust import Area

NOTHING = 1e-9  # weights below this are rounding, not data
TRIM = np.geomspace(1e-6, 1e-2, 13)  # weights below these are tried without


def evaluate(loss: Loss, points: np.ndarray) -> np.ndarray:
    """Losses [C] of mixtures [C, K].

    Raises:
      UserError: a loss that is not one finite number per mixture.
    """
    values = np.asarray(loss(points), dtype=np.float64)
    if values.shape != (len(points),):
        raise UserError(f"the loss of {len(points)} mixtures has shape {values.shape}, expected one number each")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise UserError(f"the loss of mixture {np.round(points[row], 4).tolist()} is {values[row]}, expected finite")
    return values


def best(points: np.ndarray, values: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` best, the best first; among equals, of which trees make many, the one that comes first."""
    order = np.argsort(values, kind="stable")[:top]
    return points[order], values[order]


def refine(
    loss: Loss,
    region: Area,
    elite: np.ndarray,
    values: np.ndarray,
    rounds: int,
    per_round: int,
    seed: int,
) -> tuple[np.ndarray, float, int]:
    """The best mixture [K] found around an elite [E, K] with losses [E], its loss, and how many were evaluated.

    The elite comes first if nothing better is found.
    """
    rng = np.random.default_rng(seed)
    top, evaluations = len(elite), 0
    elite, values = best(elite, values, top)
    for step in np.geomspace(0.5, 1e-4, rounds):
        proposals = _propose(region, elite, step, per_round, rng)
        proposed = evaluate(loss, proposals)
        elite, values = best(np.vstack([elite, proposals]), np.concatenate([values, proposed]), top)
        evaluations += len(proposals)
    return elite[0], float(values[0]), evaluations


def refine_together(
    losses: Loss, region: Area, points: np.ndarray, rounds: int, per_round: int, seed: int
) -> np.ndarray:
    """The best mixture found for each of M losses that lie near each other, [M, K].

    A proposal around the best of any of them is one to all, so that mixtures are turned into features once.

    Args:
      losses: mixtures [C, K] -> losses [M, C].
      region: where to search.
      points: mixtures of the region to start from, [C, K]; around the first most is proposed.
      rounds: of ever smaller steps.
      per_round: mixtures that a round proposes.
      seed: of the proposals.
    """
    rng = np.random.default_rng(seed)
    found, least = _best_of_each(losses, points)
    for step in np.geomspace(0.5, 1e-3, rounds):
        proposals = _propose(region, np.vstack([points[:1], found]), step, per_round, rng)
        proposed, values = _best_of_each(losses, proposals)
        better = values < least
        found, least = np.where(better[:, None], proposed, found), np.where(better, values, least)
    return found


def _best_of_each(losses: Loss, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = losses(points)
    return points[values.argmin(axis=1)], values.min(axis=1)


def _propose(region: Area, elite: np.ndarray, step: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Proposals [n + trims, K], at most `TRIM` trims, around the elite, as far as `step`, in equal parts of four kinds.

    The difference of two of the elite follows long valleys; a transfer between two domains can empty one of them, and
    a projected step several, so that faces are reached and not only approached; a multiplied weight keeps its scale,
    which small ones need. Half of the proposals start from the best, half from anywhere in the elite.
    Last come the best without its smallest weights, as each threshold of `TRIM` has it.
    """
    k = elite.shape[1]
    base = elite[np.where(rng.random(n) < 0.5, 0, rng.integers(len(elite), size=n))]
    size = step * rng.exponential(size=(n, 1))
    noise = rng.normal(size=(n, k))
    pair = rng.integers(len(elite), size=(2, n))
    difference = base + rng.uniform(0, 2, (n, 1)) * (elite[pair[0]] - elite[pair[1]])
    giver, taker = rng.integers(k, size=(2, n))
    moved = np.minimum(size[:, 0], (base - region.low)[np.arange(n), giver])[:, None]
    transfer = base + moved * (np.eye(k)[taker] - np.eye(k)[giver])
    stepped = base + size * noise / np.sqrt(k)
    multiplied = base * np.exp(np.clip(4 * size, 0, 4) * noise)
    kinds = np.stack([difference, transfer, stepped, multiplied / multiplied.sum(axis=1, keepdims=True)])
    trimmed = np.where(elite[:1] < TRIM[:, None], 0, elite[:1])
    trimmed = trimmed[trimmed.any(axis=1)]  # of many domains all may have small weights
    chosen = np.vstack([kinds[np.arange(n) % 4, np.arange(n)], trimmed / trimmed.sum(axis=1, keepdims=True)])
    feasible = region.nearby(chosen)
    feasible = np.where((feasible < NOTHING) & (region.low == 0), 0, feasible)
    return feasible / feasible.sum(axis=1, keepdims=True)
