"""Subsets of n units: all of them as rows, what each unit is worth, and which to add next. Sees numbers only.

A subset is a row of booleans [n]. The empty one stands for the seed model.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mde.errors import UserError

FEWEST_PAIRS = 10  # of orders, below which their spread says too little of the error of their mean
Losses = Callable[[np.ndarray], np.ndarray]  # subsets [C, n] -> losses [C, J] in nats per token
ENUMERABLE = 20  # units whose subsets are listed


def every(n: int) -> np.ndarray:
    """All subsets of n units, [2^n, n] bool; unit i is in row r where bit i of r is set."""
    if n > ENUMERABLE:
        raise UserError(f"{n} units have 2^{n} subsets, more than are listed (2^{ENUMERABLE}); sample permutations")
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


def averages(subsets_CxN: np.ndarray) -> np.ndarray:
    """[C, n] weights of the average of each subset's members; zero in the row of the empty one."""
    return subsets_CxN / np.maximum(subsets_CxN.sum(axis=1, keepdims=True), 1)


class Remembered:
    """Losses of subsets, each asked for once.

    Args:
      losses: of subsets [C, n], as [C, J].
    """

    def __init__(self, losses: Losses):
        self._losses = losses
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, subsets_CxN: np.ndarray) -> np.ndarray:
        """[C, J]; those that are not known yet are asked for in one call."""
        keys = [row.tobytes() for row in np.packbits(subsets_CxN, axis=1)]
        new = {key: c for c, key in enumerate(keys) if key not in self._known}
        if new:
            self._known |= zip(new, self._losses(subsets_CxN[list(new.values())]), strict=True)
        return np.stack([self._known[key] for key in keys])

    def known(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The subsets [C, n] of n units that were asked for, and their losses [C, J]."""
        bits = np.frombuffer(b"".join(self._known), np.uint8).reshape(len(self._known), -1)
        return np.unpackbits(bits, axis=1, count=n).astype(bool), np.stack(list(self._known.values()))


class Values(NamedTuple):
    """What units are worth.

    Attributes:
      values: [n, J] Shapley values: nats per token that a unit takes off the loss, on average over the orders in which
        units can be added; they sum to the loss of the empty subset minus that of all units.
      errors: [n, J] their standard errors; 0 where they are exact.
    """

    values: np.ndarray
    errors: np.ndarray


def shapley(losses: np.ndarray) -> Values:
    """Exact Shapley values from the losses [2^n, J] of all subsets in the order of `every`.

    `φ_i = Σ_S |S|! (n − |S| − 1)! / n! · (loss(S) − loss(S ∪ {i}))` over the subsets S without i (Shapley 1953).

    Raises:
      UserError: losses of another number than 2^n.
    """
    n = len(losses).bit_length() - 1
    if n < 1 or len(losses) != 2**n:
        raise UserError(f"losses of {len(losses)} subsets: exact Shapley values need those of all 2^n")
    rows = np.arange(2**n)
    sizes = np.bitwise_count(rows)
    # 1 / (n · binomial(n − 1, |S|)): the chance that just S stands before i in a random order.
    chances = np.cumprod([1 / n, *((size + 1) / (n - 1 - size) for size in range(n - 1))])
    values = []
    for i in range(n):
        without = rows[(rows >> i) & 1 == 0]
        values.append(chances[sizes[without]] @ (losses[without] - losses[without | (1 << i)]))
    return Values(np.array(values), np.zeros((n, losses.shape[1])))


def sampled_shapley(losses: Losses, n: int, permutations: int, seed: int = 0) -> Values:
    """Shapley values estimated from random orders (Castro et al. 2009), each with the reverse of itself.

    Args:
      losses: of subsets; all are asked for in one call.
      n: units.
      permutations: pairs of orders to draw, each of 2 (n − 1) subsets; at least two.
      seed: of the orders.

    Returns:
      Means over the pairs and their standard errors, NaN for fewer than ten pairs.

    Raises:
      UserError: fewer than two pairs, which say nothing of the error.
    """
    if permutations < 2:
        raise UserError(f"permutations={permutations}, expected at least 2: one has no standard error")
    rng = np.random.default_rng(seed)
    forward = np.array([rng.permutation(n) for _ in range(permutations)])
    orders = np.stack([forward, forward[:, ::-1]], axis=1).reshape(-1, n)  # neighbours are reverses
    places = np.argsort(orders, axis=1)
    subsets = places[:, None, :] < np.arange(n + 1)[:, None]  # [orders, n + 1, n]: the first 0, 1, … n of an order
    along = Remembered(losses)(subsets.reshape(-1, n)).reshape(len(orders), n + 1, -1)
    gains = np.take_along_axis(along[:, :-1] - along[:, 1:], places[:, :, None], axis=1)
    pairs = gains.reshape(permutations, 2, n, -1).mean(axis=1)
    errors = pairs.std(axis=0, ddof=1) / np.sqrt(permutations)
    return Values(pairs.mean(axis=0), errors if permutations >= FEWEST_PAIRS else np.full_like(errors, np.nan))


def additions(objective: Losses, start: np.ndarray) -> tuple[list[int], list[float]]:
    """What to add next: the unit that lowers the objective most, then the best one beside it, to the last.

    Args:
      objective: of subsets [C, n], as [C].
      start: [n] bool, the units that are there.

    Returns:
      The units in the order in which they are added, and the objective after each.
    """
    chosen, order, found = start.copy(), [], []
    while not chosen.all():
        left = np.flatnonzero(~chosen)
        longer = np.repeat(chosen[None], len(left), axis=0)
        longer[np.arange(len(left)), left] = True
        reached = objective(longer)
        best = int(np.argmin(reached))
        chosen = longer[best]
        order.append(int(left[best]))
        found.append(float(reached[best]))
    return order, found
