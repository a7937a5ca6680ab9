"""A few pseudo-tokens that stand for all tokens, for millions of candidate mixtures a second.

The loss of a mixture of experts is a mean of `−log(λ·p_t)` over tokens. Here it is a weighted sum of the same terms
over few pseudo-tokens: where they are comes from the tokens, by clusters of their log-probabilities, and what each
weighs in each domain from the exact losses of some thousand mixtures, by least squares. So it is a quadrature whose
nodes lie among the tokens and whose weights are fitted to what it is used for. Mixtures that the fit has not seen
measure the error, and it is stated with every answer.

Shapes: T tokens, K experts, J evaluation domains, M pseudo-tokens, C candidates.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from scipy.special import logsumexp

from mde.errors import UserError, check_positive
from mde.evaluation.mixture import MixtureLosses

_CLUSTERED = 1 << 17  # tokens that the pseudo-tokens are found from
_RIDGE = 1e-9  # share of the mean diagonal; keeps weights small enough for float32
_PER_NODE = 10  # mixtures that the weights are fitted to, for each pseudo-token
_FITTED = 4096  # of them, that are looked at in one go
_HELD_OUT = 2048
_ROUNDS, _NEIGHBOURS = 3, 256  # of the search for worse mixtures around the worst
_CANDIDATE_BLOCK = 512
_CALL = 1 << 20  # candidates on the devices at a time


class Estimate(NamedTuple):
    """Losses [C, J] in nats per token, and the largest error [J] that was found when they were compared with exact."""

    losses: np.ndarray
    error: np.ndarray


class CompressedLosses:
    """Losses of mixtures from pseudo-tokens; `compress` makes one.

    Attributes:
      nodes: [M, K] probabilities of the pseudo-tokens under each expert, up to a factor.
      node_weights: [M, J] what each counts in each domain; not all are positive.
      offsets: [J] nats per token.
      error: [J] largest error found, nats per token.
    """

    def __init__(self, nodes: np.ndarray, node_weights: np.ndarray, offsets: np.ndarray, error: np.ndarray):
        self.nodes, self.node_weights, self.offsets, self.error = nodes, node_weights, offsets, error

    def __call__(self, weights: np.ndarray) -> Estimate:
        """[C, K] mixtures on the simplex to losses [C, J] and their error [J].

        Raises:
          UserError: rows that are no mixtures of K experts.
        """
        weights = np.asarray(weights)
        k = self.nodes.shape[1]
        if weights.ndim != 2 or weights.shape[1] != k:
            raise UserError(f"weights of shape {weights.shape}, expected [C, {k}]")
        off = ~((weights.min(axis=1, initial=0) >= 0) & (np.abs(weights.sum(axis=1) - 1) <= 1e-5))
        if off.any():
            row = int(np.argmax(off))
            raise UserError(f"weights of candidate {row} are {weights[row].tolist()}, expected a point of the simplex")
        parts = [self._some(weights[start : start + _CALL]) for start in range(0, len(weights), _CALL)]
        return Estimate(np.concatenate(parts) if parts else np.zeros((0, len(self.offsets))), self.error)

    def _some(self, weights: np.ndarray) -> np.ndarray:
        devices = jax.device_count()
        size = min(_CANDIDATE_BLOCK, -(-len(weights) // devices))
        blocks = np.full((-(-len(weights) // (size * devices)) * devices * size, weights.shape[1]), 1.0, np.float32)
        blocks[: len(weights)] = weights
        sums = _program(devices)(
            blocks.reshape(-1, size, weights.shape[1]), np.float32(self.nodes.T), np.float32(self.node_weights)
        )
        return self.offsets - np.asarray(sums).reshape(len(blocks), -1)[: len(weights)]


@functools.cache
def _program(devices: int) -> Callable[..., jax.Array]:
    """The jitted program: every device takes its blocks of candidates one after another."""
    mesh = jax.make_mesh((devices,), ("candidates",), (AxisType.Auto,))
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def local(weights_BxCxK: jax.Array, nodes_KxM: jax.Array, node_weights_MxJ: jax.Array) -> jax.Array:
        return jax.lax.map(lambda w: dot(jnp.log(dot(w, nodes_KxM)), node_weights_MxJ), weights_BxCxK)

    split = P("candidates")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(split, P(), P()), out_specs=split, check_vma=False))


def compress(
    log_probs: np.ndarray, segment_ids: np.ndarray, pseudo_tokens: int = 1024, seed: int = 0
) -> CompressedLosses:
    """Finds pseudo-tokens that give the losses of all mixtures of the experts.

    It costs the exact losses of some 10 mixtures a pseudo-token. Twice the pseudo-tokens take twice the time in every
    call and leave about half the error.

    Args:
      log_probs: [T, K] log-probabilities in nats of the scored tokens under each expert, finite.
      segment_ids: [T] domain of each token, 0 … J − 1; each domain has at least one.
      pseudo_tokens: M, at most.
      seed: of the clusters and of the mixtures.

    Raises:
      UserError: log-probs that are not finite or positive; an empty domain.
    """
    check_positive(pseudo_tokens=pseudo_tokens)
    impossible = np.isneginf(log_probs)
    if impossible.any():
        token, expert = np.argwhere(impossible)[0]
        raise UserError(
            f"token {token} (domain {segment_ids[token]}) is impossible under expert {expert}; pseudo-tokens need "
            "finite log-probs"
        )
    exact = MixtureLosses(log_probs, segment_ids)
    rng = np.random.default_rng(seed)
    nodes = _nodes(log_probs, segment_ids, pseudo_tokens, rng)
    k = log_probs.shape[1]
    seen = spread(_PER_NODE * len(nodes), k, rng)
    node_weights, offsets = _fit(nodes, seen, exact(seen))
    found = CompressedLosses(nodes, node_weights, offsets, np.zeros(len(offsets)))
    return CompressedLosses(nodes, node_weights, offsets, _largest_error(found, exact, spread(_HELD_OUT, k, rng), rng))


def spread(count: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Mixtures [count + K, K]: uniform ones, ones near faces and corners, ones on faces, and the corners themselves."""
    sizes = np.diff(np.round(count * np.array([0, 0.3, 0.45, 0.6, 0.75, 0.9, 1])).astype(int)).tolist()
    parts = [rng.dirichlet(np.full(k, a), size) for a, size in zip((1.0, 0.3, 0.1), sizes, strict=False)]
    parts.append(np.exp(-rng.uniform(0, 10, (sizes[3], k))))
    for concentration, size in zip((0.3, 1.0), sizes[4:], strict=True):
        inside = rng.random((size, k)) < 0.5
        inside[np.arange(size), rng.integers(k, size=size)] = True
        parts.append(np.where(inside, rng.gamma(concentration, size=(size, k)) + 1e-12, 0))
    mixtures = np.concatenate([*parts, np.eye(k)])
    return mixtures / mixtures.sum(axis=1, keepdims=True)


