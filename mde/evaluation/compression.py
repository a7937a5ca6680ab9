"""A few pseudo-tokens that stand for all tokens, for millions of candidate mixtures a second.

The loss of a mixture of experts is a mean of `−log(λ·p_t)` over tokens. Here it is a weighted sum of the same terms
over few tokens: four from each of some clusters of their log-probabilities, which share a weight in each domain, and so
a logarithm of their product. The weights come from the exact losses of some thousand mixtures, by least squares. So it
is a quadrature whose nodes lie among the tokens and whose weights are fitted to what it is used for. Mixtures that the
fit has not seen measure the error, and it is stated with every answer.

Shapes: T tokens, K experts, J evaluation domains, M pseudo-tokens in G groups, C candidates, S sets of experts.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import PartitionSpec as P
from scipy.special import logsumexp

from mde.errors import UserError, check_positive
from mde.evaluation._logmix import mixed
from mde.evaluation._text import Text
from mde.evaluation.mixture import MixtureLosses
from mde.models.products import compiler_options
from mde.training.placement import mesh_of

GROUP = 4  # pseudo-tokens that share their weights: one logarithm is taken of their product
_REACH = 80.0  # nats between the experts, summed over a group: its products are above float32's least, exp(−87)
_CLUSTERED = 1 << 17  # tokens that the pseudo-tokens are found from
_RIDGE = 1e-12  # share of the trace; keeps weights small enough for float32
_PER_GROUP = 10  # mixtures that the weights are fitted to, for each group
_FITTED = 4096  # of them, that are looked at in one go
_HELD_OUT = 2048
_ROUNDS, _NEIGHBOURS = 3, 256  # of the search for worse mixtures around the worst
_CANDIDATE_BLOCK = 256  # their logarithms stay in the second cache
_PIECE = 128  # pseudo-tokens worked on at a time: what is between two steps stays in the first cache
_CALL = 1 << 20  # candidates on the devices at a time
_ROOT_HALF = int(np.float32(0.5**0.5).view(np.int32))
_LOG = np.polynomial.Chebyshev.interpolate(lambda m: np.log1p(m) / m, 7, domain=(0.5**0.5 - 1, 2**0.5 - 1))
_LOG_COEFFICIENTS = _LOG.convert(kind=np.polynomial.Polynomial).coef[::-1].astype(np.float32)


class Estimate(NamedTuple):
    """Losses [C, J] in nats per token, and the largest error [J] that was found when they were compared with exact."""

    losses: np.ndarray
    error: np.ndarray


class CompressedLosses:
    """Losses of mixtures from pseudo-tokens; `compress` makes one.

    Attributes:
      nodes: [M, K] probabilities of the pseudo-tokens under each expert, up to a factor; groups of `GROUP` in a row.
      node_weights: [M, J] what each counts in each domain, the same within a group; not all are positive.
      offsets: [J] nats per token.
      needed: [S, K] experts of whom one must have a share, for some token is impossible under all others.
      needed_by: [S, J] whether such a token is in the domain, whose loss is infinite without.
      error: [J] largest error found, nats per token.
    """

    def __init__(
        self,
        nodes: np.ndarray,
        node_weights: np.ndarray,
        offsets: np.ndarray,
        needed: np.ndarray,
        needed_by: np.ndarray,
        error: np.ndarray,
    ):
        self.nodes, self.node_weights, self.offsets = nodes, node_weights, offsets
        self.needed, self.needed_by, self.error = needed, needed_by, error

    def __call__(self, weights: np.ndarray) -> Estimate:
        """[C, K] mixtures on the simplex to losses [C, J] and their error [J].

        Raises:
          UserError: rows that are no mixtures of K experts.
        """
        weights = np.asarray(weights)
        k = self.nodes.shape[1]
        if weights.ndim != 2 or weights.shape[1] != k:
            raise UserError(f"weights of shape {weights.shape}, expected [C, {k}]")
        # Not `simplex.check_mixtures`, which takes a fifth of a second for a million: as long as a fifth of the answer.
        sums = weights @ np.ones(k, weights.dtype)  # a product, for NumPy's sums of a few numbers each take far longer
        if not (weights.min(initial=0) >= 0 and np.abs(sums - 1).max(initial=0) <= 1e-5):
            row = int(np.argmin((weights.min(axis=1) >= 0) & (np.abs(sums - 1) <= 1e-5)))
            raise UserError(f"weights of candidate {row} are {weights[row].tolist()}, expected a point of the simplex")
        parts = [self._some(weights[start : start + _CALL]) for start in range(0, len(weights), _CALL)]
        return Estimate(np.concatenate(parts) if parts else np.zeros((0, len(self.offsets))), self.error)

    def _some(self, weights: np.ndarray) -> np.ndarray:
        devices = jax.device_count()
        size = min(_CANDIDATE_BLOCK, -(-len(weights) // devices))
        blocks = np.full((-(-len(weights) // (size * devices)) * devices * size, weights.shape[1]), 1.0, np.float32)
        blocks[: len(weights)] = weights
        nodes, group_weights = self._pieces
        sums = _program(devices)(blocks.reshape(-1, size, weights.shape[1]), nodes, group_weights)
        losses = self.offsets - np.moveaxis(np.asarray(sums), 1, 2).reshape(len(blocks), -1)[: len(weights)]
        for experts, domains in zip(self.needed, self.needed_by, strict=True):
            without = ~weights[:, experts].any(axis=1)
            losses[np.ix_(without, domains)] = np.inf
        return losses

    @functools.cached_property
    def _pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes [P, N, K + 1] as `_logmix` has them, filled up with those of the expert of weight 1, and the weights of
        the groups [G, J]."""
        pad = ((0, -len(self.nodes) % _PIECE), (0, 0))
        padded = np.pad(np.pad(self.nodes, ((0, 0), (0, 1))), pad)
        padded[len(self.nodes) :, -1] = 1
        nodes = padded.reshape(-1, _PIECE, padded.shape[1]).astype(np.float32)
        return nodes, np.pad(self.node_weights, pad)[::GROUP].astype(np.float32)


