"""Losses of merged models: the weighted average of the experts' parameters, run as one model.

The average `θ(λ) = Σ_k λ_k θ_k` stands for the model trained on the mixture λ (modular training and merging,
arXiv 2410.15661). It is formed inside the jitted program, one candidate a device at a time, so memory does not grow
with the number of candidates.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mde.evaluation.scoring import EvaluationSet, batched_windows
from mde.models import decoder
from mde.models.config import DecoderConfig


def merge(experts: decoder.Params, weights_K: jax.Array) -> decoder.Params:
    """The weighted average of parameters stacked on a leading axis K, accumulated in float32."""
    return jax.tree.map(lambda x: jnp.tensordot(weights_K, x.astype(jnp.float32), 1), experts)


def merged_nll(
    config: DecoderConfig,
    experts: Sequence[decoder.Params],
    data: EvaluationSet,
    weights: np.ndarray,
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """Losses of the parameter averages on every evaluation domain.

    Args:
      config: architecture of the experts.
      experts: parameters of the K experts.
      data: the text.
      weights: [C, K] candidate weights; a subset of the experts is just zeros elsewhere.
      batch_size: windows run through a merged model at a time.

    Returns:
      [C, J] nats per token, float64.
    """
    devices = min(jax.device_count(), len(weights))
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *experts)
    tokens, segments = batched_windows(data, batch_size)
    owners = np.pad(data.window_domains, (0, tokens.shape[0] * batch_size - len(data.tokens)))
    filled = np.pad(weights, ((0, -len(weights) % devices), (0, 0)), mode="edge").astype(np.float32)
    program = _program(config, len(data.domains), devices)
    sums = program(stacked, (tokens, segments, owners.reshape(-1, batch_size)), filled)
    return -np.asarray(sums, np.float64)[: len(weights)] / data.token_counts


@functools.cache
def _program(config: DecoderConfig, n_domains: int, devices: int) -> Callable[..., jax.Array]:
    """The jitted program: candidates over devices, then one after another, then batch by batch."""
    mesh = jax.make_mesh((devices,), ("candidates",), (AxisType.Auto,))

    def batch_sums(params: decoder.Params, batch: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        tokens, segments, owners_B = batch
        log_probs = decoder.token_log_probs(config, params, tokens, segments)
        sums_B = jnp.sum(jnp.where(decoder.target_mask(segments), log_probs, 0.0), axis=1)
        return jax.ops.segment_sum(sums_B, owners_B, n_domains)

    def candidate(experts: decoder.Params, batches: tuple[jax.Array, ...], weights_K: jax.Array) -> jax.Array:
        params = merge(experts, weights_K)
        return jnp.sum(jax.lax.map(functools.partial(batch_sums, params), batches), axis=0)

    def local(experts: decoder.Params, batches: tuple[jax.Array, ...], weights_CxK: jax.Array) -> jax.Array:
        return jax.lax.map(functools.partial(candidate, experts, batches), weights_CxK)

    split = P("candidates")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), split), out_specs=split, check_vma=False))
