"""Bayesian optimisation over the simplex: which mixtures to train next, and when to stop. Sees numbers only.

The regressor models the objective itself, one number per run: its standard deviation is that of the objective, with
no need to know how the losses of the evaluation domains vary together, and a worst case is modelled like an average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special
from sklearn.base import clone

from mde.errors import UserError
from mde.optimization import search
from mde.optimization.region import Region

LEAST_APART = 0.02  # of the tokens in which a proposal differs from what is trained or proposed
COPY = 1e30  # above minus the logarithm of any improvement

Design = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> features [C, F] or [C, 1, F]


@dataclass(frozen=True)
class Belief:
    """What a regressor that was fitted on all proxy runs says of the objective of any mixture.

    Attributes:
      model: fitted, with `predict(X, return_std=True)`.
      design: features of mixtures.
      noise: standard deviation of a run's objective, nats per token, as the model has it.
      best: [K], the trained mixture that is believed to be best; with noise not always the one observed to be.
      least: the objective that it is believed to have.
      known: [R, K], the mixtures that it was fitted on.
    """

    model: Any
    design: Design
    noise: float
    best: np.ndarray
    least: float
    known: np.ndarray

    def __call__(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [C] and standard deviation [C] of the objective, the noise of a run taken out."""
        mean, std = (np.asarray(part).reshape(len(mixtures)) for part in self._predict(mixtures))
        return mean, np.sqrt(np.maximum(std**2 - self.noise**2, 0))

    def _predict(self, mixtures: np.ndarray) -> Any:
        return self.model.predict(self.design(mixtures), return_std=True)

    def loss(self, mixtures: np.ndarray) -> np.ndarray:
        """What a search for the largest improvement minimises, [C].

        A near copy of a known run has most of its seed's noise again and tells next to nothing, whatever a noisy
        regressor expects of it. So those that differ from every known mixture in less than `LEAST_APART` of their
        tokens come last, the furthest of them first: a region may have no others.
        """
        apart = np.abs(mixtures[:, None] - self.known).sum(axis=2).min(axis=1) / 2
        return np.where(apart < LEAST_APART, COPY * (1 + LEAST_APART - apart), -self.log_improvement(mixtures))

    def log_improvement(self, mixtures: np.ndarray) -> np.ndarray:
        """Logarithm of the expected improvement on `least`, [C]; the improvement is in nats per token.

        E[max(least - objective, 0)] for a normal objective (Jones et al., 1998); its logarithm still tells mixtures
        apart where the improvement is too small for a float (Ament et al., 2023).
        """
        mean, std = self(mixtures)
        std = np.maximum(std, 1e-12)
        z = (self.least - mean) / std
        below = np.minimum(z, 0)
        # φ(z) + z Φ(z) = φ(z) (1 + z Φ(z) / φ(z)), and Φ / φ is a scaled complementary error function
        ratio = np.sqrt(np.pi / 2) * special.erfcx(-below / np.sqrt(2))
        tail = -(below**2) / 2 - np.log(2 * np.pi) / 2 + np.log(np.maximum(1 + below * ratio, 1e-300))
        density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        body = np.log(np.maximum(density + z * special.ndtr(z), 1e-300))
        return np.log(std) + np.where(z < 0, tail, body)


@dataclass(frozen=True)
class Proposal:
    """Mixtures to train next.

    Attributes:
      mixtures: [Q, K].
      improvement: expected improvement of the first, nats per token: what the next run promises.
      noise: standard deviation of a run's objective, nats per token.
      believed: [K], the trained mixture believed to be best so far.
      objective: what it is believed to have.
    """

    mixtures: np.ndarray
    improvement: float
    noise: float
    believed: np.ndarray
    objective: float

    def settled(self, threshold: float) -> bool:
        """Whether the next run promises less than `threshold` times the noise of a run."""
        return self.improvement < threshold * self.noise


def believe(model: Any, design: Design, mixtures: np.ndarray, objective: np.ndarray, region: Region) -> Belief:
    """Fits a clone of a regressor on mixtures [R, K] and their objective [R].

    What is believed to be best is chosen from the mixtures inside the region; where there are none, it is its centre.
    A regressor's standard deviation is that of a new run; the least of those at the rows it knows is taken for the
    noise of a run alone.

    Raises:
      UserError: a regressor without a standard deviation.
    """
    features = design(mixtures)
    fitted = clone(model).fit(features, objective[:, None])
    try:
        mean, std = (np.asarray(part).reshape(len(mixtures)) for part in fitted.predict(features, return_std=True))
    except (TypeError, UserError) as error:
        raise UserError(
            f"regressor {type(model).__name__} does not say how sure it is; expected one with "
            "`predict(X, return_std=True)`, such as 'gp'"
        ) from error
    inside = region.contains(mixtures)
    if inside.any():
        known, mean = mixtures[inside], mean[inside]
    else:
        known = region.centre[None]
        mean = np.asarray(fitted.predict(design(known))).reshape(1)
    least = int(np.argmin(mean))
    return Belief(fitted, design, float(std.min()), known[least], float(mean[least]), mixtures)


def propose(
    model: Any,
    design: Design,
    mixtures: np.ndarray,
    objective: np.ndarray,
    region: Region,
    n: int,
    seed: int,
    n_candidates: int = 1024,
) -> Proposal:
    """The n mixtures of most expected improvement, each chosen as if those before it had come out as predicted.

    They differ from each other and from what is trained in at least `LEAST_APART` of their tokens, where the region is
    large enough for that; in one that is not, the next run promises nothing.

    Source: the kriging believer of Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010).

    Args:
      model: unfitted regressor with `predict(X, return_std=True)`.
      design: features of mixtures.
      mixtures: [R, K], what was trained.
      objective: [R], what came of it, nats per token.
      region: where to look.
      n: how many to propose.
      seed: of the search.
      n_candidates: of the search for the largest improvement.

    Raises:
      UserError: a regressor without a standard deviation; n below 1.
    """
    if n < 1:
        raise UserError(f"{n} mixtures to propose, expected at least one")
    chosen: list[np.ndarray] = []
    first: Belief | None = None
    improvement = 0.0
    for i in range(n):
        belief = believe(model, design, np.vstack([mixtures, *chosen]), objective, region)
        first = first or belief
        found = search.minimize(
            belief.loss,
            region,
            seed + i,
            method="refinement",
            n_candidates=n_candidates,
            rounds=12,
            start=belief.best[None],
        )
        if not chosen:
            improvement = float(np.exp(-found.loss))
        chosen.append(found.mixture[None])
        objective = np.append(objective, belief(found.mixture[None])[0])
    assert first is not None
    return Proposal(np.vstack(chosen), improvement, first.noise, first.best, first.least)