@functools.cache
def _program(devices: int) -> Callable[..., jax.Array]:
    """The jitted program: every device takes its blocks of candidates one after another."""
    mesh = mesh_of((devices,), ("candidates",))

    def local(weights_BxCxK: jax.Array, pieces: jax.Array, group_weights_GxJ: jax.Array) -> jax.Array:
        def block(weights_CxK: jax.Array) -> jax.Array:
            logs = jax.lax.map(functools.partial(_log_products, weights_KxC=weights_CxK.T), pieces)
            logs_GxC = logs.reshape(-1, len(weights_CxK))
            return jnp.matmul(group_weights_GxJ.T, logs_GxC, precision=jax.lax.Precision.HIGHEST)

        return jax.lax.map(block, weights_BxCxK)

    split = P("candidates")
    program = jax.shard_map(local, mesh=mesh, in_specs=(split, P(), P()), out_specs=split, check_vma=False)
    return jax.jit(program, compiler_options=compiler_options())


def _log(x: jax.Array) -> jax.Array:
    """Natural logarithm of normal float32, to 1e-7 plus rounding; XLA's own takes longer than all the rest together."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - _ROOT_HALF) >> 23
    mantissa = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1  # from √½ − 1 to √2 − 1
    ratio = functools.reduce(lambda value, c: value * mantissa + c, _LOG_COEFFICIENTS)  # log(1 + m) / m
    return ratio * mantissa + exponent.astype(jnp.float32) * math.log(2)


def _log_products(nodes_NxK: jax.Array, weights_KxC: jax.Array) -> jax.Array:
    """[N / GROUP, C] logarithms of the products of each group's mixtures; sums and products as in `_logmix`."""
    members = jnp.moveaxis(nodes_NxK.reshape(-1, GROUP, nodes_NxK.shape[1]), 1, 0)
    return _log(functools.reduce(operator.mul, (mixed(part, weights_KxC) for part in members)))


