"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU (LLaMA's shape), in Flax Linen.

Shapes: B sequences, L positions, T = B·L tokens, D model width, N query heads, H head width, V vocabulary. Between
attentions tokens stand in one row each, [T, D]: XLA's CPU backend runs the backward pass of a gated layer 2.5 times as
fast on matrices as on [B, L, D].
Parameters of the blocks are stacked on a leading layer axis. Several documents may share a sequence: `segments_BxL`
numbers them, attention stays inside a document and positions restart with it. Below zero they number the same
documents, and mark tokens that are read and not predicted.
"""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mde.models import attention, masking, products
from mde.models.config import DecoderConfig
from mde.models.sharding import constrain

Params = dict
UNROLLED = 12  # layers at most
PRODUCT = "product"  # what rematerialisation may keep
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)


def rotate(x_BxLxNxH: jax.Array, positions_BxL: jax.Array, length: int, theta: float) -> jax.Array:
    """Rotary position embedding of the first half of each head against the second half (RoFormer; LLaMA's layout).

    Positions are below `length`.
    """
    half = x_BxLxNxH.shape[-1] // 2
    # Sines and cosines come from a table: where they are computed, XLA computes them again for every head and layer.
    angles = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    sin, cos = (jnp.asarray(f(angles), jnp.float32)[positions_BxL][:, :, None] for f in (np.sin, np.cos))
    first, second = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxLxNxH.dtype)


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


class Embed(nn.Module):
    """The table of token vectors, and its use as output projection."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.d_model**-0.5)
        self.embedding = self.param("embedding", init, (c.table_rows, c.d_model), jnp.float32)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return _look_up(self.config.dtype, self.embedding, tokens)

    def attend(self, x_TxD: jax.Array) -> jax.Array:
        return x_TxD @ self.embedding.astype(self.config.dtype).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(dtype: str, table_VxD: jax.Array, tokens_T: jax.Array) -> jax.Array:
    """The rows of a table in this dtype, [T, D]; their gradients, thousands for a frequent token, add up in float32."""
    # Gathered along `data` first: XLA's look-up in a table that is split both ways copies all of it.
    return jnp.take(constrain(table_VxD.astype(dtype), "model", None), tokens_T, axis=0)


def _look_up_forward(dtype: str, table_VxD: jax.Array, tokens_T: jax.Array) -> tuple[jax.Array, Any]:
    return _look_up(dtype, table_VxD, tokens_T), (table_VxD, tokens_T)


def _look_up_backward(dtype: str, kept: Any, slope_TxD: jax.Array) -> tuple[jax.Array, None]:
    table_VxD, tokens_T = kept
    gradient_VxD = constrain(jnp.zeros_like(table_VxD), "model", None)
    return gradient_VxD.at[tokens_T].add(slope_TxD.astype(gradient_VxD.dtype)), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


class Attention(nn.Module):
    """Grouped-query attention within documents, causal but in an encoder.

    Keys and values of a prompt go on in the collection `cache`.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_TxD: jax.Array, positions_BxL: jax.Array, visible: jax.Array, start: jax.Array | None = None
    ) -> jax.Array:
        c = self.config
        T, D = x_TxD.shape

        def project(heads: int, name: str) -> jax.Array:
            out = _dense(c, heads * c.head_dim, name)(x_TxD).reshape(*positions_BxL.shape, heads, c.head_dim)
            return constrain(out, "data", None, "model", None)

        q, k, v = project(c.n_heads, "query"), project(c.n_kv_heads, "key"), project(c.n_kv_heads, "value")
        length = positions_BxL.shape[1] if start is None else visible.shape[-1]
        q, k = (rotate(a, positions_BxL, length, c.rope_theta) for a in (q, k))
        if start is not None:
            k, v = self._kept("keys", k, start, length), self._kept("values", v, start, length)
        out = attention.attend(_kernel(c, length, start), q, k, v, visible, not c.masked)
        return _dense(c, D, "out")(out.reshape(T, c.n_heads * c.head_dim))

    def _kept(self, name: str, new_BxLxMxH: jax.Array, start: jax.Array, length: int) -> jax.Array:
        """[B, length, M, H]: what was kept, with the new positions from `start` on, which are kept as well."""
        B, _, M, H = new_BxLxMxH.shape
        kept = self.variable("cache", name, jnp.zeros, (B, length, M, H), new_BxLxMxH.dtype)
        kept.value = jax.lax.dynamic_update_slice_in_dim(kept.value, new_BxLxMxH, start, axis=1)
        return kept.value


class SwiGLU(nn.Module):
    """Gated feed-forward layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gated = products.gated(_dense(c, c.d_ff, "gate")(x), _dense(c, c.d_ff, "up")(x))
        return _dense(c, c.d_model, "down")(constrain(gated, "data", "model"))


class Block(nn.Module):
    """One pre-norm transformer block; the carry and the empty output are what `nn.scan` asks for."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, visible: jax.Array, start: jax.Array | None
    ) -> tuple[jax.Array, None]:
        c = self.config
        x += Attention(c, name="attention")(RMSNorm(c, name="attention_norm")(x), positions, visible, start)
        x += SwiGLU(c, name="mlp")(RMSNorm(c, name="mlp_norm")(x))
        return constrain(x, "data", None), None


class Decoder(nn.Module):
    """A language model: tokens and document numbers in, float32 logits of the next token out (an encoder: of the same).

    With `hidden_only` it ends before the output projection (see `output_matrix`), with a row [D] for each token.

    With `start`, the tokens are those at positions from there on, and the segments [B, S] are of all positions there
    will be. Keys and values of the positions before are in the collection `cache`, and those of the tokens are added.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        tokens_BxL: jax.Array,
        segments_BxL: jax.Array,
        hidden_only: bool = False,
        start: jax.Array | None = None,
    ) -> jax.Array:
        c = self.config
        embed = Embed(c, name="embed")
        segments_BxL = jnp.abs(segments_BxL)
        visible = attention.visible(_kernel(c, segments_BxL.shape[1], start), segments_BxL, not c.masked)
        positions = document_positions(segments_BxL)
        if start is not None:
            visible = jax.lax.dynamic_slice_in_dim(visible, start, tokens_BxL.shape[1], axis=2)
            positions = jax.lax.dynamic_slice_in_dim(positions, start, tokens_BxL.shape[1], axis=1)
        x = constrain(embed(tokens_BxL.reshape(-1)), "data", None)
        x, _ = _layers(c)(c, name="layers")(x, positions, visible, start)
        x = RMSNorm(c, name="final_norm")(x)
        if hidden_only:
            return x
        logits = embed.attend(x) if c.tie_embeddings else _dense(c, c.table_rows, "unembed")(x)
        return logits.astype(jnp.float32).reshape(*tokens_BxL.shape, c.table_rows)


