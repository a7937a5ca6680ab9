"""Losses of a mixture of experts for very many candidate weights at once.

The probability of a token under the mixture of data experts is `p(x_t) = Σ_k λ_k p_k(x_t)` (MDE, arXiv 2502.15950,
eq. 1), so for all candidates it is one matrix product of [T, K] probabilities and [K, C] weights, and what remains is a
logarithm of every entry and a sum over tokens.

How it is kept exact and fast:

* Probabilities are divided by the largest of their token (its logarithm is added back), so a product of weights and
  probabilities lies in [smallest ratio, 1] for every point of the simplex.
* A logarithm is taken of the product of several tokens' values instead of each. Tokens are sorted into tiers by the
  range of their log-probs, so that such a product stays a normal float32 whatever the weights are, corners included.
* The few tokens whose range is too wide even for that take the log-sum-exp path.
* Sums over blocks of tokens are compensated (Knuth's two-sum), so the error does not grow with T.

Shapes: T tokens, K experts, C candidates, J evaluation domains.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mde.errors import UserError

# (tokens whose product one logarithm is taken of, widest range of log-probs in nats). A product of g values that are
# each at least exp(-range) is at least exp(-80) = 1.8e-35: above the smallest normal float32, 1.2e-38. The last tier
# stops at 60 so that weights too small for a float32 do not count there either.
_TIERS = ((8, 10.0), (2, 40.0), (1, 60.0))
_TOKEN_BLOCK = 512
_CANDIDATE_BLOCK = 512
_WIDE_TOKEN_BLOCK = 64


class MixtureLosses:
    """Losses of any mixture of experts on text that was scored once; prepare it once, call it often.

    With an exponent τ > 0 the weights follow the prefix: expert k's weight at position t of a sequence is
    `λ_k exp(τ Σ_{s<t} log p_k(x_s))`, normalised. τ = 0 is MDE; τ = 1 is the exact Bayes mixture of sequence
    probabilities (MixMin's objective), of which one term a sequence remains.

    Args:
      log_probs: [T, K] log-probabilities in nats of the scored tokens under each expert.
      segment_ids: [T] domain of each token, 0 … J − 1; each domain has at least one.
      tau: the exponent, in [0, 1].
      sequence_ids: [T] numbers of the sequences, the tokens of one standing together in order; needed for τ > 0.

    Raises:
      UserError: NaN or positive log-probs, a token that is impossible under every expert, an empty domain.
    """

    def __init__(
        self,
        log_probs: np.ndarray,
        segment_ids: np.ndarray,
        tau: float = 0.0,
        sequence_ids: np.ndarray | None = None,
    ):
        self._counts = _check(log_probs, segment_ids)
        if not 0 <= tau <= 1:
            raise UserError(f"tau={tau} must lie in [0, 1]")
        domains = len(self._counts)
        if tau == 0:
            self._terms = [(1.0, _LogMix(log_probs, segment_ids, domains))]
            return
        if sequence_ids is None:
            raise UserError(f"tau={tau} needs sequence_ids: which tokens share a prefix")
        starts = np.flatnonzero(np.diff(sequence_ids, prepend=sequence_ids[0] - 1))
        log_probs = np.asarray(log_probs, np.float64)
        if tau == 1:
            sums = np.add.reduceat(log_probs, starts)
            self._terms = [(1.0, _LogMix(sums, segment_ids[starts], domains))]
            return
        prior = tau * _prefix_sums(log_probs, starts)
        self._terms = [
            (1.0, _LogMix(prior + log_probs, segment_ids, domains)),
            (-1.0, _LogMix(prior, segment_ids, domains)),
        ]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """[C, K] mixtures on the simplex to [C, J] losses in nats per token, float64."""
        weights = np.asarray(weights, np.float64)
        return -sum(sign * term(weights) for sign, term in self._terms) / self._counts


def mixture_nll(
    log_probs: np.ndarray,
    segment_ids: np.ndarray,
    weights: np.ndarray,
    *,
    tau: float = 0.0,
    sequence_ids: np.ndarray | None = None,
) -> np.ndarray:
    """Losses [C, J] in nats per token of the mixtures `weights` [C, K]; see `MixtureLosses` for the rest."""
    return MixtureLosses(log_probs, segment_ids, tau, sequence_ids)(weights)


def _check(log_probs: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Tokens of each domain, [J]."""
    bad = ~(log_probs <= 0)
    if bad.any():
        token, expert = np.argwhere(bad)[0]
        raise UserError(
            f"log-prob of token {token} (domain {segment_ids[token]}) under expert {expert} is "
            f"{log_probs[token, expert]}; expected a number of at most 0"
        )
    impossible = np.isneginf(log_probs).all(axis=1)
    if impossible.any():
        raise UserError(f"token {np.argmax(impossible)} is impossible under every expert")
    counts = np.bincount(segment_ids)
    if (counts == 0).any():
        raise UserError(f"domain {np.argmin(counts)} has no token")
    return counts


def _prefix_sums(log_probs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[T, K] sums over the earlier tokens of the same sequence; by loops over sequences, so that −inf stays inside."""
    sums = np.zeros_like(log_probs)
    for start, stop in zip(starts, [*starts[1:], len(log_probs)], strict=True):
        np.cumsum(log_probs[start : stop - 1], axis=0, out=sums[start + 1 : stop])
    return sums


@dataclasses.dataclass(frozen=True)
class _Tier:
    """Tokens of one tier, in blocks that never cross a domain.

    The last blocks are filled up with rows that belong to one more expert, of weight 1: their mixture is exactly 1.
    """

    group: int  # tokens whose product one logarithm is taken of; 0 for the log-sum-exp path
    values: jax.Array  # [blocks, tokens, K + 1] probabilities over the row's largest; logarithms of them if group is 0
    domains: jax.Array  # [blocks]


class _LogMix:
    """Sums by domain of `log Σ_k λ_k exp(a_tk)`, for a [T, K] that is given once and λ by the thousand."""

    def __init__(self, logits: np.ndarray, segment_ids: np.ndarray, n_domains: int):
        largest = logits.max(axis=1)
        shifted = (logits - largest[:, None]).astype(np.float32)
        spread = -shifted.min(axis=1)
        self._offsets = np.bincount(segment_ids, weights=largest.astype(np.float64), minlength=n_domains)
        self._tiers = []
        lower = -1.0
        for group, upper in (*_TIERS, (0, np.inf)):
            rows = (spread > lower) & (spread <= upper)
            if rows.any():
                self._tiers.append(_cut(group, shifted[rows], segment_ids[rows]))
            lower = upper

    def __call__(self, weights_CxK: np.ndarray) -> np.ndarray:
        """[C, J] sums in nats, float64."""
        total = np.tile(self._offsets, (len(weights_CxK), 1))
        padded = np.pad(weights_CxK, ((0, 0), (0, 1)), constant_values=1)
        with np.errstate(divide="ignore"):
            log_weights = np.log(padded)  # in float64: the smallest weights count where sequences are compared
        for tier in self._tiers:
            values = padded if tier.group else log_weights
            total += _sums(tier, values.astype(np.float32), len(self._offsets))
        return total


def _cut(group: int, shifted: np.ndarray, domains: np.ndarray) -> _Tier:
    """Cuts the rows of each domain into blocks."""
    size = _TOKEN_BLOCK if group else _WIDE_TOKEN_BLOCK
    shifted = np.pad(shifted, ((0, 0), (0, 1)), constant_values=-np.inf)
    filler = np.full((1, shifted.shape[1]), -np.inf, np.float32)
    filler[0, -1] = 0
    blocks, owners = [], []
    for j in np.unique(domains):
        rows = shifted[domains == j]
        rows = np.concatenate([rows, np.repeat(filler, -len(rows) % size, axis=0)])
        blocks.append(rows.reshape(-1, size, rows.shape[1]))
        owners += [j] * len(blocks[-1])
    values = np.concatenate(blocks)
    return _Tier(group, jnp.asarray(np.exp(values) if group else values), jnp.asarray(owners, jnp.int32))


def _sums(tier: _Tier, weights: np.ndarray, n_domains: int) -> np.ndarray:
    """[C, J] sums of one tier, in blocks of candidates that are spread over all devices."""
    devices = jax.device_count()
    size = min(_CANDIDATE_BLOCK, -(-len(weights) // devices))
    missing = -len(weights) % (size * devices)
    blocks = np.pad(weights, ((0, missing), (0, 0)), mode="edge").reshape(-1, size, weights.shape[1])
    sums = _program(tier.group, n_domains, devices)(tier.values, tier.domains, blocks)
    return np.asarray(sums, np.float64).reshape(-1, n_domains)[: len(weights)]


@functools.cache
def _program(group: int, n_domains: int, devices: int) -> Callable[..., jax.Array]:
    """The jitted program of a tier: every device takes its blocks of candidates one after another."""
    mesh = jax.make_mesh((devices,), ("candidates",), (AxisType.Auto,))

    def local(values: jax.Array, domains: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.map(lambda w: _candidates(group, n_domains, values, domains, w), weights)

    split = P("candidates")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), split), out_specs=split, check_vma=False))


def _candidates(group: int, n_domains: int, values: jax.Array, domains: jax.Array, weights_CxK: jax.Array) -> jax.Array:
    """[C, J] sums of one block of candidates over all blocks of tokens, with compensation for rounding."""

    def add(carry: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        (total, lost), (values_TxK, domain) = carry, block
        term, lost_inside = _block_sum(group, values_TxK, weights_CxK)
        new, lost_here = _two_sum(total[domain], term)
        return (total.at[domain].set(new), lost.at[domain].add(lost_here + lost_inside)), None

    zeros = jnp.zeros((n_domains, len(weights_CxK)), jnp.float32)
    (total, lost), _ = jax.lax.scan(add, (zeros, zeros), (values, domains))
    return (total + lost).T


def _block_sum(group: int, values_TxK: jax.Array, weights_CxK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[C] sums over one block of tokens, and what rounding lost of them; group 0 takes logarithms of the weights."""
    if group == 0:
        terms_TxC = jax.nn.logsumexp(values_TxK[:, None, :] + weights_CxK, axis=-1)
        lost = jnp.zeros_like(terms_TxC[0])
        while len(terms_TxC) > 1:  # these terms are large: hundreds of nats where whole sequences are compared
            terms_TxC, lost_here = _two_sum(*jnp.split(terms_TxC, 2))
            lost += jnp.sum(lost_here, axis=0)
        return terms_TxC[0], lost
    mixed_TxC = jnp.matmul(values_TxK, weights_CxK.T, precision=jax.lax.Precision.HIGHEST)
    products = jnp.prod(mixed_TxC.reshape(-1, group, mixed_TxC.shape[1]), axis=1)
    sums = jnp.sum(jnp.log(products), axis=0)
    return sums, jnp.zeros_like(sums)


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum and exactly what rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
