"""Weights of domains that are found while a proxy model is trained: DoReMi (arXiv 2305.10429), DoGE (2310.15393).

Both read batches drawn uniformly over the domains, multiply the weight of each domain by the exponential of a score
and train the proxy on the re-weighted loss; the mixture is the mean of the weights over the steps. DoReMi's score is
how far the proxy is behind a reference model, DoGE's how far a domain's gradient points the way of those of all.

Shapes: K domains, N places of each in a batch, L predicted tokens per sequence; padding stands where a domain has fewer
than N sequences. A domain without a single predicted token in a batch keeps the score that it had last.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mde.data import mixing
from mde.errors import UserError, check_positive, unknown
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.models.sharding import constrain
from mde.training.loss import loss, outputs, reading, token_losses, weighted_loss
from mde.training.method import Reweighted
from mde.training.settings import TrainSettings
from mde.training.step import TrainState, descend


@jax.jit
def multiplied(weights_K: jax.Array, exponents_K: jax.Array) -> jax.Array:
    """Weights times exp(exponents), normalised; a weight of zero stays zero, and no exponent is too large."""
    exponents_K = jnp.where(weights_K > 0, exponents_K, -jnp.inf)
    grown_K = weights_K * jnp.exp(exponents_K - jnp.max(exponents_K))
    return grown_K / jnp.sum(grown_K)


@jax.jit
def excess(losses_NxKxL: jax.Array, reference_NxKxL: jax.Array, mask_NxKxL: jax.Array) -> jax.Array:
    """By how much a proxy's loss exceeds the reference's, [K] in nats per token of each domain.

    Clipped at zero token by token, then averaged over the domain's tokens in the batch (λ_t of DoReMi's algorithm 1).
    """
    return _mean(jnp.maximum(losses_NxKxL - reference_NxKxL, 0), mask_NxKxL)


@jax.jit
def doremi_weights(
    weights_K: jax.Array, excess_K: jax.Array, eta: float | jax.Array, smoothing: float | jax.Array
) -> jax.Array:
    """DoReMi's new weights (algorithm 1): multiplied by exp(η · excess), normalised, and mixed with uniform ones.

    Args:
      weights_K: those before.
      excess_K: of `excess`.
      eta: step size.
      smoothing: share c of the uniform weights in the new ones.
    """
    return (1 - smoothing) * multiplied(weights_K, eta * excess_K) + smoothing / len(weights_K)


@jax.jit
def alignment(gradients: Any, targets_K: jax.Array) -> jax.Array:
    """Inner product of each domain's gradient with the sum of those of the targets, [K] (W of DoGE's algorithm 1).

    Args:
      gradients: a tree of arrays [K, ...].
      targets_K: 1 for domains whose loss is to fall, 0 for others.
    """

    def one(g: jax.Array) -> jax.Array:
        rows_KxP = g.reshape(len(targets_K), -1)
        return rows_KxP @ (targets_K @ rows_KxP)

    return jax.tree.reduce(jnp.add, jax.tree.map(one, gradients))


@jax.jit
def doge_weights(
    weights_K: jax.Array, alignment_K: jax.Array, rate: float | jax.Array, mu: float | jax.Array
) -> jax.Array:
    """DoGE's new weights (algorithm 1): multiplied by exp(η · W / μ) and normalised.

    Args:
      weights_K: those before.
      alignment_K: of `alignment`.
      rate: the learning rate η of the step.
      mu: coefficient μ of the Bregman divergence from the weights before.
    """
    return multiplied(weights_K, rate * alignment_K / mu)


@dataclasses.dataclass(frozen=True)
class _Reweighting:
    """What both methods have in common.

    Attributes:
      domains: the K domains of the mixture that batches are of.
    """

    domains: tuple[str, ...]

    name = ""
    score = ""  # what its score is called

    @property
    def metrics(self) -> tuple[str, ...]:
        """The weight of each domain after a step, and its score in it."""
        return tuple(f"{kind}/{name}" for kind in ("weight", self.score) for name in self.domains)

    def record(self) -> dict[str, Any]:
        """The method and its constants; the domains are those of the mixture."""
        constants = {key: value for key, value in dataclasses.asdict(self).items() if key != "domains"}
        return {"reweighting": {"method": self.name, **constants}}

    def arranged(self, batch: Mapping[str, np.ndarray], weights: np.ndarray, first: int, multiple: int) -> Any:
        """Arrays [N, K, L + 1]."""
        return mixing.grouped(batch, weights, first, multiple)

    def initial(self) -> np.ndarray:
        """The weights [K] before the first step."""
        return np.full(len(self.domains), 1 / len(self.domains), np.float32)

    def begin(self, state: TrainState) -> Reweighted:
        """Uniform weights."""
        return Reweighted(*state, jnp.asarray(self.initial()), jnp.zeros(len(self.domains), jnp.float32))

    def _stepped(
        self,
        settings: TrainSettings,
        state: Reweighted,
        weights_K: jax.Array,
        scores_K: jax.Array,
        grads: decoder.Params,
        rate: jax.Array,
        nll: jax.Array,
    ) -> tuple[Reweighted, dict[str, jax.Array]]:
        """The state after the optimizer's step, and the metrics."""
        after = descend(settings, TrainState(state.params, state.opt_state), grads, rate)
        metrics = {"loss": nll, "grad_norm": optax.tree.norm(grads)}
        metrics |= dict(zip(self.metrics, jnp.concatenate([weights_K, scores_K]), strict=True))
        return Reweighted(*after, weights_K, scores_K), metrics


