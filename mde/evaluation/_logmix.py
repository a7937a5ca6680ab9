"""Sums over tokens of `log Σ_k λ_k exp(a_tk)` and their gradients: what runs on the devices.

A logarithm is taken of products, not of every entry: the mixtures of up to 8 tokens are multiplied, exponents of the
products are added as integers, up to 64 mantissas are multiplied, and one logarithm is taken of that. Sums over blocks
are compensated (Knuth's two-sum), so that the error does not grow with the number of tokens.

Shapes: B blocks of N tokens, K experts, C candidates, J domains. Rows have one more column, for an expert of weight 1
that owns the rows of padding: their mixture is exactly 1 and adds exactly nothing.
"""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# (tokens whose product is taken, how small a row's mixture can be, in nats below its largest probability). A product of
# g values of at least exp(-reach) is at least exp(-80) = 1.8e-35: above the smallest normal float32, 1.2e-38. Group 0,
# for what reaches further, is log-sum-exp.
GROUPS = ((8, 10.0), (2, 40.0), (0, math.inf))
_UNROLLED = 16  # experts up to which XLA's fusion of sum and product beats a matmul, whose result goes through memory
_PIECE = 64  # tokens worked on at a time: what is between two steps stays in the first cache
_MANTISSAS = 64  # below 2 each: their product stays a float32
_LOG2_HIGH, _LOG2_LOW = 0.6875, math.log(2) - 0.6875  # the first has four bits: its product with an exponent is exact

Pair = tuple[jax.Array, jax.Array]  # a rounded sum, and what rounding lost of it


def sums(
    group: int,
    n_domains: int,
    steps: jax.Array,
    blocks: jax.Array,
    domains_B: jax.Array,
    support_K: jax.Array,
    weights: jax.Array,
) -> Pair:
    """[J, C] sums of logarithms over the first `steps` blocks.

    Args:
      group: how many tokens a product is taken of; 0 for log-sum-exp.
      n_domains: J.
      steps: how many of the blocks count.
      blocks: [B, N, K + 1] probabilities over the row's largest, or [B, N, 2, K + 1] logarithms of them as pairs.
      domains_B: the domain of each block.
      support_K: the experts to whom any of the candidates gives weight; it matters with logarithms and a group.
      weights: [K, C]; for group 0 [2, K, C], logarithms of them as pairs.
    """
    if group == 0:
        step = functools.partial(_log_sum_exps, weights=weights)
    elif blocks.ndim == 3:
        step = functools.partial(_narrow_sum, group, weights=weights)
    else:
        step = functools.partial(_wide_sum, group, support_K=support_K, weights=weights)
    return _accumulate(step, (n_domains, weights.shape[-1]), steps, blocks, domains_B)


def gradients(
    group: int,
    n_domains: int,
    steps: jax.Array,
    blocks: jax.Array,
    domains_B: jax.Array,
    support_K: jax.Array,
    weights: jax.Array,
) -> Pair:
    """[J, K, C] derivatives `Σ_t exp(a_tk) / Σ_l λ_l exp(a_tl)` of the sums by the weights; arguments as for `sums`.

    They are infinite where float32 has no number for them: for an expert without weight that finds a token exp(88)
    times likelier than those that have it.
    """

    def step(block: jax.Array) -> Pair:
        if group == 0:
            found = _log_sum_exp_gradients(block, weights)
        else:
            values, inside = (block, block) if block.ndim == 2 else _probabilities(block, support_K)[:2]
            inverse_NxC = _by_pieces(lambda rows: _inverse(mixed(rows, weights)), inside)
            found = jnp.matmul(values[:, :-1].T, inverse_NxC, precision=lax.Precision.HIGHEST)
        return found, jnp.zeros_like(found)

    return _accumulate(step, (n_domains, *weights.shape[-2:]), steps, blocks, domains_B)


