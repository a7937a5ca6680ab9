"""Attention within documents, causal or to both sides, by the kernel that suits the machine.

Shapes: B sequences, L positions, N query heads, H head width; keys and values may have fewer heads, of which each
serves as many neighbouring query heads.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mde.errors import UserError
from mde.models import sharding

SPLASH_BLOCK = 128  # positions; splash attention works on multiples of it


def kernel(asked: str, dtype: str) -> str:
    """The attention kernel: as asked, or for `auto` that of the platform that JAX runs on."""
    if asked != "auto":
        return asked
    platform = jax.default_backend()
    if platform == "gpu":
        return "cudnn" if dtype in ("bfloat16", "float16") else "xla"  # cuDNN's attention has no float32
    return {"tpu": "splash", "cpu": "heads"}.get(platform, "xla")


def visible(kernel: str, segments_BxL: jax.Array, causal: bool = True) -> jax.Array:
    """What a kernel needs to know of the documents: their numbers, or the mask [B, 1, L, L] of who sees whom."""
    if kernel == "splash":
        return segments_BxL
    index = jnp.arange(segments_BxL.shape[1])
    same = segments_BxL[:, None, :, None] == segments_BxL[:, None, None]
    return same & (index[:, None] >= index) if causal else same


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


def _heads(q_BxLxNxH: jax.Array, k_BxLxMxH: jax.Array, v_BxLxMxH: jax.Array, visible_Bx1xLxL: jax.Array) -> jax.Array:
    """Attention for XLA's CPU backend.

    Heads stand before positions, and values are divided by the sum of the weights after they were added up: that saves
    a pass over the weights and most transposes.
    """
    B, L, N, H = q_BxLxNxH.shape
    M = k_BxLxMxH.shape[2]
    q = (q_BxLxNxH * H**-0.5).reshape(B, L, M, N // M, H).transpose(0, 2, 3, 1, 4)
    k, v = k_BxLxMxH.swapaxes(1, 2), v_BxLxMxH.swapaxes(1, 2)
    scores = jnp.einsum("bmglh,bmsh->bmgls", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible_Bx1xLxL[:, :, None], scores, -1e30)  # every position sees itself, so no row is empty
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    sums = jnp.einsum("bmgls,bmsh->bmglh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (sums / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


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
