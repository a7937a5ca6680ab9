"""What the runs at several budgets leave open about the best mixture at a larger one.

AutoScale carries two optima on along a line (`autoscale`). Noise of the runs is then the smaller part of the error: the
line is exact only where each domain's loss is a power of its own tokens, `N^-γ`. Text of other domains helps as well,
so the law has an offset, and the optimum leaves the line. How it does depends on the exponents, on the offsets, and on
whether an offset stays or grows with the budget. Two or three budgets fix none of these.

So every domain gets the whole family `A (N + O_m)^-γ` with `O_m ∝ budget_m^θ`, on a grid of (γ, O, θ). For Gaussian
noise of a run the posterior over the grid and the effect size A > 0 is exact: A is integrated in closed form. The draws
of all domains' laws are optimised again at the target budget, and the interval is the quantiles of these optima.

Only differences to the base run of the same budget are used, so the levels of the budgets do not matter.

Shapes: n draws, M budgets, K domains, G grid points, D = 2M differences per domain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from mde.scaling.ddo import equal_gains
from mde.scaling.effects import Effects

_EXPONENTS = np.geomspace(0.03, 3, 24)
_OFFSETS = np.geomspace(1e-3, 100, 24)  # in base quantities, at the geometric mean of the budgets
_COUNTS = {1: "one", 2: "two", 3: "three"}
MISFIT = 0.01  # p-value, over all domains, below which the laws do not describe the runs
INEXACT = 0.02  # of a domain's typical change: what any law of three numbers may miss
_GROWTHS = np.array([0.0, 0.5, 1.0])  # θ: 0 for an offset in tokens, 1 for what other domains teach


@dataclass(frozen=True)
class Draws:
    """Draws of all domains' laws at the target: one more token of N gains `exp(log_gain) (offset + N)^-(exponent + 1)`.

    Attributes:
      log_gain: [n, K].
      exponent: γ, [n, K].
      offset: tokens, [n, K].
      p_values: of the hypothesis that some law of the family describes the runs, for each domain, [K].
    """

    log_gain: np.ndarray
    exponent: np.ndarray
    offset: np.ndarray
    p_values: np.ndarray

    def optima(self, total: float, upper: npt.ArrayLike = np.inf) -> np.ndarray:
        """Best quantities of a total, [n, K] tokens."""
        return equal_gains(self.log_gain, self.exponent, self.offset, total, np.zeros(1), np.asarray(upper, float))


def draw_laws(
    measured: Sequence[Effects],
    goal: npt.ArrayLike,
    noise: tuple[float, float],
    target: float,
    draws: int,
    seed: int,
) -> Draws:
    """Draws laws from their posterior, and tests whether the family describes the runs.

    Args:
      measured: effects at each of the M budgets.
      goal: weight of each evaluation domain, [J].
      noise: standard deviation of the objective of one run, above zero, and the degrees of freedom of this estimate,
        infinite where it is known.
      target: budget in tokens at which the laws are wanted.
      draws: n.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    deviation, freedom = noise
    changes_KxD = np.stack([_changes(each, goal) for each in measured], axis=1).reshape(len(measured[0].names), -1)
    seeds_D = np.repeat(deviation / np.sqrt([each.repeats for each in measured]), 2)
    # What a smooth law misses is alike at all budgets: more of them do not average it out.
    inexact_Kx1 = INEXACT * np.sqrt(len(measured) / 2) * np.sqrt(np.mean(changes_KxD**2, axis=1, keepdims=True))
    unit_K = np.exp(np.mean([np.log(each.base) for each in measured], axis=0))
    shapes_KxGxD, offsets_G, exponents_G = _grid(measured, unit_K, target)

    # The base run's noise is in both changes of its budget: it is drawn, and what is left is independent.
    scale_n = np.sqrt(freedom / rng.chisquare(freedom, draws)) if np.isfinite(freedom) else np.ones(draws)
    base_nxD = np.repeat(rng.normal(size=(draws, len(measured))), 2, axis=1) * seeds_D
    error_KxD = np.hypot(seeds_D, inexact_Kx1)
    noisy_nxKxD = changes_KxD / scale_n[:, None, None] + base_nxD[:, None]
    norm_KxG = np.linalg.norm(shapes_KxGxD / error_KxD[:, None], axis=2)
    size_nxKxG = np.einsum("nkd,kgd->nkg", noisy_nxKxD / error_KxD**2, shapes_KxGxD, optimize=True) / norm_KxG
    # exp(size² / 2) Φ(size) is the likelihood with A, flat above zero, integrated out.
    log_weight = size_nxKxG**2 / 2 + special.log_ndtr(size_nxKxG)
    chosen_nxK = np.argmax(log_weight + rng.gumbel(size=log_weight.shape), axis=2)
    centre = np.take_along_axis(size_nxKxG, chosen_nxK[..., None], axis=2)[..., 0]
    size = stats.truncnorm.rvs(-centre, np.inf, loc=centre, random_state=rng) * scale_n[:, None]
    log_amplitude = np.log(size / norm_KxG[np.arange(len(unit_K)), chosen_nxK])
    exponent = exponents_G[chosen_nxK]
    return Draws(
        log_amplitude + np.log(exponent) + exponent * np.log(unit_K),
        exponent,
        offsets_G[chosen_nxK] * unit_K,
        _p_values(changes_KxD, seeds_D, inexact_Kx1, shapes_KxGxD, freedom),
    )