def _accumulate(
    step: Callable[[jax.Array], Pair], shape: tuple[int, ...], steps: jax.Array, blocks: jax.Array, domains_B: jax.Array
) -> Pair:
    """Compensated sums by domain of what `step` makes of each block."""

    def add(i: jax.Array, carry: Pair) -> Pair:
        (total, lost), j = carry, domains_B[i]
        term, lost_inside = step(blocks[i])
        new, lost_here = two_sum(total[j], term)
        return total.at[j].set(new), lost.at[j].add(lost_here + lost_inside)

    zeros = jnp.zeros(shape, jnp.float32)
    return lax.fori_loop(0, steps, add, (zeros, zeros))


def _narrow_sum(group: int, values: jax.Array, weights: jax.Array) -> Pair:
    """[C] sums over one block of probabilities whose mixtures stay within the group's reach."""
    return _sum_of_logs(_by_pieces(lambda rows: _products(rows, weights, group), values))


def _wide_sum(group: int, pairs: jax.Array, support_K: jax.Array, weights: jax.Array) -> Pair:
    """[C] sums over one block of logarithms; they are taken relative to the largest of the support."""
    _, inside, largest_N, impossible = _probabilities(pairs, support_K)
    total, lost = _narrow_sum(group, inside, weights)
    scale, lost_of_scale = _tree_sum(largest_N)
    total, lost_here = two_sum(total, scale)
    return jnp.where(impossible, -jnp.inf, total), jnp.where(impossible, 0, lost + lost_of_scale + lost_here)


