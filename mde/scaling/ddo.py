"""Direct data optimization: the best mixture at one budget from a few runs (AutoScale, arXiv 2407.20177, section 4).

One base run, and for each domain one run with less and one with more of it, all else equal. Each domain's effect is
fitted by `(N0 + N)^-γ + l`: what the other domains teach is worth N0 of its own data, γ says how fast more of it helps,
l is what it cannot take away. The best quantities of a total have equal marginal gains, which is solved exactly.

Quantities N are counted in the domain's own base quantity, and losses in the base run's loss, as in the paper's code;
any positive quantity where less is better may stand for the loss (the paper uses perplexity).

Shapes: K domains, R runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from mde.errors import UserError

_STARTS = np.stack(np.meshgrid(np.log([0.25, 0.5, 1, 2, 4, 8, 16]), np.log([0.05, 0.25, 0.5, 1, 2, 4])), -1).reshape(
    -1, 2
)
_EXACT = 1e-9  # a law that misses no loss by more, in units of the base loss, runs through its points
_ITERATIONS = 60
_HIGHEST = (10, 4)  # of the logarithms: nothing overflows below them


@dataclass(frozen=True)
class PowerLaws:
    """One law a domain: with x base quantities of it, the loss is `level · ((offset + x)^-exponent + floor)`.

    Attributes:
      names: [K].
      base: tokens of each domain in the base run, [K].
      level: loss of the base run.
      offset: N0, in base quantities, [K].
      exponent: γ, [K].
      floor: l, in units of the base loss, [K].
      misfit: largest error of each law on the points it was fitted to, in units of the base loss, [K].
    """

    names: tuple[str, ...]
    base: np.ndarray
    level: float
    offset: np.ndarray
    exponent: np.ndarray
    floor: np.ndarray
    misfit: np.ndarray

    def __call__(self, tokens: npt.ArrayLike) -> np.ndarray:
        """Losses [..., K] of runs that differ from the base run in one domain each, with this much of it."""
        x = np.asarray(tokens, np.float64) / self.base
        return self.level * ((self.offset + x) ** -self.exponent + self.floor)

    def loss(self, tokens: npt.ArrayLike) -> np.ndarray:
        """Losses [...] of runs with any quantities [..., K]: the effects of the domains add up."""
        return self.level + np.sum(self(tokens) - self(self.base), axis=-1)

    def optimum(
        self, total: float, lower: npt.ArrayLike = 0.0, upper: npt.ArrayLike = np.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """The quantities of lowest loss that sum to a total, and which of them a bound holds.

        The sum of the laws is convex, so the solution is where all marginal gains `γ (N0 + x)^-(γ+1)` a token equal one
        price, or a bound holds. Given the price every quantity has a closed form; the price is found by bisection.

        Args:
          total: tokens.
          lower: tokens of each domain at least, [K] or one number.
          upper: tokens of each domain at most, [K] or one number.

        Returns:
          [K] tokens, and [K] -1 where the lower bound holds, 1 where the upper, 0 elsewhere.

        Raises:
          UserError: bounds that cross or that no quantities with this total meet.
        """
        low, high = (np.broadcast_to(np.asarray(bound, np.float64), self.base.shape) for bound in (lower, upper))
        self._check_bounds(total, low, high)
        log_gain = np.log(self.exponent) + self.exponent * np.log(self.base)
        tokens = equal_gains(log_gain, self.exponent, self.offset * self.base, total, low, high)
        return tokens, np.where(tokens <= low, -1, np.where(tokens >= high, 1, 0))

    def _check_bounds(self, total: float, low: np.ndarray, high: np.ndarray) -> None:
        crossed = ~((low >= 0) & (low <= high))
        if crossed.any():
            k = int(np.argmax(crossed))
            raise UserError(
                f"domain {self.names[k]!r}: bounds {low[k]:g} and {high[k]:g} tokens, expected 0 ≤ low ≤ high"
            )
        if not low.sum() <= total <= high.sum():
            raise UserError(f"{total:g} tokens in all: the bounds allow {low.sum():g} to {high.sum():g}")


def fit_power_laws(
    names: Sequence[str],
    base: npt.ArrayLike,
    base_loss: float,
    factors: npt.ArrayLike,
    less: npt.ArrayLike,
    more: npt.ArrayLike,
    nearest: bool = False,
) -> PowerLaws:
    """The law of each domain through its three points.

    Most triples lie on two laws of this form, a flat one that falls for ever and a steep one that soon comes to its
    floor. The one with the higher floor is taken: it claims least beyond what was measured, and it is the one that the
    paper reports.

    Args:
      names: the K domains.
      base: tokens of each domain in the base run, [K].
      base_loss: its loss.
      factors: what the runs with less and with more of a domain multiply its base quantity by, such as (1/3, 3), or
        a pair for each domain, [K, 2].
      less: loss of the run with less of each domain, [K].
      more: loss of the run with more of each domain, [K].
      nearest: whether a domain without such a law gets the one of least squares, a flat one where its loss rises.

    Raises:
      UserError: a domain whose loss does not fall with more of it, or falls faster and faster: no such law exists.
    """
    down, up = (np.asarray(losses, np.float64) / base_loss for losses in (less, more))
    amounts = np.asarray(base, np.float64)
    K = len(names)
    pairs_Kx2 = np.broadcast_to(np.asarray(factors, np.float64), (K, 2))
    fine = (pairs_Kx2[:, 0] >= 0) & (pairs_Kx2[:, 0] < 1) & (pairs_Kx2[:, 1] > 1)
    if not (fine.all() and down.shape == up.shape == amounts.shape == (K,) and (amounts > 0).all()):
        raise UserError(
            f"factors {np.asarray(factors).tolist()}, and {amounts.shape}, {down.shape} and {up.shape} numbers for {K} "
            "domains: expected a factor below and one above 1, and a positive quantity and two losses a domain"
        )
    x_Kx3 = np.insert(pairs_Kx2, 1, 1.0, axis=1)
    for k, name in enumerate(() if nearest else names):
        _check_triple(name, x_Kx3[k], np.array([down[k], 1.0, up[k]]) * base_loss)
    drops_Kx2 = np.stack([down - 1, 1 - up], axis=1)
    return PowerLaws(tuple(names), amounts, float(base_loss), *_through(x_Kx3, drops_Kx2))


def fit_jointly(start: PowerLaws, tokens: npt.ArrayLike, losses: npt.ArrayLike) -> PowerLaws:
    """All laws at once, by least squares on runs of any quantities: `level · (l + Σ_i (N0_i + x_i)^-γ_i)`.

    Args:
      start: laws to start from, such as those of `fit_power_laws`.
      tokens: quantities of the runs, [R, K].
      losses: [R].

    Raises:
      UserError: fewer runs than the 2K + 1 parameters, or a fit that does not converge.
    """
    x_RxK = np.asarray(tokens, np.float64) / start.base
    y_R = np.asarray(losses, np.float64) / start.level
    K = len(start.names)
    if x_RxK.shape != (len(y_R), K) or len(y_R) < 2 * K + 1:
        raise UserError(
            f"{len(y_R)} runs of shape {x_RxK.shape} for {2 * K + 1} parameters of {K} domains: train at least as many "
            "runs as parameters, or fit each domain by itself"
        )

    def residual(parameters: np.ndarray) -> np.ndarray:
        offset, exponent = np.exp(parameters[:K]), np.exp(parameters[K:-1])
        return np.sum((offset + x_RxK) ** -exponent, axis=1) + parameters[-1] - y_R

    level = 1 - np.sum((start.offset + 1) ** -start.exponent)
    first = np.concatenate([np.log(start.offset), np.log(start.exponent), [level]])
    found = optimize.least_squares(residual, first, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=5000)
    if not found.success:
        raise UserError(f"the joint fit did not converge ({found.message}); add runs, or fit each domain by itself")
    offset, exponent = np.exp(found.x[:K]), np.exp(found.x[K:-1])
    # What is left to a domain's own law when the others stay at their base quantity.
    others = np.sum((offset + 1) ** -exponent) - (offset + 1) ** -exponent
    misfit = np.full(K, np.abs(found.fun).max())
    return PowerLaws(start.names, start.base, start.level, offset, exponent, found.x[-1] + others, misfit)


def cross_effects(less: npt.ArrayLike, more: npt.ArrayLike) -> np.ndarray:
    """What each domain does to each: [K, J], the fall of evaluation domain j's loss from less to more of domain i.

    Args:
      less: losses of the runs with less of each domain, [K, J].
      more: the same with more, [K, J].
    """
    return np.asarray(less, np.float64) - np.asarray(more, np.float64)


def _check_triple(name: str, x: np.ndarray, y: np.ndarray) -> None:
    if not (np.isfinite(y).all() and y[0] > y[1] > y[2]):
        raise UserError(
            f"domain {name!r}: losses {y[0]:.6g}, {y[1]:.6g}, {y[2]:.6g} with {x[0]:.3g}, 1 and {x[2]:.3g} times its "
            "base quantity do not fall, so no power law fits; average more seeds, take factors further from 1, or the "
            "nearest law"
        )
    if (y[0] - y[1]) / (x[1] - x[0]) <= (y[1] - y[2]) / (x[2] - x[1]):
        raise UserError(
            f"domain {name!r}: losses {y[0]:.6g}, {y[1]:.6g}, {y[2]:.6g} fall faster the more of it there is, so no "
            "power law fits; average more seeds, take factors further from 1, or larger budgets: runs that end early "
            "in training do so whatever they read"
        )


def _through(x_Kx3: np.ndarray, drops_Kx2: np.ndarray) -> tuple[np.ndarray, ...]:
    """Offset, exponent, floor and misfit, [K] each, of the laws with these drops from point to point (in base losses).

    Levenberg–Marquardt on the logarithms of offset and exponent, for all domains and from all S starts at once.
    """
    parameters = np.broadcast_to(_STARTS, (len(x_Kx3), *_STARTS.shape))  # [K, S, 2]
    damping = np.full(parameters.shape[:2], 1e-2)
    error, jacobian = _errors(parameters, x_Kx3, drops_Kx2)
    for _ in range(_ITERATIONS):
        normal = np.einsum("ksij,ksil->ksjl", jacobian, jacobian)
        normal += damping[..., None, None] * np.einsum("ksjj->ksj", normal)[..., None] * np.eye(2) + 1e-300 * np.eye(2)
        step = -np.linalg.solve(normal, np.einsum("ksij,ksi->ksj", jacobian, error)[..., None])[..., 0]
        proposed = np.clip(parameters + step, -12, _HIGHEST)
        new_error, new_jacobian = _errors(proposed, x_Kx3, drops_Kx2)
        better = np.sum(new_error**2, axis=2) < np.sum(error**2, axis=2)
        parameters, error = (np.where(better[..., None], a, b) for a, b in ((proposed, parameters), (new_error, error)))
        jacobian = np.where(better[..., None, None], new_jacobian, jacobian)
        damping = np.clip(np.where(better, damping / 5, damping * 3), 1e-15, 1e12)
    size = np.abs(error).max(axis=2)
    offset, exponent = np.moveaxis(np.exp(parameters), 2, 0)
    floor = 1 - (offset + 1) ** -exponent
    exact = size <= np.maximum(_EXACT, size.min(axis=1, keepdims=True) * (1 + 1e-6))
    chosen = np.where(exact, floor, -np.inf).argmax(axis=1)[:, None]
    return tuple(np.take_along_axis(each, chosen, axis=1)[:, 0] for each in (offset, exponent, floor, size))


def _errors(parameters: np.ndarray, x_Kx3: np.ndarray, drops_Kx2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the two drops [K, S, 2], and their derivatives [K, S, 2, 2] by log offset and log exponent."""
    offset, exponent = np.moveaxis(np.exp(parameters), 2, 0)[..., None]
    sums = offset + x_Kx3[:, None]
    power = sums**-exponent
    by_offset = -exponent * power / sums * offset
    by_exponent = -np.log(sums) * power * exponent
    drop = lambda values: values[..., :-1] - values[..., 1:]  # noqa: E731
    return drop(power) - drops_Kx2[:, None], np.stack([drop(by_offset), drop(by_exponent)], axis=3)


