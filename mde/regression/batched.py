"""Many small smooth problems minimised at once: L-BFGS whose every array has a leading axis of problems.

Fits of a few dozen rows cost microseconds of arithmetic and milliseconds of Python each; stacked over targets, restarts
and splits they cost the arithmetic. Each problem keeps its own step, history and end, so its result does not hang on
its neighbours.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

# Points [B, P] of the problems `which` [B] -> values [B] and gradients [B, P].
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

HISTORY = 8
SUFFICIENT = 1e-4  # Armijo's constant: the share of the decrease promised by the slope that a step must bring
THREADS = 2
CHUNK = 1_000_000  # entries of the derivatives of the models that are fitted together: they bound the memory
LONGEST = 3.0  # no coordinate moves farther in one step: the problems here are in logarithms or standardised units


@cache
def _threadpools() -> ThreadpoolController:
    """The libraries of linear algebra that are loaded; finding them takes milliseconds."""
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """A context in which small products are not spread over threads, which would cost more than they do."""
    return _threadpools().limit(limits=1, user_api="blas")


def minimize(
    objective: Objective, start: np.ndarray, iterations: int = 200, tolerance: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """Local minima of B unconstrained problems in P coordinates each.

    Two-loop L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4) with backtracking steps. A value that is
    not finite is a step too far. A problem ends when its gradient's largest entry is below the tolerance, when a step
    no longer lowers its value by a relative `tolerance` squared, or after `iterations` steps.

    Args:
      objective: values and gradients; called with fewer and fewer problems as they end.
      start: [B, P], where the objective is finite.
      iterations: steps at most.
      tolerance: of the gradient.

    Returns:
      The best points [B, P] and their values [B].
    """
    x = np.array(start, dtype=np.float64)
    n, p = x.shape
    which = np.arange(n)
    value, gradient = objective(x, which)
    steps, changes = np.zeros((HISTORY, n, p)), np.zeros((HISTORY, n, p))  # newest last
    active = which[np.abs(gradient).max(axis=1) > tolerance]
    for _ in range(iterations):
        if not len(active):
            break
        at, slope = x[active], gradient[active]
        direction = -_inverse_hessian(slope, steps[:, active], changes[:, active])
        downhill = np.einsum("bp,bp->b", direction, slope)
        direction = np.where((downhill < 0)[:, None], direction, -slope)
        direction *= np.minimum(1, LONGEST / np.maximum(np.abs(direction).max(axis=1), 1e-300))[:, None]
        fresh = ~steps[:, active].any(axis=(0, 2))  # the first step has no curvature to go by
        direction[fresh] *= np.minimum(1, 1 / np.linalg.norm(slope[fresh], axis=1))[:, None]
        found, new, new_value, new_slope = _backtrack(objective, active, at, value[active], slope, direction)
        moved = active[found]
        gain = value[moved] - new_value[found]
        step, change = (new - at)[found], (new_slope - slope)[found]
        curved = np.einsum("bp,bp->b", step, change) > 1e-12 * np.linalg.norm(step, axis=1) ** 2
        kept = moved[curved]
        steps[:-1, kept], steps[-1, kept] = steps[1:, kept], step[curved]
        changes[:-1, kept], changes[-1, kept] = changes[1:, kept], change[curved]
        x[moved], value[moved], gradient[moved] = new[found], new_value[found], new_slope[found]
        going = (gain > tolerance**2 * (1 + np.abs(value[moved]))) & (np.abs(gradient[moved]).max(axis=1) > tolerance)
        active = moved[going]
    return x, value


def _inverse_hessian(slope: np.ndarray, steps: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """The inverse Hessian's estimate times the gradient, [B, P]; pairs not yet seen are zero and do nothing."""
    product = np.einsum("hbp,hbp->hb", steps, changes)
    rho = np.divide(1, product, out=np.zeros_like(product), where=product > 0)
    q, weights = slope.copy(), np.zeros_like(rho)
    for h in reversed(range(len(steps))):
        weights[h] = rho[h] * np.einsum("bp,bp->b", steps[h], q)
        q -= weights[h][:, None] * changes[h]
    squares = np.einsum("bp,bp->b", changes[-1], changes[-1])
    q *= np.divide(product[-1], squares, out=np.ones_like(squares), where=squares > 0)[:, None]
    for h in range(len(steps)):
        q += (weights[h] - rho[h] * np.einsum("bp,bp->b", changes[h], q))[:, None] * steps[h]
    return q