def _probabilities(pairs_Nx2xK: jax.Array, support_K: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Probabilities [N, K + 1] over the largest of the support, of all experts and of the support alone; that largest's
    logarithm [N]; whether any token is impossible under all of the support."""
    high, low = pairs_Nx2xK[:, 0], pairs_Nx2xK[:, 1]
    member = jnp.append(support_K, True)
    largest_N = jnp.max(jnp.where(member, high, -jnp.inf), axis=1)
    impossible = jnp.any(jnp.isneginf(largest_N))
    largest_N = jnp.where(jnp.isneginf(largest_N), 0, largest_N)
    relative, lost = two_sum(high, -largest_N[:, None])
    values = jnp.exp(relative) * (1 + (lost + low))
    return values, jnp.where(member, values, 0), largest_N, impossible


def _by_pieces(work: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """[rows, K + 1] to [results, C], a piece at a time; the loop keeps XLA from working out results twice."""
    size = min(len(rows), _PIECE if rows.shape[1] <= _UNROLLED + 1 else 2 * _PIECE)
    found = lax.map(work, rows.reshape(-1, size, rows.shape[1]))
    return found.reshape(-1, found.shape[-1])


def mixed(rows: jax.Array, weights_KxC: jax.Array) -> jax.Array:
    """[..., C] mixtures of probabilities [..., K + 1]."""
    if len(weights_KxC) > _UNROLLED:
        return jnp.matmul(rows[..., :-1], weights_KxC, precision=lax.Precision.HIGHEST) + rows[..., -1:]
    terms = (rows[..., k, None] * weights_KxC[k] for k in range(len(weights_KxC)))
    return functools.reduce(operator.add, terms, rows[..., -1:])


def _products(rows: jax.Array, weights_KxC: jax.Array, group: int) -> jax.Array:
    """[rows / group, C] products of the mixtures of `group` rows each."""
    if len(weights_KxC) > _UNROLLED:
        every = mixed(rows, weights_KxC)
        return functools.reduce(operator.mul, every.reshape(group, -1, every.shape[1]))
    return functools.reduce(operator.mul, [mixed(part, weights_KxC) for part in rows.reshape(group, -1, rows.shape[1])])


def _inverse(values: jax.Array) -> jax.Array:
    return jnp.where(values > 0, 1 / values, 0)


def _sum_of_logs(products: jax.Array) -> Pair:
    """[C] sums of the logarithms of normal float32 [R, C]; sums by halves, which XLA fuses and vectorises."""
    bits = lax.bitcast_convert_type(products, jnp.int32)
    exponents = _halves(operator.add, (bits >> 23) - 127, 1)[0].astype(jnp.float32)
    mantissas = lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    logs = jnp.log(_halves(operator.mul, mantissas, -(-len(products) // _MANTISSAS)))
    return two_sum(exponents * _LOG2_HIGH, exponents * _LOG2_LOW + _halves(operator.add, logs, 1)[0])


def _halves(combine: Callable[[jax.Array, jax.Array], jax.Array], values: jax.Array, until: int) -> jax.Array:
    while len(values) > until:
        values = combine(*jnp.split(values, 2))
    return values


def _log_sum_exps(pairs_Nx2xK: jax.Array, weights: jax.Array) -> Pair:
    """[C] sums of log-sum-exps, whose arguments are thousands of nats where whole sequences are compared."""

    def piece(rows: jax.Array) -> Pair:
        logs, lost = _log_mixtures(rows, weights)
        total, lost_here = _tree_sum(logs)
        return total, jnp.sum(lost, axis=0) + lost_here

    terms, lost = lax.map(piece, pairs_Nx2xK.reshape(-1, min(len(pairs_Nx2xK), _PIECE), *pairs_Nx2xK.shape[1:]))
    total, lost_here = _tree_sum(terms)
    return total, jnp.sum(lost, axis=0) + lost_here


def _log_mixtures(rows_Nx2xK: jax.Array, weights_2xKxC: jax.Array) -> Pair:
    """[N, C] log-sum-exps as pairs."""
    arguments, rest = _arguments(rows_Nx2xK, weights_2xKxC)
    largest = jnp.max(arguments, axis=1)
    largest = jnp.where(jnp.isneginf(largest), 0, largest)
    return two_sum(largest, jnp.log(jnp.sum(jnp.exp(arguments - largest[:, None] + rest), axis=1)))


def _arguments(rows_Nx2xK: jax.Array, weights_2xKxC: jax.Array) -> Pair:
    """[N, K + 1, C] logarithms of weights times probabilities as pairs."""
    logs = jnp.pad(weights_2xKxC, ((0, 0), (0, 1), (0, 0)))  # the logarithm of 1 for the owner of padding
    high, lost = two_sum(rows_Nx2xK[:, 0, :, None], logs[0])
    return high, lost + (rows_Nx2xK[:, 1, :, None] + logs[1])


def _log_sum_exp_gradients(pairs_Nx2xK: jax.Array, weights: jax.Array) -> jax.Array:
    """[K, C] derivatives by the weights, each from the difference of two logarithms."""

    def piece(rows: jax.Array) -> jax.Array:
        logs, lost = _log_mixtures(rows, weights)
        possible = jnp.isfinite(logs)[:, None]
        relative, lost_here = two_sum(rows[:, 0, :-1, None], -logs[:, None])
        values = jnp.exp(relative) * (1 + (lost_here + rows[:, 1, :-1, None] - lost[:, None]))
        return jnp.sum(jnp.where(possible, values, 0), axis=0)

    found = lax.map(piece, pairs_Nx2xK.reshape(-1, min(len(pairs_Nx2xK), _PIECE), *pairs_Nx2xK.shape[1:]))
    return jnp.sum(found, axis=0)


def _tree_sum(terms: jax.Array) -> Pair:
    """The compensated sum over the first axis, a power of two long."""
    lost = jnp.zeros_like(terms[0])
    while len(terms) > 1:
        terms, lost_here = two_sum(*jnp.split(terms, 2))
        lost += jnp.sum(lost_here, axis=0)
    return terms[0], lost


def two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """The rounded sum and exactly what rounding lost (Knuth)."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    return total, jnp.where(jnp.isfinite(total), lost, 0)