def not_known(measured: Sequence[Effects], draws: Draws, target: float) -> str | None:
    """Why the runs cannot tell the best mixture at the target; None where they can.

    Up to as far again as the budgets span the intervals cover, even if the truth is not quite of the family. Further on
    small deviations from it decide. Coverage by simulation stands in docs/methods/autoscale.md.
    """
    budgets = [each.budget for each in measured]
    span, factor = budgets[-1] / budgets[0], target / budgets[-1]
    if factor > span * (1 + 1e-9):
        return (
            f"{_COUNTS.get(len(budgets), len(budgets))} budgets that span a factor of {span:.3g} cannot tell the best "
            f"mixture at {factor:.3g} times the largest"
        )
    k = int(np.argmin(draws.p_values))
    if draws.p_values[k] * len(draws.p_values) < MISFIT:
        return (
            f"no power law with an offset describes what less and more of domain {measured[0].names[k]!r} does at all "
            f"budgets (p = {draws.p_values[k]:.1g})"
        )
    return None


def _changes(effects: Effects, goal: npt.ArrayLike) -> np.ndarray:
    """What less and more of each domain changes the objective by, [K, 2]."""
    weights = np.asarray(goal, np.float64)
    return np.stack([effects.less @ weights, effects.more @ weights], axis=1) - effects.losses @ weights


def _grid(measured: Sequence[Effects], unit_K: np.ndarray, target: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes that each law predicts for A = 1, [K, G, D]; offsets at the target in units [G]; exponents [G]."""
    exponent, offset, growth = (each.ravel() for each in np.meshgrid(_EXPONENTS, _OFFSETS, _GROWTHS, indexing="ij"))
    budgets = np.array([each.budget for each in measured])
    middle = np.exp(np.log(budgets).mean())
    shapes = []
    for each, budget in zip(measured, budgets, strict=True):
        x_Kx3 = np.insert(each.factors, 0, 1.0, axis=1) * (each.base / unit_K)[:, None]
        losses = (x_Kx3[:, None] + (offset * (budget / middle) ** growth)[:, None]) ** -exponent[:, None]  # [K, G, 3]
        shapes.append(losses[..., 1:] - losses[..., :1])
    return np.concatenate(shapes, axis=2), offset * (target / middle) ** growth, exponent


def _p_values(
    changes_KxD: np.ndarray, seeds_D: np.ndarray, inexact_Kx1: np.ndarray, shapes_KxGxD: np.ndarray, freedom: float
) -> np.ndarray:
    """[K] of an F test of the best law's residuals against the noise of a run; ones for a single budget."""
    spare = changes_KxD.shape[1] - 3  # A, γ and O; θ only chooses among laws
    if spare < 1:
        return np.ones(len(changes_KxD))
    shared_DxD = np.kron(np.eye(len(seeds_D) // 2), np.ones((2, 2))) * np.outer(seeds_D, seeds_D)
    own_KxDxD = (seeds_D**2 + inexact_Kx1**2)[..., None] * np.eye(len(seeds_D))
    whiten_KxDxD = np.linalg.inv(np.linalg.cholesky(shared_DxD + own_KxDxD))
    changes = np.einsum("kde,ke->kd", whiten_KxDxD, changes_KxD)
    shapes = np.einsum("kde,kge->kgd", whiten_KxDxD, shapes_KxGxD)
    size = np.einsum("kd,kgd->kg", changes, shapes) / np.linalg.norm(shapes, axis=2)
    left = np.sum(changes**2, axis=1) - np.max(np.maximum(size, 0) ** 2, axis=1)
    return stats.f.sf(left / spare, spare, freedom) if np.isfinite(freedom) else stats.chi2.sf(left, spare)