def equal_gains(
    log_gain: np.ndarray,
    exponent: np.ndarray,
    offset: np.ndarray,
    total: float,
    lower: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Quantities of a total at which one more token gains the same everywhere, `exp(log_gain) (offset + N)^-(γ + 1)`.

    Given this gain, the price, every quantity has a closed form; the price is found by bisection, to the last bit.

    Args:
      log_gain: [..., K].
      exponent: γ, [..., K].
      offset: tokens, [..., K].
      total: tokens.
      lower: tokens of each domain at least, [K].
      upper: at most; the bounds must allow the total.

    Returns:
      [..., K] tokens.
    """
    upper = np.minimum(upper, total)
    # Prices at which every domain is at its upper bound, and at its lower one.
    ends = [log_gain - (exponent + 1) * np.log(np.maximum(offset + bound, 1e-300)) for bound in (upper, lower)]
    low, high = ends[0].min(axis=-1) - 1, ends[1].max(axis=-1) + 1

    def quantities(price: np.ndarray) -> np.ndarray:
        log_sum = np.minimum((log_gain - price[..., None]) / (exponent + 1), 700)  # exp of more is no float64
        return np.clip(np.exp(log_sum) - offset, lower, upper)

    while True:
        middle = (low + high) / 2
        if not ((low < middle) & (middle < high)).any():
            return quantities(middle)
        dear = quantities(middle).sum(axis=-1) > total
        low, high = np.where(dear, middle, low), np.where(dear, high, middle)