@dataclasses.dataclass(frozen=True)
class DoReMi(_Reweighting):
    """Domain reweighting with minimax optimisation (arXiv 2305.10429, algorithm 1, step 2).

    Attributes:
      eta: step size of the weights.
      smoothing: share of uniform weights in each step's (c of the paper).

    Raises:
      UserError: constants that make no sense.
    """

    eta: float = 1.0
    smoothing: float = 1e-3

    name = "doremi"
    score = "excess"

    def __post_init__(self) -> None:
        check_positive(eta=self.eta)
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing={self.smoothing!r}, expected a share from 0 up to 1")

    def step(
        self,
        config: DecoderConfig,
        settings: TrainSettings,
        state: Reweighted,
        batch: Mapping[str, jax.Array],
        rate: jax.Array,
        *reference: decoder.Params,
    ) -> tuple[Reweighted, dict[str, jax.Array]]:
        """Weights by the excess over the reference, then a step on Σ weight · mean loss of the domain (minimax).

        `loss` is that sum without the reference's loss, which has no gradient.
        """
        N, K, _ = batch["tokens"].shape
        tokens, segments = (constrain(_rows(batch[name]), "data", None) for name in ("tokens", "segments"))
        shown, documents, mask = reading(config, tokens, segments)
        targets, by_domain = tokens[:, 1:], lambda x: x.reshape(N, K, -1)
        (told,) = (outputs(config, params, shown, documents) for params in reference)
        given, pull_back = jax.vjp(lambda params: outputs(config, params, shown, documents), state.params)
        own, reference_losses = (token_losses(settings.loss_chunks, *each, targets) for each in (given, told))
        scores_K = excess(by_domain(own), by_domain(reference_losses), by_domain(mask))
        counts_K = jnp.sum(by_domain(mask), axis=(0, 2))
        scores_K = jnp.where(counts_K > 0, scores_K, state.scores)
        weights_K = doremi_weights(state.weights, scores_K, self.eta, self.smoothing)
        per_token_B = jnp.tile(weights_K / jnp.maximum(counts_K, 1), N)
        weighted = lambda hidden, matrix: weighted_loss(  # noqa: E731
            settings.z_loss, settings.loss_chunks, hidden, matrix, targets, mask * per_token_B[:, None]
        )
        slopes, nll = jax.grad(weighted, argnums=(0, 1), has_aux=True)(*given)
        (grads,) = pull_back(slopes)
        return self._stepped(settings, state, weights_K, scores_K, grads, rate, nll)


