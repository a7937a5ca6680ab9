"""A mixture of experts as a language model: what it says of tokens, and how it goes on.

The next token has the probability `Σ_k w_k p_k(x_t)`, where expert k's weight is `λ_k exp(τ Σ_{s<t} log p_k(x_s))`,
normalised, over all earlier tokens of the text, its context included (τ = 0 is MDE, arXiv 2502.15950, eq. 1). A single
model is a mixture of one.

Shapes: B texts, L positions, K experts, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mde.errors import UserError
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.optimization import simplex

_STEP = 64  # prompts are padded to multiples of it, so that few programs are compiled


class ExpertMixture:
    """A language model made of experts; those without a share are left out.

    Args:
      config: architecture of the experts.
      experts: parameters of each.
      weights: [K] their shares λ.
      tau: exponent of the prefix posterior, in [0, 1].

    Raises:
      UserError: weights off the simplex, or not as many as experts; τ outside [0, 1].
    """

    def __init__(
        self, config: DecoderConfig, experts: Sequence[decoder.Params], weights: npt.ArrayLike = (1.0,), tau: float = 0
    ):
        shares = simplex.check_mixtures(weights, [str(k) for k in range(len(experts))], where="weights")[0]
        if not 0 <= tau <= 1:
            raise UserError(f"tau={tau} must lie in [0, 1]")
        used = [expert for expert, share in zip(experts, shares, strict=True) if share > 0]
        self.config = config
        self._experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *used)
        self._logs_K = np.log(shares[shares > 0]).astype(np.float32)
        self._tau = np.float32(tau)

    def score(self, tokens: np.ndarray, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the model says of the tokens of texts, one in a row.

        Args:
          tokens: [B, L + 1].
          segments: [B, L + 1], 1 where the text is and 0 where padding is.

        Returns:
          [B, L] log-probabilities in nats of each next token, and whether it is the likeliest; without meaning for
          padding.
        """
        found = _score(self.config, self._experts, self._logs_K, self._tau, tokens, segments)
        return np.asarray(found[0]), np.asarray(found[1])

    def generate(
        self, prompts: Sequence[Sequence[int]], most: int, finished: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """Goes on from each prompt, always with the likeliest token.

        Args:
          prompts: tokens, at least one in each.
          most: tokens that are added to each at most.
          finished: whether the tokens that were added to a prompt are enough.

        Returns:
          The tokens that were added.
        """
        length = -(-max(map(len, prompts)) // _STEP) * _STEP
        tokens = np.stack([np.pad(np.asarray(p, np.int32), (length - len(p), 0)) for p in prompts])
        counts = np.array([[len(prompt)] for prompt in prompts])
        segments = (np.arange(length + most) >= length - counts).astype(np.int32)
        args = self.config, self._experts, self._logs_K, self._tau
        state = _read(self.config, self._experts, tokens, segments)
        added: list[list[int]] = [[] for _ in prompts]
        running = [True] * len(prompts)
        for position in range(length, length + most):
            chosen, state = _advance(*args, segments, position, state)
            for i, token in enumerate(np.asarray(chosen).tolist()):
                if running[i]:
                    added[i].append(token)
                    running[i] = not finished(added[i])
            if not any(running):
                break
        return added


class _State(NamedTuple):
    """What the experts know of texts that go on.

    Attributes:
      cache: their keys and values, with a leading axis K.
      next: [K, B, V] log-probs of the next token.
      sums: [K, B] log-probs of the texts so far.
    """

    cache: Any
    next: jax.Array
    sums: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _score(
    config: DecoderConfig, experts: Any, logs_K: jax.Array, tau: jax.Array, tokens: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`ExpertMixture.score`: expert by expert, so that the logits of one are in memory, and their sum."""
    targets = tokens[:, 1:, None]
    mask = decoder.target_mask(segments)

    def add(sums: tuple[jax.Array, jax.Array], expert: tuple[Any, jax.Array]) -> tuple[Any, None]:
        params, log_share = expert
        logits: Any = decoder.Decoder(config).apply({"params": params}, tokens[:, :-1], segments[:, :-1])
        log_probs_BxLxV = jax.nn.log_softmax(logits)
        own = jnp.where(mask, jnp.take_along_axis(log_probs_BxLxV, targets, axis=-1)[..., 0], 0)
        weights = log_share + tau * (jnp.cumsum(own, axis=1) - own)
        mixed, total = sums
        return (jnp.logaddexp(mixed, weights[..., None] + log_probs_BxLxV), jnp.logaddexp(total, weights)), None

    nothing = jnp.full((*mask.shape, config.vocab_size), -jnp.inf), jnp.full(mask.shape, -jnp.inf)
    (mixed, total), _ = jax.lax.scan(add, nothing, (experts, logs_K))
    chosen = jnp.take_along_axis(mixed, targets, axis=-1)[..., 0]
    return jnp.minimum(chosen - total, 0), mixed.argmax(axis=-1) == targets[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _read(config: DecoderConfig, experts: Any, tokens: jax.Array, segments: jax.Array) -> _State:
    """What the experts make of the prompts."""
    mask = decoder.target_mask(segments[:, : tokens.shape[1]])

    def one(params: decoder.Params) -> _State:
        log_probs, cache = decoder.log_probs_with_cache(config, params, tokens, segments, 0, None)
        own = jnp.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
        return _State(cache, log_probs[:, -1], jnp.where(mask, own, 0).sum(axis=1))

    return jax.lax.map(one, experts)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=6)
def _advance(
    config: DecoderConfig,
    experts: Any,
    logs_K: jax.Array,
    tau: jax.Array,
    segments: jax.Array,
    position: jax.Array,
    state: _State,
) -> tuple[jax.Array, _State]:
    """The likeliest next tokens [B], which stand at `position` from now on."""
    weights_KxB = logs_K[:, None] + tau * state.sums
    chosen_B = jax.nn.logsumexp(weights_KxB[..., None] + state.next, axis=0).argmax(axis=-1)
    own = jnp.take_along_axis(state.next, chosen_B[None, :, None], axis=-1)[..., 0]

    def one(expert: tuple[decoder.Params, Any]) -> tuple[jax.Array, Any]:
        params, cache = expert
        log_probs, cache = decoder.log_probs_with_cache(config, params, chosen_B[:, None], segments, position, cache)
        return log_probs[:, -1], cache

    following, cache = jax.lax.map(one, (experts, state.cache))
    return chosen_B, _State(cache, following, state.sums + own)
