"""Functions of mixtures that know more than their values: formulas, smooth ones, and the cost of leaving a prior.

A search takes any callable, mixtures [C, K] -> losses [C]. These let it be exact, or follow a gradient.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from mde.optimization.region import Region

Loss = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> [C]
STEEPEST = 1e6  # stands for infinite slopes, such as that of √λ at 0
SMALLEST = 1e-12  # a weight at which the slope of the divergence is taken instead of the infinite one at 0
SHIFT = 0.01  # added to a weight before its logarithm, as the feature `log` does


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


class Formula:
    """The max of M functions of a mixture λ that are written out; one is an average, several a worst case.

    Each is `offset + linear·λ + root·√λ + log·log(λ + 0.01) + factors·exp(exponents λ)`: linear models on these
    functions of the mixture, and mixing laws. They are convex if no coefficient of a root or logarithm is positive and
    no factor negative; a convex formula is minimised exactly (`mde.optimization.convex`).

    Args:
      offset: [M], or a number.
      linear: [M, K], coefficients of the weights; [K] for a single function, as for the others.
      root: [M, K], of their square roots.
      log: [M, K], of log(λ + 0.01).
      factors: [M, T], of T exponentials.
      exponents: [T, K], of these.
    """

    def __init__(
        self,
        offset: np.ndarray | float,
        linear: np.ndarray,
        root: np.ndarray | None = None,
        log: np.ndarray | None = None,
        factors: np.ndarray | None = None,
        exponents: np.ndarray | None = None,
    ):
        self.linear = np.atleast_2d(np.asarray(linear, dtype=np.float64))
        m, k = self.linear.shape
        self.offset = np.broadcast_to(np.asarray(offset, dtype=np.float64), m)
        self.root = np.zeros((m, k)) if root is None else np.atleast_2d(root)
        self.log = np.zeros((m, k)) if log is None else np.atleast_2d(log)
        self.factors = np.zeros((m, 0)) if factors is None else np.atleast_2d(factors)
        self.exponents = np.zeros((0, k)) if exponents is None else np.atleast_2d(exponents)
        self.convex = bool((self.root <= 0).all() and (self.log <= 0).all() and (self.factors >= 0).all())

    @property
    def is_linear(self) -> bool:
        """Whether each function is linear."""
        return not (self.root.any() or self.log.any() or self.factors.any())

    def average(self, weights: np.ndarray) -> Self:
        """The formula of the weighted sum of the functions, `weights` [M]."""
        kept = weights @ self.factors != 0
        return type(self)(
            weights @ self.offset,
            weights @ self.linear,
            weights @ self.root,
            weights @ self.log,
            weights @ self.factors[:, kept],
            self.exponents[kept],
        )

    def among(self, chosen: np.ndarray, reference: np.ndarray | float = 0.0) -> Self:
        """The formula of some of the functions, each less its reference: `chosen` [M], booleans."""
        factors = self.factors[chosen]
        kept = factors.any(axis=0)
        return type(self)(
            (self.offset - reference)[chosen],
            self.linear[chosen],
            self.root[chosen],
            self.log[chosen],
            factors[:, kept],
            self.exponents[kept],
        )

    def functions(self, mixtures: np.ndarray) -> np.ndarray:
        """Values [C, M] of all functions."""
        values = self.offset + mixtures @ self.linear.T
        if self.root.any():
            values = values + np.sqrt(mixtures) @ self.root.T
        if self.log.any():
            values = values + np.log(mixtures + SHIFT) @ self.log.T
        if len(self.exponents):
            values = values + np.exp(mixtures @ self.exponents.T) @ self.factors.T
        return values

    def slope(self, mixture: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gradient [K] at a mixture [K] of the sum of the functions with these weights [M]."""
        return self._gradients(mixture[None], weights[None])[0]

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C]."""
        return self.functions(mixtures).max(axis=1)

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and gradients [C, K], those of the largest function.

        The infinite slope of a root at 0 becomes ±1e6 times its coefficient.
        """
        values = self.functions(mixtures)
        return values.max(axis=1), self._gradients(mixtures, np.eye(len(self.linear))[np.argmax(values, axis=1)])

    def _gradients(self, mixtures: np.ndarray, weights_CM: np.ndarray) -> np.ndarray:
        found = weights_CM @ self.linear
        if self.root.any():
            found = found + weights_CM @ self.root * np.minimum(0.5 / np.sqrt(np.maximum(mixtures, 1e-300)), STEEPEST)
        if self.log.any():
            found = found + weights_CM @ self.log / (mixtures + SHIFT)
        if len(self.exponents):
            found = found + (weights_CM @ self.factors * np.exp(mixtures @ self.exponents.T)) @ self.exponents
        return found


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


class Penalised:
    """A differentiable loss plus `weight` × KL(mixture ‖ prior).

    Args:
      loss: what is added to.
      region: where the prior is.
      weight: nats per token a nat of divergence.
    """

    def __init__(self, loss: Differentiable, region: Region, weight: float):
        self.convex = loss.convex
        self.loss, self.region, self.weight = loss, region, weight

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses [C]."""
        return self.loss(mixtures) + self.weight * self.region.divergence(mixtures)

    def value_and_gradient(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [C] and gradients [C, K]."""
        values, gradients = self.loss.value_and_gradient(mixtures)
        prior = self.region.prior
        assert prior is not None
        some = prior > 0  # weights of the others are zero
        slopes = np.where(some, np.log(np.maximum(mixtures, SMALLEST) / np.where(some, prior, 1.0)) + 1, 0.0)
        return values + self.weight * self.region.divergence(mixtures), gradients + self.weight * slopes
