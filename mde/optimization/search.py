"""The mixture of least predicted loss, for any regressor: simulation over the simplex, then local refinement.

RegMix (arXiv 2407.01492, section 3.4) draws many mixtures and averages the best of them. Here that average is one
candidate more, and rounds of ever smaller steps around the best follow. Only values of the loss are used, so trees,
whose gradients are zero, are searched like anything else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mde.errors import UserError
from mde.optimization import simplex

NOTHING = 1e-9  # shares below this are rounding, not data
TRIM = np.geomspace(1e-6, 1e-2, 13)  # shares below these are tried without
Loss = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> [C]


@dataclass(frozen=True)
class Optimum:
    """What a search found.

    Attributes:
      mixture: [K], the best candidate of all that were evaluated.
      loss: its loss.
      simulated: [K], the mean of the `top` best simulated candidates, before refinement: RegMix's proposal.
      simulated_loss: its loss.
      evaluations: number of mixtures evaluated.
    """

    mixture: np.ndarray
    loss: float
    simulated: np.ndarray
    simulated_loss: float
    evaluations: int


def minimize(
    loss: Loss,
    k: int,
    seed: int,
    n_candidates: int = 4096,
    rounds: int = 30,
    top: int = 64,
    start: np.ndarray | None = None,
) -> Optimum:
    """Searches the simplex over k domains for the least loss.

    The result is the same for the same seed, and never worse than any mixture the search has seen, `start` included.
    Among equals, of which trees make many, the one seen first is kept.

    Args:
      loss: mixtures [C, k] -> losses [C], nats per token; called once a round.
      k: number of domains.
      seed: of the draws.
      n_candidates: mixtures simulated at first; a quarter of them are proposed in each round.
      rounds: rounds of refinement; 0 leaves RegMix's simulation.
      top: how many of the best are averaged, and kept as the elite around which a round proposes.
      start: further candidates, [C0, k], such as the mixtures that were trained.

    Raises:
      UserError: no candidate or `top` below 1; `start` is not made of mixtures; a loss that is not finite.
    """
    if n_candidates < 1 or top < 1 or rounds < 0:
        raise UserError(f"n_candidates={n_candidates}, top={top}, rounds={rounds}: expected at least 1, 1 and 0")
    rng = np.random.default_rng(seed)
    points = _simulate(n_candidates, k, seed, start)
    values = _evaluate(loss, points)
    elite, elite_values = _best(points, values, top)
    simulated = elite.mean(axis=0)
    simulated_loss = float(_evaluate(loss, simulated[None])[0])
    elite, elite_values = _best(np.vstack([elite, simulated]), np.append(elite_values, simulated_loss), top)
    evaluations = len(points) + 1

    per_round = max(n_candidates // 4, 1)
    for step in np.geomspace(0.5, 1e-4, rounds):
        proposals = _propose(elite, step, per_round, rng)
        proposed = _evaluate(loss, proposals)
        elite, elite_values = _best(np.vstack([elite, proposals]), np.concatenate([elite_values, proposed]), top)
        evaluations += len(proposals)
    return Optimum(elite[0], float(elite_values[0]), simulated, simulated_loss, evaluations)


def _simulate(n: int, k: int, seed: int, start: np.ndarray | None) -> np.ndarray:
    """Half uniform on the simplex, half near its faces; the corners, the centre, and what the caller adds."""
    sparse = n // 2
    parts = [np.full((1, k), 1 / k), simplex.corners(k), simplex.space_filling(n - sparse, k, seed)]
    if sparse:
        parts.append(simplex.space_filling(sparse, k, seed + 1, concentration=0.3))
    if start is not None:
        parts.insert(0, simplex.check_mixtures(start, [str(i) for i in range(k)], where="start of the search"))
    return np.vstack(parts)


def _evaluate(loss: Loss, points: np.ndarray) -> np.ndarray:
    values = np.asarray(loss(points), dtype=np.float64)
    if values.shape != (len(points),):
        raise UserError(f"the loss of {len(points)} mixtures has shape {values.shape}, expected one number each")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise UserError(f"the loss of mixture {np.round(points[row], 4).tolist()} is {values[row]}, expected finite")
    return values


def _best(points: np.ndarray, values: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(values, kind="stable")[:top]
    return points[order], values[order]


def _propose(elite: np.ndarray, step: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Proposals [n + trims, K] around the elite, as far as `step`, in equal parts of four kinds.

    The difference of two of the elite follows long valleys; a transfer between two domains can empty one of them, and
    a projected step several, so that faces are reached and not only approached; a multiplied share keeps its scale,
    which small ones need. Half of the proposals start from the best, half from anywhere in the elite.
    Last come the best without its smallest shares, as each threshold of `TRIM` has it.
    """
    k = elite.shape[1]
    base = elite[np.where(rng.random(n) < 0.5, 0, rng.integers(len(elite), size=n))]
    size = step * rng.exponential(size=(n, 1))
    noise = rng.normal(size=(n, k))
    pair = rng.integers(len(elite), size=(2, n))
    difference = simplex.project(base + rng.uniform(0, 2, (n, 1)) * (elite[pair[0]] - elite[pair[1]]))
    giver, taker = rng.integers(k, size=(2, n))
    moved = np.minimum(size[:, 0], base[np.arange(n), giver])[:, None]
    transfer = base + moved * (np.eye(k)[taker] - np.eye(k)[giver])
    projected = simplex.project(base + size * noise / np.sqrt(k))
    multiplied = base * np.exp(np.clip(4 * size, 0, 4) * noise)
    kinds = np.stack([difference, transfer, projected, multiplied])
    trimmed = np.where(elite[:1] < TRIM[:, None], 0, elite[:1])
    chosen = np.vstack([kinds[np.arange(n) % 4, np.arange(n)], trimmed])
    chosen = np.where(chosen < NOTHING, 0, chosen)
    return chosen / chosen.sum(axis=1, keepdims=True)