def compress(
    log_probs: Any,
    segment_ids: npt.ArrayLike,
    pseudo_tokens: int = 6144,
    seed: int = 0,
    *,
    experts: Sequence[str] | None = None,
    memory: int = 1 << 31,
) -> CompressedLosses:
    """Finds pseudo-tokens that give the losses of all mixtures of the experts.

    It costs the exact losses of some 10 mixtures for every four pseudo-tokens. Twice the pseudo-tokens take twice the
    time in every call and leave less than half the error.

    Args:
      log_probs: [T, K] log-probabilities in nats of the scored tokens under each expert, as for `MixtureLosses`.
      segment_ids: [T] domain of each token, 0 … J − 1; each domain has at least one.
      pseudo_tokens: M, at most; a multiple of four.
      seed: of the clusters and of the mixtures.
      experts: names of the experts, for messages.
      memory: bytes that tokens may take, see `MixtureLosses`.

    Raises:
      UserError: log-probs that are no numbers or positive; tokens impossible under every expert; an empty domain.
    """
    check_positive(pseudo_tokens=pseudo_tokens)
    if pseudo_tokens % GROUP:
        raise UserError(f"pseudo_tokens={pseudo_tokens} must be a multiple of {GROUP}")
    text = Text(log_probs, segment_ids, None, None, None, experts)
    text.check(np.arange(len(text.experts)))
    exact = MixtureLosses(log_probs, segment_ids, experts=experts, memory=memory)
    needed, needed_by = _needed(text)
    rng = np.random.default_rng(seed)
    nodes = _nodes(text, pseudo_tokens // GROUP, rng)
    k = nodes.shape[1]

    def finite(mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses = exact(mixtures)
        kept = np.isfinite(losses).all(axis=1)
        return mixtures[kept], losses[kept]

    node_weights, offsets = _fit(nodes, *finite(spread(_PER_GROUP * len(nodes) // GROUP, k, rng)))
    found = CompressedLosses(nodes, node_weights, offsets, needed, needed_by, np.zeros(len(offsets)))
    found.error = _largest_error(found, finite, spread(_HELD_OUT, k, rng), rng)
    return found


def _needed(text: Text) -> tuple[np.ndarray, np.ndarray]:
    """[S, K] the sets of experts under whom alone some tokens are possible, and [S, J] the domains of those."""
    found: dict[bytes, np.ndarray] = {}
    for first, rows in text.chunks():
        impossible = np.isneginf(rows)
        (some,) = np.nonzero(impossible.any(axis=1))
        sets, set_of = np.unique(~impossible[some], axis=0, return_inverse=True)
        for i, experts in enumerate(sets):
            domains = found.setdefault(experts.tobytes(), np.zeros(len(text.domains), bool))
            domains[text.segment_ids[first + some[set_of == i]]] = True
    sets = np.array([np.frombuffer(experts, bool) for experts in found]).reshape(-1, len(text.experts))
    return sets, np.array(list(found.values()), bool).reshape(-1, len(text.domains))


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


def _nodes(text: Text, count: int, rng: np.random.Generator) -> np.ndarray:
    """[M, K] pseudo-tokens: `GROUP` tokens from each of `count` clusters, which see as many tokens of each domain."""
    from sklearn.cluster import MiniBatchKMeans

    each = -(-_CLUSTERED // len(text.domains))
    chosen = []
    for j in range(len(text.domains)):
        (mine,) = np.nonzero(text.segment_ids == j)
        chosen.append(mine if len(mine) <= each else rng.choice(mine, each))
    logs = text.rows(np.sort(np.concatenate(chosen)))
    logs = np.float64(logs) - logs.max(axis=1, keepdims=True)
    logs = np.unique(np.maximum(logs, -_REACH), axis=0)
    cluster_of = np.arange(len(logs))
    if len(logs) > count:
        centred = logs - np.asarray(logsumexp(logs, axis=1, keepdims=True))
        clusters = MiniBatchKMeans(
            count, init="random", n_init=1, batch_size=4096, max_iter=10, random_state=int(rng.integers(2**31))
        )
        cluster_of = clusters.fit(centred).predict(centred)
    members = np.split(np.argsort(cluster_of, kind="stable"), np.flatnonzero(np.diff(np.sort(cluster_of))) + 1)
    groups = logs[np.stack([rng.choice(part, GROUP, replace=len(part) < GROUP) for part in members])]
    # Tokens on which the experts are far apart have a group to themselves: the others' places go to ones.
    beyond = np.cumsum(-groups.min(axis=2), axis=1) > _REACH
    return np.exp(np.where(beyond[..., None], 0, groups)).reshape(-1, logs.shape[1])


def _fit(nodes_MxK: np.ndarray, weights_CxK: np.ndarray, losses_CxJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[M, J] and [J] so that the losses are `offsets − log(weights @ nodesᵀ) @ node_weights` but for the ridge."""
    g = len(nodes_MxK) // GROUP

    def features(weights: np.ndarray) -> np.ndarray:
        return np.log(weights @ nodes_MxK.T).reshape(len(weights), g, GROUP).sum(axis=2)

    middle = features(np.full((1, nodes_MxK.shape[1]), 1 / nodes_MxK.shape[1]))[0]  # so that little cancels
    gram, right = np.zeros((g + 1, g + 1)), np.zeros((g + 1, losses_CxJ.shape[1]))
    for start in range(0, len(weights_CxK), _FITTED):
        part = slice(start, start + _FITTED)
        x = np.pad(features(weights_CxK[part]) - middle, ((0, 0), (0, 1)), constant_values=1)
        gram += x.T @ x
        right += x.T @ losses_CxJ[part]
    gram[range(g), range(g)] += _RIDGE * np.trace(gram)
    *solved, constant = np.linalg.solve(gram, right)
    return -np.repeat(solved, GROUP, axis=0), constant - middle @ np.array(solved)


def _largest_error(
    found: CompressedLosses,
    exact: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """[J] largest error over the mixtures, and over others around the worst of each domain."""
    seen, losses = exact(weights)
    errors = np.abs(found(seen).losses - losses)
    for _ in range(_ROUNDS):
        worst = seen[np.argmax(errors, axis=0)]
        steps = np.exp(rng.normal(0, 0.3, (-(-_NEIGHBOURS // len(worst)), *worst.shape)))
        near = (worst * steps).reshape(-1, worst.shape[1])
        near, losses = exact(near / near.sum(axis=1, keepdims=True))
        errors = np.concatenate([errors, np.abs(found(near).losses - losses)])
        seen = np.concatenate([seen, near])
    return errors.max(axis=0)
