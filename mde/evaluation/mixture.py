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
import math
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
_LOG2_HIGH, _LOG2_LOW = 0.6875, math.log(2) - 0.6875  # the first has four bits: its product with an exponent is exact
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
            self._terms = [_LogMix(log_probs, segment_ids, domains)]
            return
        if sequence_ids is None:
            raise UserError(f"tau={tau} needs sequence_ids: which tokens share a prefix")
        starts = np.flatnonzero(np.diff(sequence_ids, prepend=sequence_ids[0] - 1))
        log_probs = np.asarray(log_probs, np.float64)
        if tau == 1:
            sums = np.add.reduceat(log_probs, starts)
            self._terms = [_LogMix(sums, segment_ids[starts], domains)]
            return
        prior = tau * _prefix_sums(log_probs, starts)
        self._terms = [
            _LogMix(prior + log_probs, segment_ids, domains),
            _LogMix(prior, segment_ids, domains),
        ]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """[C, K] mixtures on the simplex to [C, J] losses in nats per token, float64."""
        weights = np.asarray(weights, np.float64)
        sums, *prefix = (term(weights) for term in self._terms)
        if prefix:
            # Where nothing is left of a prefix, the token that left nothing has made the sum −inf already.
            sums -= np.where(np.isneginf(prefix[0]), 0, prefix[0])
        return -sums / self._counts


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
    if log_probs.ndim != 2 or segment_ids.shape != log_probs.shape[:1]:
        raise UserError(f"log_probs {log_probs.shape} and segment_ids {segment_ids.shape}: expected [T, K] and [T]")
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
        largest = logits.max(axis=1).astype(np.float64)
        largest[np.isneginf(largest)] = 0
        spread = largest - logits.min(axis=1)
        self._offsets = np.bincount(segment_ids, weights=largest, minlength=n_domains)
        self._tiers = []
        lower = -1.0
        for group, upper in (*_TIERS, (0, np.inf)):
            rows = (spread > lower) & (spread <= upper)
            if rows.any():
                self._tiers.append(_cut(group, logits[rows], largest[rows], segment_ids[rows]))
            lower = upper

    def __call__(self, weights_CxK: np.ndarray) -> np.ndarray:
        """[C, J] sums in nats, float64."""
        total = np.tile(self._offsets, (len(weights_CxK), 1))
        padded = np.pad(weights_CxK, ((0, 0), (0, 1)), constant_values=1)
        with np.errstate(divide="ignore"):
            log_weights = _split(np.log(padded))  # the smallest weights count where sequences are compared
        for tier in self._tiers:
            values = log_weights if tier.group == 0 else padded.astype(np.float32)
            total += _sums(tier, values, len(self._offsets))
        return total


def _cut(group: int, logits: np.ndarray, largest: np.ndarray, domains: np.ndarray) -> _Tier:
    """Cuts the rows of each domain into blocks; all that is rounded to float32 is rounded once, at the end."""
    size = _TOKEN_BLOCK if group else _WIDE_TOKEN_BLOCK
    filler = np.full((1, logits.shape[1] + 1), -np.inf)
    filler[0, -1] = 0
    blocks, owners = [], []
    for j in np.unique(domains):
        mine = domains == j
        rows = np.pad(logits[mine] - largest[mine, None], ((0, 0), (0, 1)), constant_values=-np.inf)
        rows = np.concatenate([rows, np.repeat(filler, -len(rows) % size, axis=0)])
        values = np.exp(rows).astype(np.float32) if group else _split(rows)
        blocks.append(values.reshape(-1, size, *values.shape[1:]))
        owners += [j] * len(blocks[-1])
    return _Tier(group, jnp.asarray(np.concatenate(blocks)), jnp.asarray(owners, jnp.int32))


def _split(values: np.ndarray) -> np.ndarray:
    """[..., K] float64 as [..., 2, K] float32: rounded, and what rounding lost."""
    high = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        low = np.where(np.isneginf(values), 0, values - high).astype(np.float32)
    return np.stack([high, low], axis=-2)


