"""Where to look at a loss over the simplex: ternary slices through a mixture, and a step from it to each domain."""

import itertools

import numpy as np

DOMAINS = 6  # that have slices, those of the largest weights: 20 triples
MOVED = 0.01  # weight that a step gives to a domain
STEPS = 12  # a slice has (STEPS + 1)(STEPS + 2) / 2 = 91 points


def triples(mixture: np.ndarray, most: int = DOMAINS) -> np.ndarray:
    """Triples [S, 3] of the domains with the largest weights, those that have most together first."""
    kept = np.sort(np.argsort(-mixture, kind="stable")[:most])
    found = np.array(list(itertools.combinations(kept, 3)), dtype=int).reshape(-1, 3)
    return found[np.argsort(-mixture[found].sum(axis=1), kind="stable")]


def ternary_grid(steps: int = STEPS) -> np.ndarray:
    """The points [P, 3] of a triangular grid on the simplex of three."""
    return np.array([(a, b, steps - a - b) for a in range(steps + 1) for b in range(steps + 1 - a)]) / steps


def sliced(mixture: np.ndarray, triple: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Mixtures [P, K] that divide what three domains have together as the points say; the others keep their weights."""
    found = np.tile(mixture, (len(points), 1))
    found[:, triple] = points * mixture[triple].sum()
    return found


def moved(mixture: np.ndarray, weight: float = MOVED) -> np.ndarray:
    """Mixtures [K, K]: in row k domain k has that much more, taken from all others in proportion.

    NaN where the others have less than that.
    """
    others = 1 - mixture
    with np.errstate(divide="ignore", invalid="ignore"):
        found = mixture * ((others - weight) / others)[:, None]
    np.fill_diagonal(found, mixture + weight)
    found[others < weight] = np.nan
    return found