def _layers(config: DecoderConfig) -> Any:
    """The blocks, scanned over; what the backward pass keeps of them is the config's `remat`."""
    block: Any = Block
    if config.remat != "none":
        keep = jax.checkpoint_policies
        policies = {"dots": keep.save_only_these_names(PRODUCT), "full": keep.nothing_saveable}
        block = nn.remat(Block, policy=policies[config.remat], prevent_cse=False)
    # Up to twelve layers are unrolled: XLA fuses them better, and what the backward pass needs is not copied to stacks
    # and out of them again. Taller ones would only take longer to compile, and where blocks are computed again the loop
    # is what keeps XLA from sharing the two computations.
    unrolled = config.n_layers <= UNROLLED and config.remat == "none"
    return nn.scan(
        block,
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.n_layers,
        unroll=config.n_layers if unrolled else 1,
    )


def _kernel(config: DecoderConfig, length: int, start: jax.Array | None) -> str:
    """The attention kernel; where keys are more than queries, one that takes any mask."""
    kernel = attention.kernel(config.attention, config.dtype, length)
    return kernel if start is None or kernel == "heads" else "xla"


def _dense(config: DecoderConfig, features: int, name: str) -> nn.Dense:
    product = lambda rows, matrix, *_, **__: checkpoint_name(products.product(rows, matrix), PRODUCT)  # noqa: E731
    return nn.Dense(features, use_bias=False, dtype=config.dtype, name=name, dot_general=product)


