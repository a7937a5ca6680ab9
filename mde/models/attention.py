"""Attention within documents, causal or to both sides, by the kernel that suits the machine.

Shapes: B sequences, L positions, N query heads, H head width; keys and values may have fewer heads, of which each
serves as many neighbouring query heads.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mde.errors import UserError
from mde.models import sharding

HIDDEN = -1e30  # instead of a score; every position sees itself, so no row has nothing else
SPLASH_BLOCK = 128  # positions; splash attention works on multiples of it


def kernel(asked: str, dtype: str, length: int) -> str:
    """The attention kernel: as asked, or for `auto` that of the platform that JAX runs on, if it has the length."""
    if asked != "auto":
        return asked
    platform = jax.default_backend()
    if platform == "tpu":
        return "xla" if length % SPLASH_BLOCK else "splash"
    if platform == "gpu":
        return "cudnn" if dtype == "bfloat16" else "xla"  # cuDNN's attention has no float32
    return "heads" if platform == "cpu" else "xla"


def visible(kernel: str, segments_BxL: jax.Array, causal: bool = True) -> jax.Array:
    """What a kernel needs to know of the documents: their numbers, or [B, 1, L, L] who sees whom.

    That is a mask, or what is added to the scores (`heads`): 0, or a number that leaves nothing of a score.
    """
    if kernel == "splash":
        return segments_BxL
    index = jnp.arange(segments_BxL.shape[1])
    same = segments_BxL[:, None, :, None] == segments_BxL[:, None, None]
    mask = same & (index[:, None] >= index) if causal else same
    return jnp.where(mask, 0.0, HIDDEN) if kernel == "heads" else mask


def attend(
    kernel: str, q_BxLxNxH: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, causal: bool = True
) -> jax.Array:
    """Softmax attention, [B, L, N, H]; the softmax is in float32 whatever the dtype.

    Args:
      kernel: `heads`, `xla`, `cudnn` or `splash`.
      q_BxLxNxH: queries.
      k: keys.
      v: values.
      visible: see the function of this name.
      causal: as that function was told.

    Raises:
      UserError: splash attention asked for sequences that its blocks do not divide.
    """
    if kernel == "splash":
        return _splash(q_BxLxNxH, k, v, visible, causal)
    if kernel == "heads":
        return _heads(q_BxLxNxH, k, v, visible)
    implementation: Any = kernel
    return jax.nn.dot_product_attention(q_BxLxNxH, k, v, mask=visible, implementation=implementation)


def _heads(q_BxLxNxH: jax.Array, k_BxLxMxH: jax.Array, v_BxLxMxH: jax.Array, bias_Bx1xLxL: jax.Array) -> jax.Array:
    """Attention for XLA's CPU backend: heads stand before positions, and its derivative is written out."""
    B, L, N, H = q_BxLxNxH.shape
    S, M = k_BxLxMxH.shape[1:3]
    q_BxMxRxH = (q_BxLxNxH * H**-0.5).reshape(B, L, M, N // M, H).transpose(0, 2, 3, 1, 4).reshape(B, M, -1, H)
    bias_Bx1xRxS = jnp.broadcast_to(bias_Bx1xLxL, (B, N // M, L, S)).reshape(B, 1, -1, S)
    out = _weighted(q_BxMxRxH, k_BxLxMxH.swapaxes(1, 2), v_BxLxMxH.swapaxes(1, 2), bias_Bx1xRxS)
    return out.reshape(B, M, N // M, L, H).transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


@jax.custom_vjp
def _weighted(q_BxMxRxH: jax.Array, k_BxMxSxH: jax.Array, v_BxMxSxH: jax.Array, bias_Bx1xRxS: jax.Array) -> jax.Array:
    """Values weighted by the softmax of products and bias, [B, M, R, H]."""
    return _weighted_forward(q_BxMxRxH, k_BxMxSxH, v_BxMxSxH, bias_Bx1xRxS)[0]


def _weighted_forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    """Values are divided by the sum of the weights after they were added up: that saves a pass over the weights."""
    scores = jnp.einsum("bmrh,bmsh->bmrs", q, k, preferred_element_type=jnp.float32) + bias
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = (jnp.einsum("bmrs,bmsh->bmrh", weights, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return out, (q, k, v, weights, total, out)


def _weighted_backward(kept: Any, slope_BxMxRxH: jax.Array) -> tuple[jax.Array | None, ...]:
    """No pass over the weights but a product and a subtraction: what the bias hides has weight 0, and so no slope.

    Gradients of keys and values come out transposed, for it is cheaper to turn them than the weights.
    """
    q, k, v, weights, total, out = kept
    slope = slope_BxMxRxH / total
    common = jnp.sum(slope * out, axis=-1, keepdims=True)
    slope = slope.astype(v.dtype)
    along = jnp.einsum("bmrh,bmsh->bmrs", slope, v, preferred_element_type=jnp.float32)
    along = (weights * (along - common)).astype(v.dtype)
    dq = jnp.einsum("bmrs,bmsh->bmrh", along, k)
    dk = jnp.einsum("bmrh,bmrs->bmhs", q, along).swapaxes(2, 3)
    dv = jnp.einsum("bmrh,bmrs->bmhs", slope, weights).swapaxes(2, 3)
    return dq, dk, dv, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _splash(q_BxLxNxH: jax.Array, k: jax.Array, v: jax.Array, segments_BxL: jax.Array, causal: bool) -> jax.Array:
    """Splash attention: blocks of the upper triangle are never visited, and the mask never lies in memory."""
    length, width = q_BxLxNxH.shape[1], q_BxLxNxH.shape[3]
    if length % SPLASH_BLOCK:
        raise UserError(f"seq_len={length}: splash attention needs a multiple of {SPLASH_BLOCK}")

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        run = _splash_kernel(q.shape[2], length, causal)
        q, k, v = (a.swapaxes(1, 2) for a in (q * width**-0.5, k, v))
        return jax.vmap(lambda q, k, v, s: run(q, k, v, segment_ids=s))(q, k, v, _segment_ids(segments))

    heads = ("data", None, "model", None)
    out_BxNxLxH = sharding.by_hand(local, (heads, heads, heads, ("data", None)), ("data", "model", None, None))(
        q_BxLxNxH, k, v, segments_BxL
    )
    return out_BxNxLxH.swapaxes(1, 2)


def _segment_ids(segments: jax.Array) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    return splash.SegmentIds(q=segments, kv=segments)


def _splash_kernel(heads: int, length: int, causal: bool = True, interpret: bool = False) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(b for b in (512, 256, SPLASH_BLOCK) if length % b == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    blocks: dict[str, Any] = dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block)
    sizes = splash.BlockSizes(**blocks)
    one = masks.CausalMask((length, length)) if causal else masks.FullMask((length, length))
    mask = masks.MultiHeadMask([one] * heads)
    return splash.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)
