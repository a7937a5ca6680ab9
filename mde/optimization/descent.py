"""Descent along gradients from many starts at once, and how far its end can be from the optimum."""

import dataclasses

import numpy as np

from mde.optimization.losses import Differentiable, Penalised
from mde.optimization.region import Region
from mde.optimization.trust import Area

ENOUGH = 1e-4  # of the decrease that the gradient promises (Armijo's condition)
STILL = 1e-13  # nats per token: a start whose steps gain less than this several times in a row has arrived
NOWHERE = 1e-10  # a step that moves no weight by more
PATIENCE = 5
STARTS = 4  # kept from one price of divergence to the next


def descend(
    loss: Differentiable, region: Area, starts: np.ndarray, iterations: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the mixtures [S, K] comes to, [S, K], and its losses [S]; never above where it started.

    Each step tries an exponentiated gradient (Kivinen and Warmuth, 1997), which keeps the scale of small weights, and a
    projected one with Barzilai and Borwein's length, which reaches faces; the better is taken if it decreases the loss
    enough, and both shorten otherwise.
    """
    x_SK = region.project(starts)
    value_S, slope_SK = map(np.array, loss.value_and_gradient(x_SK))  # copies, to write to
    scale_S = 0.1 / np.maximum(np.ptp(slope_SK, axis=1), 1e-12)
    projected_S, exponentiated_S = scale_S.copy(), 10 * scale_S
    still_S = np.zeros(len(x_SK), int)
    for _ in range(iterations):
        rows = np.flatnonzero(still_S < PATIENCE)
        if not len(rows):
            break
        x, value, slope = x_SK[rows], value_S[rows], slope_SK[rows]
        around = slope - np.sum(x * slope, axis=1, keepdims=True)
        by_projection = region.project(x - projected_S[rows, None] * around)
        grown = x * np.exp(np.clip(-exponentiated_S[rows, None] * around, -50, 50))
        by_growth = region.project(grown / grown.sum(axis=1, keepdims=True))
        tried = np.stack([by_projection, by_growth])
        found, found_slope = loss.value_and_gradient(tried.reshape(-1, region.k))
        found, found_slope = found.reshape(2, -1), found_slope.reshape(tried.shape)
        promised = np.sum(slope * (x - tried), axis=2)
        enough = (found <= value - ENOUGH * promised) & (found < value)
        which = np.argmin(np.where(enough, found, np.inf), axis=0)
        moved, each = enough.any(axis=0), np.arange(len(rows))

        step, turn = tried[which, each] - x, found_slope[which, each] - slope
        curvature = np.sum(step * turn, axis=1)
        natural = np.sum(step**2, axis=1) / np.maximum(curvature, 1e-300)
        longer = np.clip(np.where(curvature > 0, natural, 4 * projected_S[rows]), 1e-12, 1e6)
        projected_S[rows] = np.where(moved, longer, 0.2 * projected_S[rows])
        exponentiated_S[rows] *= np.where(enough[1], 1.5, 0.3)
        gain = np.where(moved, value - found[which, each], 0.0)
        reach = np.abs(tried - x).max(axis=(0, 2))
        going = (gain > STILL) | (~moved & (reach > NOWHERE))
        still_S[rows] = np.where(going, 0, still_S[rows] + 1)
        to = rows[moved]
        x_SK[to], value_S[to] = tried[which, each][moved], found[which, each][moved]
        slope_SK[to] = found_slope[which, each][moved]
    return x_SK, value_S


def descend_in_ball(
    loss: Differentiable, region: Region, starts: np.ndarray, halvings: int = 30
) -> tuple[np.ndarray, np.ndarray, float]:
    """`descend`, where the divergence from the prior is capped: mixtures [S, K], losses [S] and the gap of the best.

    The best is never above the best of the starts that lie in the region. The price at which the cap is just kept is
    found by bisection (Lagrange's multiplier). With that price on divergence the least penalised loss, minus the price
    of the cap, is a bound on the least capped one: it gives the gap, which holds for a convex loss.
    """
    bounds = dataclasses.replace(region, max_kl=np.inf)
    points, values = descend(loss, bounds, starts)
    price, least, most = 0.0, 1e-6, 1e6
    if region.divergence(points[[np.argmin(values)]])[0] > region.max_kl:
        points = points[np.argsort(values, kind="stable")]
        for _ in range(halvings):
            price = float(np.sqrt(least * most))
            # What ended far out at another price may be slow to come back; the centre is near any end that is inside.
            around = np.vstack([points[:STARTS], region.centre])
            points, values = descend(Penalised(loss, bounds, price), bounds, around, 200)
            points = points[np.argsort(values, kind="stable")]
            over = region.divergence(points[:1])[0] > region.max_kl
            least, most = (price, most) if over else (least, price)
        price = most
        points, values = descend(Penalised(loss, bounds, price), bounds, points)
    best = points[np.argmin(values)]
    priced = Penalised(loss, bounds, price)
    points = np.vstack([region.pull(points), region.project(starts)])
    if loss.convex:
        values = loss(points)
    else:  # its optimum may be one that no price leads to
        points, values = descend(loss, region, points, 200)
    bound = priced(best[None])[0] - gap(priced, bounds, best) - price * region.max_kl
    return points, values, float(values.min() - bound)


def gap(loss: Differentiable, region: Region, mixture: np.ndarray) -> float:
    """How far above the lowest loss of the region's bounds a mixture [K] is at most, for a convex loss; nats per token.

    The tangent at the mixture lies below the loss, and its lowest value is at a vertex (Frank and Wolfe, 1956).
    """
    slope = loss.value_and_gradient(mixture[None])[1][0]
    return max(float(slope @ (mixture - region.vertex(slope))), 0.0)
