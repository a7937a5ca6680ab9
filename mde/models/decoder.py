"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU (LLaMA's shape), in Flax Linen.

Shapes: B sequences, L positions, T = B·L tokens, D model width, N query heads, H head width, V vocabulary. Between
attentions tokens stand in one row each, [T, D]: XLA's CPU backend runs the backward pass of a gated layer 2.5 times as
fast on matrices as on [B, L, D].
Parameters of the blocks are stacked on a leading layer axis. Several documents may share a sequence: `segments_BxL`
numbers them, attention stays inside a document and positions restart with it.
"""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mde.models.config import DecoderConfig

Params = dict
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)


def rotate(x_BxLxNxH: jax.Array, positions_BxL: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding of the first half of each head against the second half (RoFormer; LLaMA's layout)."""
    length, half = x_BxLxNxH.shape[1], x_BxLxNxH.shape[-1] // 2
    # Sines and cosines come from a table: where they are computed, XLA computes them again for every head and layer.
    angles = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    sin, cos = (jnp.asarray(f(angles), jnp.float32)[positions_BxL][:, :, None] for f in (np.sin, np.cos))
    first, second = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxLxNxH.dtype)


def attend(q_BxLxNxH: jax.Array, k_BxLxMxH: jax.Array, v_BxLxMxH: jax.Array, mask_Bx1xLxL: jax.Array) -> jax.Array:
    """Softmax attention of N query heads on M key heads, [B, L, N, H]; the softmax is in float32.

    Heads stand before positions and values are divided by the sum of the weights after they were added up, which saves
    XLA's CPU backend a pass over the weights and most of its transposes.
    """
    B, L, N, H = q_BxLxNxH.shape
    M = k_BxLxMxH.shape[2]
    q = (q_BxLxNxH * H**-0.5).reshape(B, L, M, N // M, H).transpose(0, 2, 3, 1, 4)
    k, v = k_BxLxMxH.swapaxes(1, 2), v_BxLxMxH.swapaxes(1, 2)
    scores = jnp.einsum("bmglh,bmsh->bmgls", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_Bx1xLxL[:, :, None], scores, -1e30)  # every position sees itself, so no row is empty
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    sums = jnp.einsum("bmgls,bmsh->bmglh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (sums / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def document_positions(segments_BxL: jax.Array) -> jax.Array:
    """Position of every token in its own document, [B, L]: 0 where a new segment number starts."""
    index = jnp.arange(segments_BxL.shape[1])
    starts = jnp.concatenate(
        [jnp.ones_like(segments_BxL[:, :1], bool), segments_BxL[:, 1:] != segments_BxL[:, :-1]], axis=1
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learnt scale, in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.config.norm_eps)
        return (x32 * scale).astype(self.config.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention within documents."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_TxD: jax.Array, positions_BxL: jax.Array, mask_Bx1xLxL: jax.Array) -> jax.Array:
        c = self.config
        T, D = x_TxD.shape

        def project(heads: int, name: str) -> jax.Array:
            return _dense(c, heads * c.head_dim, name)(x_TxD).reshape(*positions_BxL.shape, heads, c.head_dim)

        q, k, v = project(c.n_heads, "query"), project(c.n_kv_heads, "key"), project(c.n_kv_heads, "value")
        q, k = (rotate(a, positions_BxL, c.rope_theta) for a in (q, k))
        out = attend(q, k, v, mask_Bx1xLxL)
        return _dense(c, D, "out")(out.reshape(T, c.n_heads * c.head_dim))


class SwiGLU(nn.Module):
    """Gated feed-forward layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gated = nn.silu(_dense(c, c.d_ff, "gate")(x)) * _dense(c, c.d_ff, "up")(x)
        return _dense(c, c.d_model, "down")(gated)


class Block(nn.Module):
    """One pre-norm transformer block; the carry and the empty output are what `nn.scan` asks for."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        c = self.config
        x += Attention(c, name="attention")(RMSNorm(c, name="attention_norm")(x), positions, mask)
        x += SwiGLU(c, name="mlp")(RMSNorm(c, name="mlp_norm")(x))
        return x, None


class Decoder(nn.Module):
    """A language model: tokens and document numbers in, float32 logits of the next token out."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, segments_BxL: jax.Array) -> jax.Array:
        c = self.config
        embed = nn.Embed(
            c.vocab_size, c.d_model, embedding_init=nn.initializers.normal(c.d_model**-0.5), dtype=c.dtype, name="embed"
        )
        positions = document_positions(segments_BxL)
        mask = nn.make_causal_mask(tokens_BxL, dtype=bool) & (
            segments_BxL[:, None, :, None] == segments_BxL[:, None, None]
        )
        # Small stacks are unrolled, which XLA fuses better; tall ones would only take longer to compile.
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.n_layers,
            unroll=c.n_layers if c.n_layers <= 4 else 1,
        )
        x, _ = layers(c, name="layers")(embed(tokens_BxL.reshape(-1)), positions, mask)
        x = RMSNorm(c, name="final_norm")(x)
        logits = embed.attend(x) if c.tie_embeddings else _dense(c, c.vocab_size, "unembed")(x)
        return logits.astype(jnp.float32).reshape(*tokens_BxL.shape, c.vocab_size)


def _dense(config: DecoderConfig, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=config.dtype, name=name)


@functools.partial(jax.jit, static_argnums=0)
def init(config: DecoderConfig, seed: int) -> Params:
    """Fresh parameters: a nested dictionary of float32 arrays, a pure function of (config, seed)."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return Decoder(config).init(jax.random.key(seed), tokens, tokens)["params"]


def token_log_probs(config: DecoderConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Log-probability in nats of every next token, [B, L] float32.

    Args:
      config: architecture of `params`.
      params: parameters of one model.
      tokens: [B, L + 1]; position t predicts token t + 1.
      segments: [B, L + 1] document numbers.

    Returns:
      [B, L]; entries whose target starts another document (see `target_mask`) have no meaning.
    """
    logits_BxLxV: Any = Decoder(config).apply({"params": params}, tokens[:, :-1], segments[:, :-1])
    target_logits = jnp.take_along_axis(logits_BxLxV, tokens[:, 1:, None], axis=-1)[..., 0]
    return target_logits - jax.nn.logsumexp(logits_BxLxV, axis=-1)


def target_mask(segments: ArrayT) -> ArrayT:
    """Which of the L targets of [B, L + 1] segments follow a token of their own document, [B, L] bool; 0 is padding."""
    return (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