@functools.partial(jax.jit, static_argnums=0)
def init(config: DecoderConfig, seed: int | jax.Array) -> Params:
    """Fresh parameters: a nested dictionary of float32 arrays, a pure function of (config, seed)."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    # Two tokens are enough for shapes, and too few for a kernel; a loop over the layers is sooner compiled than all.
    plain = dataclasses.replace(config, attention="xla", remat="full")
    return Decoder(plain).init(jax.random.key(seed), tokens, tokens)["params"]


def hidden(config: DecoderConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """What the output projection is given, [B, L, D] for tokens [B, L]."""
    rows: Any = Decoder(config).apply({"params": params}, tokens, segments, hidden_only=True)
    return rows.reshape(*tokens.shape, config.d_model)


def output_matrix(config: DecoderConfig, params: Params) -> jax.Array:
    """The output projection, [V, D]: logits are its products with the hidden rows."""
    return params["embed"]["embedding"] if config.tie_embeddings else params["unembed"]["kernel"].T


def token_log_probs(config: DecoderConfig, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """Log-probability in nats of every next token, or by an encoder of every hidden one, [B, L] float32.

    Args:
      config: architecture of `params`.
      params: parameters of one model.
      tokens: [B, L + 1]; position t predicts token t + 1. For an encoder some are hidden (`masking.fixed`).
      segments: [B, L + 1] document numbers.

    Returns:
      [B, L]; entries that are not scored (see `scored`) have no meaning.
    """
    if config.masked:
        (shown, targets, _), documents = masking.marked(config, tokens[:, 1:]), segments[:, 1:]
    else:
        shown, targets, documents = tokens[:, :-1], tokens[:, 1:], segments[:, :-1]
    logits_BxLxV: Any = Decoder(config).apply({"params": params}, shown, documents)
    target_logits = jnp.take_along_axis(logits_BxLxV, targets[..., None], axis=-1)[..., 0]
    return target_logits - jax.nn.logsumexp(logits_BxLxV, axis=-1)


def log_probs_with_cache(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array,
    start: int | jax.Array,
    cache: Params | None,
) -> tuple[jax.Array, Params]:
    """Log-probabilities in nats of what follows each token, with the work on earlier tokens kept.

    Args:
      config: architecture of `params`.
      params: parameters of one model.
      tokens: [B, L] at positions `start` to `start` + L.
      segments: [B, S] document numbers of all positions, of those to come as well.
      start: how many positions the cache has.
      cache: as the call before returned it; None for an empty one.

    Returns:
      [B, L, V] float32, and the cache.
    """
    variables = {"params": params} | ({} if cache is None else {"cache": cache})
    logits, changed = Decoder(config).apply(variables, tokens, segments, start=start, mutable=["cache"])
    return jax.nn.log_softmax(logits), changed["cache"]


def target_mask(segments: ArrayT) -> ArrayT:
    """Which of the L targets of [B, L + 1] segments follow a token of their own document, [B, L] bool; 0 is padding.

    Tokens with a number below zero, the context of an end task, are no targets.
    """
    return (segments[:, 1:] == abs(segments[:, :-1])) & (segments[:, 1:] > 0)


def scored(tokens: ArrayT, segments: ArrayT, masked: bool) -> ArrayT:
    """Which of the L targets of [B, L + 1] tokens are scored, [B, L] bool: `target_mask`, for an encoder the hidden."""
    mask = target_mask(segments)
    return mask & (tokens[:, 1:] < 0) if masked else mask