def _sums(tier: _Tier, weights: np.ndarray, n_domains: int) -> np.ndarray:
    """[C, J] sums of one tier, in blocks of candidates that are spread over all devices."""
    devices = jax.device_count()
    size = max(1, min(_CANDIDATE_BLOCK, -(-len(weights) // devices)))
    missing = -len(weights) % (size * devices) or (0 if len(weights) else size * devices)
    blocks = np.concatenate([weights, np.ones_like(weights, shape=(missing, *weights.shape[1:]))])
    blocks = blocks.reshape(-1, size, *weights.shape[1:])
    sums, lost = _program(tier.group, n_domains, devices)(tier.values, tier.domains, blocks)
    total = np.asarray(sums, np.float64) + np.asarray(lost, np.float64)
    return total.swapaxes(1, 2).reshape(-1, n_domains)[: len(weights)]


@functools.cache
def _program(group: int, n_domains: int, devices: int) -> Callable[..., jax.Array]:
    """The jitted program of a tier: every device takes its blocks of candidates one after another."""
    mesh = jax.make_mesh((devices,), ("candidates",), (AxisType.Auto,))

    def local(values: jax.Array, domains: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(lambda w: _candidates(group, n_domains, values, domains, w), weights)

    split = P("candidates")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), split), out_specs=split, check_vma=False))


def _candidates(
    group: int, n_domains: int, values: jax.Array, domains: jax.Array, weights_CxK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[J, C] sums of one block of candidates over all blocks of tokens, and what rounding lost of them."""

    def add(carry: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        (total, lost), (values_TxK, domain) = carry, block
        term, lost_inside = _block_sum(group, values_TxK, weights_CxK)
        new, lost_here = _two_sum(total[domain], term)
        return (total.at[domain].set(new), lost.at[domain].add(lost_here + lost_inside)), None

    zeros = jnp.zeros((n_domains, len(weights_CxK)), jnp.float32)
    (total, lost), _ = jax.lax.scan(add, (zeros, zeros), (values, domains))
    return total, lost


def _block_sum(group: int, values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[C] sums over one block of tokens, and what rounding lost of them; group 0 takes logarithms of the weights."""
    if group == 0:
        return _wide_block_sum(values, weights)
    mixed_TxC = jnp.matmul(values, weights.T, precision=jax.lax.Precision.HIGHEST)
    products = jnp.prod(mixed_TxC.reshape(-1, group, mixed_TxC.shape[1]), axis=1)
    # Exponents are added exactly; mantissas, each in [1, 2), are multiplied by the 64 before a logarithm is taken.
    bits = jax.lax.bitcast_convert_type(products, jnp.int32)
    exponents = jnp.sum((bits >> 23) - 127, axis=0).astype(jnp.float32)
    mantissas = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    rows = min(64, len(mantissas))
    logs = jnp.sum(jnp.log(jnp.prod(mantissas.reshape(-1, rows, mantissas.shape[1]), axis=1)), axis=0)
    return _two_sum(exponents * _LOG2_HIGH, exponents * _LOG2_LOW + logs)


def _wide_block_sum(values_Tx2xK: jax.Array, weights_Cx2xK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[C] sums of log-sum-exps, whose arguments are hundreds of nats where whole sequences are compared."""
    high, low = _two_sum(values_Tx2xK[:, None, 0], weights_Cx2xK[:, 0])
    low += values_Tx2xK[:, None, 1] + weights_Cx2xK[:, 1]
    largest_TxC = jnp.max(high, axis=-1)
    largest_TxC = jnp.where(jnp.isneginf(largest_TxC), 0, largest_TxC)
    rest_TxC = jnp.log(jnp.sum(jnp.exp(high - largest_TxC[..., None] + low), axis=-1))
    terms, lost = _two_sum(largest_TxC, rest_TxC)
    lost = jnp.sum(lost, axis=0)
    while len(terms) > 1:
        terms, lost_here = _two_sum(*jnp.split(terms, 2))
        lost += jnp.sum(lost_here, axis=0)
    return terms[0], lost


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum and exactly what rounding lost (Knuth)."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    return total, jnp.where(jnp.isfinite(total), lost, 0)
