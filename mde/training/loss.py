"""The training loss, with the gradient taken on the way forward.

Shapes: B sequences, L predicted tokens per sequence, D model width, V vocabulary.

The logits [B, L, V] are the largest array of a train step. Here they live for one chunk of positions at a time: as the
loss is a sum over tokens, what its gradient needs of a chunk (softmax minus one-hot, times the output matrix or the
hidden rows) is known as soon as the chunk's logits are, so it is added up at once and nothing of size V is kept or
computed twice.
"""

import functools

import jax
import jax.numpy as jnp

from mde.models import decoder, masking
from mde.models.config import DecoderConfig
from mde.models.products import outer
from mde.models.sharding import constrain

Sums = tuple[jax.Array, jax.Array, jax.Array]  # what is minimised, the negative log-likelihood, the matrix's gradient


def loss(
    config: DecoderConfig,
    params: decoder.Params,
    tokens: jax.Array,
    segments: jax.Array,
    *,
    count: jax.Array | None = None,
    z_loss: float = 0.0,
    chunks: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """What is minimised, and the mean negative log-likelihood in nats per predicted token of a batch.

    Args:
      config: architecture of `params`.
      params: parameters of one model.
      tokens: [B, L + 1].
      segments: [B, L + 1] document numbers.
      count: what sums over tokens are divided by; the number of this batch's `predictions` if None.
      z_loss: weight of the mean squared logarithm of the softmax's denominator (PaLM, section 5), which keeps logits
        from drifting.
      chunks: parts that the L positions are cut into, which bounds the memory of the logits.

    Returns:
      Two scalars, the same where `z_loss` is 0. Only the first has a gradient.
    """
    shown_BxL, documents_BxL, mask_BxL = reading(config, tokens, segments)
    weights_BxL = mask_BxL / (jnp.maximum(jnp.sum(mask_BxL), 1) if count is None else count)
    hidden_BxLxD, matrix_VxD = outputs(config, params, shown_BxL, documents_BxL)
    return weighted_loss(z_loss, chunks, hidden_BxLxD, matrix_VxD, tokens[:, 1:], weights_BxL)


def reading(config: DecoderConfig, tokens: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a batch [B, L + 1], each [B, L]: what is read, its document numbers, and which targets the loss is over."""
    mask_BxL = decoder.target_mask(segments)
    if not config.masked:
        return tokens[:, :-1], segments[:, :-1], mask_BxL
    shown_BxL, _, hidden_BxL = masking.drawn(config, tokens[:, 1:], mask_BxL)
    return shown_BxL, segments[:, 1:], hidden_BxL


def outputs(
    config: DecoderConfig, params: decoder.Params, shown: jax.Array, documents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Hidden rows [B, L, D] and the output matrix [V, D]: logits are their products."""
    return decoder.hidden(config, params, shown, documents), decoder.output_matrix(config, params).astype(config.dtype)


def predictions(config: DecoderConfig, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """How many tokens of a batch [B, L + 1] the loss is over: all targets, or those that are hidden from an encoder."""
    return jnp.sum(reading(config, tokens, segments)[2])


def token_losses(chunks: int, hidden_BxLxD: jax.Array, matrix_VxD: jax.Array, targets_BxL: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target, [B, L] in nats, `chunks` parts of the positions one after another."""
    B, L, _ = hidden_BxLxD.shape

    def chunk(_: None, inputs: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        rows_TxD, targets_T = (x.reshape(-1, *x.shape[2:]) for x in inputs)
        logits_TxV = constrain(_product(rows_TxD, matrix_VxD.T), "data", "model")
        nll_T = jax.nn.logsumexp(logits_TxV, axis=1) - _of_target(logits_TxV, targets_T)
        return None, nll_T.reshape(B, -1)

    if chunks == 1:
        return chunk(None, (hidden_BxLxD, targets_BxL))[1]
    parts = jax.lax.scan(chunk, None, _cut(chunks, (hidden_BxLxD, targets_BxL)))[1]
    return parts.swapaxes(0, 1).reshape(B, L)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_loss(
    z_loss: float,
    chunks: int,
    hidden_BxLxD: jax.Array,
    matrix_VxD: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over tokens of negative log-likelihood plus z-loss, and of the first alone."""
    return _forward(z_loss, chunks, hidden_BxLxD, matrix_VxD, targets_BxL, weights_BxL)[0]


def _forward(
    z_loss: float,
    chunks: int,
    hidden_BxLxD: jax.Array,
    matrix_VxD: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The two sums, and the gradient of the first in the hidden rows and the matrix."""
    B, L, D = hidden_BxLxD.shape
    V = len(matrix_VxD)

    def chunk(carry: Sums, inputs: tuple[jax.Array, ...]) -> tuple[Sums, jax.Array]:
        total, nll, gradient_VxD = carry
        rows_TxD, targets_T, weights_T = (x.reshape(-1, *x.shape[2:]) for x in inputs)
        logits_TxV = constrain(_product(rows_TxD, matrix_VxD.T), "data", "model")
        lse_T = jax.nn.logsumexp(logits_TxV, axis=1)
        nll_T = lse_T - _of_target(logits_TxV, targets_T)
        slope_T = weights_T * (1 + 2 * z_loss * lse_T)
        softmax_TxV = jnp.exp(logits_TxV - lse_T[:, None])
        is_target_TxV = jnp.arange(V) == targets_T[:, None]
        slope_TxV = softmax_TxV * slope_T[:, None] - jnp.where(is_target_TxV, weights_T[:, None], 0.0)
        slope_TxV = slope_TxV.astype(matrix_VxD.dtype)
        gradient_VxD += outer(slope_TxV, rows_TxD, jnp.float32)
        nll += jnp.sum(weights_T * nll_T)
        total += jnp.sum(weights_T * (nll_T + z_loss * lse_T**2))
        return (total, nll, gradient_VxD), (slope_TxV @ matrix_VxD).reshape(B, -1, D)

    zero = jnp.zeros((), jnp.float32)
    carry = (zero, zero, jnp.zeros((V, D), jnp.float32))
    inputs = (hidden_BxLxD, targets_BxL, weights_BxL)
    if chunks == 1:
        (total, nll, gradient_VxD), gradient_BxLxD = chunk(carry, inputs)
    else:
        (total, nll, gradient_VxD), parts = jax.lax.scan(chunk, carry, _cut(chunks, inputs))
        gradient_BxLxD = parts.swapaxes(0, 1).reshape(B, L, D)
    return (total, nll), (gradient_BxLxD, gradient_VxD.astype(matrix_VxD.dtype))


def _cut(chunks: int, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Arrays [B, L, ...] as [chunks, B, L / chunks, ...]."""
    return tuple(x.reshape(len(x), chunks, x.shape[1] // chunks, *x.shape[2:]).swapaxes(0, 1) for x in arrays)


def _of_target(logits_TxV: jax.Array, targets_T: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_TxV, targets_T[:, None], axis=1)[:, 0]


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product that is kept in float32 whatever the dtype of its factors."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _backward(
    z_loss: float, chunks: int, gradients: tuple[jax.Array, jax.Array], slopes: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    hidden_BxLxD, matrix_VxD = (g * slopes[0].astype(g.dtype) for g in gradients)
    return hidden_BxLxD, matrix_VxD, None, None


weighted_loss.defvjp(_forward, _backward)