@dataclasses.dataclass(frozen=True)
class DoGE(_Reweighting):
    """Domain reweighting with generalisation estimation (arXiv 2310.15393, algorithms 1 and 2).

    Attributes:
      mu: coefficient of the Bregman divergence; large values keep the weights where they are.
      target: the one domain whose loss is to fall, which the proxy is not trained on (algorithm 2); all if None.

    Raises:
      UserError: constants that make no sense.
    """

    mu: float = 0.05
    target: str | None = None

    name = "doge"
    score = "alignment"

    def __post_init__(self) -> None:
        check_positive(mu=self.mu)
        if self.target is not None and self.target not in self.domains:
            raise unknown("target", self.target, self.domains)
        if self.target is not None and len(self.domains) < 2:
            raise UserError(f"target {self.target!r} is the only domain: none is left to train on")

    def initial(self) -> np.ndarray:
        """Uniform over the domains that are trained on."""
        sources = np.array([name != self.target for name in self.domains])
        return (sources / sources.sum()).astype(np.float32)

    def step(
        self,
        config: DecoderConfig,
        settings: TrainSettings,
        state: Reweighted,
        batch: Mapping[str, jax.Array],
        rate: jax.Array,
        *reference: decoder.Params,
    ) -> tuple[Reweighted, dict[str, jax.Array]]:
        """Weights by the alignment of the domains' gradients, then a step along Σ weight · gradient."""
        gradients, losses_K, counts_K = domain_gradients(config, settings, state.params, batch)
        targets_K = jnp.array([self.target in (None, name) for name in self.domains], jnp.float32)
        scores_K = jnp.where(counts_K > 0, alignment(gradients, targets_K), state.scores)
        weights_K = doge_weights(state.weights, scores_K, rate, self.mu)
        grads = jax.tree.map(lambda g: jnp.tensordot(weights_K, g, 1), gradients)
        return self._stepped(settings, state, weights_K, scores_K, grads, rate, weights_K @ losses_K)


def domain_gradients(
    config: DecoderConfig, settings: TrainSettings, params: decoder.Params, batch: Mapping[str, jax.Array]
) -> tuple[decoder.Params, jax.Array, jax.Array]:
    """Gradient of each domain's mean loss, clipped on its own, one backward pass over the domain's own sequences.

    Args:
      config: architecture.
      settings: `clip_norm`, `z_loss` and `loss_chunks` count.
      params: of the model.
      batch: `tokens` and `segments`, [N, K, L + 1].

    Returns:
      A tree of [K, ...], losses [K] in nats per token, and [K] how many tokens they are means of.
    """

    def one(tokens: jax.Array, segments: jax.Array) -> Any:
        tokens, segments = constrain(tokens, "data", None), constrain(segments, "data", None)
        value = lambda params: loss(  # noqa: E731
            config, params, tokens, segments, z_loss=settings.z_loss, chunks=settings.loss_chunks
        )
        gradient, nll = jax.grad(value, has_aux=True)(params)
        scale = jnp.minimum(1, settings.clip_norm / jnp.maximum(optax.tree.norm(gradient), 1e-30))
        return jax.tree.map(lambda g: scale * g, gradient), nll, jnp.sum(reading(config, tokens, segments)[2])

    return jax.vmap(one, in_axes=1)(batch["tokens"], batch["segments"])


def _rows(x_NxKxL: jax.Array) -> jax.Array:
    return x_NxKxL.reshape(-1, x_NxKxL.shape[-1])


def _mean(values_NxKxL: jax.Array, mask_NxKxL: jax.Array) -> jax.Array:
    """Means [K] over what a mask lets through; 0 where that is nothing."""
    total_K = jnp.sum(jnp.where(mask_NxKxL, values_NxKxL, 0), axis=(0, 2))
    return total_K / jnp.maximum(jnp.sum(mask_NxKxL, axis=(0, 2)), 1)