def _backtrack(
    objective: Objective,
    which: np.ndarray,
    at: np.ndarray,
    value: np.ndarray,
    slope: np.ndarray,
    direction: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Halves each problem's step until it lowers the value enough: which did, points, values and gradients."""
    downhill = np.einsum("bp,bp->b", direction, slope)
    size = np.ones(len(which))
    point, new_value, new_slope = at.copy(), value.copy(), slope.copy()
    found = np.zeros(len(which), dtype=bool)
    for _ in range(25):
        left = np.flatnonzero(~found)
        if not len(left):
            break
        tried = at[left] + size[left, None] * direction[left]
        tried_value, tried_slope = objective(tried, which[left])
        good = np.isfinite(tried_value) & (tried_value <= value[left] + SUFFICIENT * size[left] * downhill[left])
        good &= np.isfinite(tried_slope).all(axis=1)
        rows = left[good]
        point[rows], new_value[rows], new_slope[rows] = tried[good], tried_value[good], tried_slope[good]
        found[rows] = True
        size[left[~good]] *= 0.4
    return found, point, new_value, new_slope


# Parameters [B, P] of the problems `which` [B] -> predictions [B, R] and their derivatives [B, R, P].
Model = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def least_squares(
    model: Model,
    observed: np.ndarray,
    start: np.ndarray,
    huber: float = np.inf,
    iterations: int = 200,
    tolerance: float = 1e-14,
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares, or least Huber loss, of B nonlinear models.

    Levenberg-Marquardt (Nocedal and Wright, section 10.3) with Marquardt's scaling; residuals beyond `huber` are
    weighed down anew in each step (iteratively reweighted least squares). A problem ends when its best step, however
    short, no longer lowers its loss by a relative `tolerance`, or after `iterations` steps.

    Args:
      model: predictions and derivatives; called from several threads.
      observed: [B, R].
      start: [B, P], where the model is finite.
      huber: residual at which the loss goes from quadratic to linear.
      iterations: steps at most, taken or not.
      tolerance: of the loss, relative.

    Returns:
      The best parameters [B, P] and their losses [B], the sum over rows.
    """
    start = np.array(start, dtype=np.float64)
    n_chunks = -(-observed.size * start.shape[1] // CHUNK)
    chunks = np.array_split(np.arange(len(start)), min(n_chunks, len(start)))

    def solve(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def part(parameters: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return model(parameters, chunk[which])

        return _levenberg_marquardt(part, observed[chunk], start[chunk], huber, iterations, tolerance)

    with one_blas_thread(), ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(solve, chunks)) if len(chunks) > 1 else [solve(chunks[0])]
    return np.concatenate([x for x, _ in found]), np.concatenate([loss for _, loss in found])


def _levenberg_marquardt(
    model: Model, observed: np.ndarray, x: np.ndarray, huber: float, iterations: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    n, p = x.shape
    which = np.arange(n)
    predicted, slopes = model(x, which)
    loss = _huber(observed - predicted, huber)
    damping, active = np.full(n, 1e-3), which
    for _ in range(iterations):
        if not len(active):
            break
        residual = observed[active] - predicted[active]
        weight = np.minimum(1, huber / np.maximum(np.abs(residual), 1e-300))
        weighted = slopes[active] * weight[:, :, None]
        normal = weighted.transpose(0, 2, 1) @ slopes[active]
        diagonal = np.diagonal(normal, axis1=1, axis2=2)
        # A parameter that nothing hangs on would leave the system singular.
        lift = damping[active, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        pull = np.einsum("brp,br->bp", weighted, residual)
        tried = x[active] + np.linalg.solve(normal + lift[:, :, None] * np.eye(p), pull[:, :, None])[:, :, 0]
        tried_predicted, tried_slopes = model(tried, active)
        tried_loss = _huber(observed[active] - tried_predicted, huber)
        better = tried_loss < loss[active]  # false for what is not finite
        better &= np.isfinite(tried_slopes).all(axis=(1, 2))
        gain = loss[active] - tried_loss
        moved = active[better]
        x[moved], loss[moved] = tried[better], tried_loss[better]
        predicted[moved], slopes[moved] = tried_predicted[better], tried_slopes[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-15), damping[active] * 4)
        done = np.where(better, gain <= tolerance * loss[active], damping[active] > 1e10) | (loss[active] == 0)
        active = active[~done]
    return x, loss


def _huber(residual: np.ndarray, bound: float) -> np.ndarray:
    """Sums over rows of the Huber loss, [B]; infinite where a residual is not finite."""
    size = np.abs(residual)
    with np.errstate(invalid="ignore", over="ignore"):
        linear = np.zeros_like(size) if np.isinf(bound) else bound * (size - bound / 2)
        loss = np.where(size <= bound, size**2 / 2, linear).sum(axis=1)
    return np.where(np.isfinite(residual).all(axis=1), loss, np.inf)