def _nodes(log_probs: np.ndarray, segment_ids: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[M, K] pseudo-tokens: centres of clusters of the tokens, as many tokens of each domain."""
    from sklearn.cluster import MiniBatchKMeans

    domains = int(segment_ids.max()) + 1
    each = -(-_CLUSTERED // domains)
    chosen = []
    for j in range(domains):
        (mine,) = np.nonzero(segment_ids == j)
        chosen.append(mine if len(mine) <= each else rng.choice(mine, each))
    logs = np.asarray(log_probs[np.sort(np.concatenate(chosen))], np.float64)
    logs = np.unique(logs - np.asarray(logsumexp(logs, axis=1, keepdims=True)), axis=0)
    if len(logs) > count:
        clusters = MiniBatchKMeans(
            count, init="random", n_init=1, batch_size=4096, max_iter=10, random_state=int(rng.integers(2**31))
        )
        logs = clusters.fit(logs).cluster_centers_
    return np.maximum(np.exp(logs), np.finfo(np.float32).tiny)


def _fit(nodes_MxK: np.ndarray, weights_CxK: np.ndarray, losses_CxJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[M, J] and [J] so that the losses are `offsets − log(weights @ nodesᵀ) @ node_weights` but for the ridge."""
    m = len(nodes_MxK)
    middle = np.log(nodes_MxK.mean(axis=1))  # taken away, so that the normal equations do not cancel
    gram, right = np.zeros((m + 1, m + 1)), np.zeros((m + 1, losses_CxJ.shape[1]))
    for start in range(0, len(weights_CxK), _FITTED):
        part = slice(start, start + _FITTED)
        x = np.pad(np.log(weights_CxK[part] @ nodes_MxK.T) - middle, ((0, 0), (0, 1)), constant_values=1)
        gram += x.T @ x
        right += x.T @ losses_CxJ[part]
    gram[range(m), range(m)] += _RIDGE * np.trace(gram)
    *solved, constant = np.linalg.solve(gram, right)
    return -np.array(solved), constant - middle @ np.array(solved)


def _largest_error(
    found: CompressedLosses, exact: MixtureLosses, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[J] largest error over the mixtures, and over others around the worst of each domain."""
    errors = np.abs(found(weights).losses - exact(weights))
    for _ in range(_ROUNDS):
        worst = weights[np.argmax(errors, axis=0)]
        steps = np.exp(rng.normal(0, 0.3, (-(-_NEIGHBOURS // len(worst)), *worst.shape)))
        near = (worst * steps).reshape(-1, worst.shape[1])
        near /= near.sum(axis=1, keepdims=True)
        errors = np.concatenate([errors, np.abs(found(near).losses - exact(near))])
        weights = np.concatenate([weights, near])
    return errors.max(axis=0)
