"""Points of the simplex: checking them, spreading them, its corners.

A mixture is a vector of K non-negative weights that sum to one, one weight a training domain.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.stats import qmc

from mde.errors import UserError


def check_mixtures(
    weights: npt.ArrayLike,
    names: Sequence[str],
    rows: Sequence[str] | None = None,
    tolerance: float = 1e-6,
    where: str = "mixtures",
) -> np.ndarray:
    """Mixtures as float64 [R, K], each row summing to one to the last bit that division leaves.

    A row whose sum is off by more than `tolerance` is refused rather than rescaled: a wrong sum is most often a lost
    column. Published tables that were rounded to three decimals need a tolerance of about 5e-3.

    Args:
      weights: weights, [R, K], or [K] for a single mixture.
      names: the K training domains, in the order of the columns.
      rows: what to call the rows in messages (run names); their numbers otherwise.
      tolerance: how far a row's sum may be from 1.
      where: what to call the table in messages (a file).

    Raises:
      UserError: wrong number of columns or row names; a weight that is not finite or is negative; a sum that is off.
    """
    try:
        table = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: mixtures must be a table of numbers ({error})") from error
    if table.ndim != 2 or table.shape[1] != len(names):
        raise UserError(
            f"{where}: mixtures of shape {table.shape}, expected one weight for each of the {len(names)} domains "
            f"{', '.join(names)}"
        )
    if rows is not None and len(rows) != len(table):
        raise UserError(f"{where}: {len(table)} mixtures but {len(rows)} row names")
    labels = [repr(row) for row in rows] if rows is not None else [str(row) for row in range(len(table))]

    bad = ~np.isfinite(table) | (table < 0)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{where}: row {labels[row]}, domain {names[column]!r}: weight {table[row, column]}, "
            "expected a finite number, zero or more"
        )
    sums = table.sum(axis=1)
    off = np.abs(sums - 1) > tolerance
    if off.any():
        row = int(np.argmax(off))
        raise UserError(f"{where}: row {labels[row]}: weights sum to {sums[row]:.9g}, expected 1 within {tolerance:g}")
    return table / sums[:, None]


def corners(k: int) -> np.ndarray:
    """The K mixtures [K, K] that take everything from one domain."""
    return np.eye(k)


def space_filling(n: int, k: int, seed: int, concentration: float | npt.ArrayLike = 1.0) -> np.ndarray:
    """n mixtures [n, k] distributed as Dirichlet(concentration), spread more evenly than independent draws.

    Fewer points of the scrambled Sobol sequence that they are made of are always a prefix of more, so a design can be
    extended.

    Args:
      n: number of mixtures.
      k: number of domains.
      seed: of the scrambling; the same seed gives the same points.
      concentration: of the Dirichlet distribution, one number or k of them. 1 is uniform on the simplex, less prefers
        its faces and corners.

    Raises:
      UserError: n or k below 1, or a concentration that is not positive.
    """
    alpha = np.asarray(concentration, dtype=np.float64)
    if n < 1 or k < 1:
        raise UserError(f"{n} mixtures of {k} domains, expected at least one of each")
    if alpha.shape not in ((), (k,)) or not (np.isfinite(alpha).all() and (alpha > 0).all()):
        raise UserError(f"Dirichlet concentration {alpha.tolist()}, expected one positive number or {k} of them")
    # Sobol points are balanced in powers of two; a prefix of the next power keeps the points in their order.
    points = qmc.Sobol(k, scramble=True, rng=np.random.default_rng(seed)).random_base2((n - 1).bit_length())[:n]
    return dirichlet(points, alpha)


def dirichlet(points: np.ndarray, concentration: npt.ArrayLike) -> np.ndarray:
    """Mixtures [n, k] distributed as Dirichlet(concentration) out of points [n, k] that are uniform in the unit cube.

    Points go through the inverse CDF of k gamma variables, whose weights are Dirichlet.

    Args:
      points: [n, k].
      concentration: positive; one number, [k], or [n, k].
    """
    alpha = np.asarray(concentration, dtype=np.float64)
    uniform = np.clip(points, 2.0**-31, 1 - 2.0**-31)
    gamma = special.gammaincinv(alpha, uniform)
    # Small concentrations push the inverse below what float64 holds; there P(G < g) = g^a / Gamma(a + 1).
    lower_tail = (np.log(uniform) + special.gammaln(alpha + 1)) / alpha
    log_gamma = np.where(gamma > 1e-290, np.log(np.maximum(gamma, 1e-290)), lower_tail)
    return special.softmax(log_gamma, axis=1)


def project(points: np.ndarray, low: npt.ArrayLike = 0.0, high: npt.ArrayLike = 1.0) -> np.ndarray:
    """The nearest mixture, in Euclidean distance, to each row of [C, K]; exact.

    Args:
      points: [C, K].
      low: min weights, one number or [K]; their sum must be at most 1.
      high: max weights, whose sum must be at least 1.

    It is `clip(point - s, low, high)` with the one s at which weights sum to one. Their sum falls from `high.sum()` to
    `low.sum()` as s grows, and bends only where a weight meets a bound, so the piece that holds s is found by sorting
    these 2 K places (as in Duchi et al., ICML 2008, for the simplex alone).
    """
    k = points.shape[1]
    low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float64), (k,)) for bound in (low, high))
    places = np.hstack([points - high, points - low])
    order = np.argsort(places, axis=1, kind="stable")
    sorted_places = np.take_along_axis(places, order, axis=1)
    free = np.cumsum(np.where(order < k, 1, -1), axis=1)  # weights between their bounds right after each place
    fallen = np.cumsum(free[:, :-1] * np.diff(sorted_places, axis=1), axis=1)
    sums = high.sum() - np.hstack([np.zeros((len(points), 1)), fallen])
    piece = np.clip(np.sum(sums > 1, axis=1) - 1, 0, 2 * k - 2)[:, None]
    middle = (np.take_along_axis(sorted_places, piece, 1) + np.take_along_axis(sorted_places, piece + 1, 1)) / 2
    at_high, at_low = points - middle >= high, points - middle <= low
    count = np.sum(~at_high & ~at_low, axis=1, keepdims=True)
    inner = np.where(at_high, high, np.where(at_low, low, points)).sum(axis=1, keepdims=True)
    shift = np.where(count > 0, (inner - 1) / np.maximum(count, 1), middle)
    return np.clip(points - shift, low, high)


def centre(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The mixture [K] that has the same part of every weight's room between its bounds [K]."""
    room = high - low
    return low + room * ((1 - low.sum()) / max(room.sum(), np.finfo(float).tiny))


def cheapest(costs: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The mixture of lowest `costs @ mixture` within the bounds [K], for each row of [C, K]; exact.

    The cheapest domains are filled up, one after another.
    """
    order = np.argsort(costs, axis=1, kind="stable")
    room = (high - low)[order]
    filled = np.clip(1 - low.sum() - (np.cumsum(room, axis=1) - room), 0, room)
    mixtures = np.empty(costs.shape)
    np.put_along_axis(mixtures, order, low[order] + filled, axis=1)
    return mixtures
