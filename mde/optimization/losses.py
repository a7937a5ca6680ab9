"""Functions of mixtures that know more than their values: linear ones, smooth ones, and the cost of leaving a prior.

A search takes any callable, mixtures [C, K] -> losses [C]. These let it be exact, or follow a gradient.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy import optimize

from mde.optimization.region import PRECISE, Region

Loss = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> [C]
STEEPEST = 1e6  # stands for infinite slopes, such as that of √λ at 0
SMALLEST = 1e-12  # a share at which the slope of the divergence is taken instead of the infinite one at 0


@runtime_checkable
class Differentiable(Protocol):
    """A loss with a gradient.

    Attributes:
      convex: whether it is known to be convex; then a search says how far from the optimum it can be at most.
    """

    convex: bool

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C] of mixtures [C, K]."""

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and their gradients [C, K]."""


class Linear:
    """The greatest of J linear functions, `max_j slope_j @ mixture + offset_j`: one average, or a worst case.

    Args:
      slopes: [J, K], or [K] for a single function.
      offsets: [J], or a number.
    """

    convex = True

    def __init__(self, slopes: np.ndarray, offsets: np.ndarray | float = 0.0):
        self.slopes = np.atleast_2d(np.asarray(slopes, dtype=np.float64))
        self.offsets = np.broadcast_to(np.asarray(offsets, dtype=np.float64), len(self.slopes))

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C]."""
        return (mixtures @ self.slopes.T + self.offsets).max(axis=1)

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and gradients [C, K], those of the greatest function."""
        values = mixtures @ self.slopes.T + self.offsets
        return values.max(axis=1), self.slopes[np.argmax(values, axis=1)]

    def minimum(self, region: Region) -> np.ndarray:
        """A mixture [K] of least loss within the region's bounds, exact, by a linear program (its ball is not seen)."""
        if len(self.slopes) == 1:
            return region.vertex(self.slopes[0])
        rows = np.vstack([region.member, -region.member])
        limits = np.concatenate([region.group_high, -region.group_low])
        found = optimize.linprog(  # the least t, beside the mixture, that is above every function
            np.append(np.zeros(region.k), 1.0),
            np.vstack(
                [np.hstack([rows, np.zeros((len(rows), 1))]), np.hstack([self.slopes, -np.ones((len(self.slopes), 1))])]
            ),
            np.concatenate([limits, -self.offsets]),
            np.append(np.ones(region.k), 0.0)[None],
            [1.0],
            [*zip(region.low, region.high, strict=True), (None, None)],
            method="highs",
            options=PRECISE,
        )
        return np.clip(found.x[:-1], region.low, region.high)


class Smooth:
    """A loss written in JAX, differentiated and mapped over many mixtures in float64.

    Args:
      function: one mixture [K] -> its loss, traceable.
      convex: whether it is known to be convex.
    """

    def __init__(self, function: Callable[[Any], Any], convex: bool = False):
        import jax  # a second that only those who differentiate should pay

        self.convex = convex
        self._both = jax.jit(jax.vmap(jax.value_and_grad(function)))

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C]."""
        return self.value_and_gradient(mixtures)[0]

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and gradients [C, K]; infinite slopes become ±1e6."""
        import jax

        n = len(mixtures)
        padded = np.zeros((1 << (n - 1).bit_length(), mixtures.shape[1]))  # a power of two rows: few compilations
        padded[:n], padded[n:] = mixtures, mixtures[:1]
        with jax.enable_x64(True):
            values, gradients = self._both(padded)
        gradients = np.nan_to_num(np.asarray(gradients)[:n], posinf=STEEPEST, neginf=-STEEPEST)
        return np.asarray(values)[:n], gradients


class Separable:
    """What a linear regressor on λ, √λ and log(λ + shift) predicts: a sum of one function a domain.

    Args:
      linear: [K], coefficients of λ.
      root: [K], of √λ.
      log: [K], of log(λ + shift).
      shift: what keeps the logarithm finite.
      offset: added to the sum.
    """

    def __init__(self, linear: np.ndarray, root: np.ndarray, log: np.ndarray, shift: float, offset: float):
        self.convex = bool((root <= 0).all() and (log <= 0).all())
        self._linear, self._root, self._log, self._shift, self._offset = linear, root, log, shift, offset

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C]."""
        curved = np.sqrt(mixtures) @ self._root + np.log(mixtures + self._shift) @ self._log
        return self._offset + mixtures @ self._linear + curved

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and gradients [C, K]; the infinite slope of a root at 0 becomes ±1e6 times its coefficient."""
        steep = np.minimum(0.5 / np.sqrt(np.maximum(mixtures, 1e-300)), STEEPEST)
        return self(mixtures), self._linear + self._root * steep + self._log / (mixtures + self._shift)


class Penalised:
    """A differentiable loss plus `weight` × KL(mixture ‖ prior).

    Args:
      loss: what is added to.
      region: where the prior is.
      weight: nats per token a nat of divergence.
    """

    def __init__(self, loss: Differentiable, region: Region, weight: float):
        self.convex = loss.convex
        self._loss, self._region, self._weight = loss, region, weight

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C]."""
        return self._loss(mixtures) + self._weight * self._region.divergence(mixtures)

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and gradients [C, K]."""
        values, gradients = self._loss.value_and_gradient(mixtures)
        prior = self._region.prior
        assert prior is not None
        some = prior > 0  # shares of the others are zero
        slopes = np.where(some, np.log(np.maximum(mixtures, SMALLEST) / np.where(some, prior, 1.0)) + 1, 0.0)
        return values + self._weight * self._region.divergence(mixtures), gradients + self._weight * slopes
