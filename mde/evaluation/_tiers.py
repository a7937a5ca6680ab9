"""Tokens sorted by how far the experts are apart, and candidates by how small their shares are.

A mixture of a row's probabilities, taken over the row's largest, is at least exp(-range of the row) and at least the
candidate's smallest share. The larger of the two says how many tokens' mixtures can be multiplied before a logarithm is
taken (`_logmix.GROUPS`): eight for nearly all. Where the range is too wide and shares are zero, rows are taken over the
largest of the experts that have a share, for all candidates of one support at once.

Tokens are spread over the devices, and where there are too few of them, candidates are.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde.evaluation import _logmix
from mde.evaluation._logmix import GROUPS
from mde.models.products import compiler_options
from mde.training.placement import mesh_of

_REACHES = tuple(reach for _, reach in GROUPS)
# Few sizes, so that few programs are compiled.
_BLOCKS = (64, 512)  # tokens summed up before a sum is compensated
_WIDTHS = (32, 512)  # candidates a device works on at a time
_UNDER_WAY = 4  # calls that devices may be ahead of the host, which bounds what waits to be fetched

Kernel = Callable[..., _logmix.Pair]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tier:
    """Tokens of one tier in blocks that never cross a domain, dealt to the devices."""

    blocks: jax.Array  # [capacity, shards, N, K + 1] probabilities, or [..., 2, K + 1] logarithms of them as pairs
    domains: jax.Array  # [capacity, shards]
    steps: jax.Array  # blocks of each shard that are in use
    reach: float = dataclasses.field(metadata={"static": True})  # nats between the experts, at most
    mesh: Mesh = dataclasses.field(metadata={"static": True})  # tokens × candidates


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """`Σ_t log Σ_k λ_k exp(a_tk)` by domain, for a [T, K] that is given once and λ by the thousand."""

    offsets: np.ndarray  # [J] sums of the rows' largest logarithms, float64
    counts: np.ndarray  # [J] rows
    tiers: tuple[Tier, ...]

    def sums(self, weights_CxK: np.ndarray) -> np.ndarray:
        """[C, J] sums in nats, float64."""
        out = np.tile(self.offsets, (len(weights_CxK), 1))
        self._add(_logmix.sums, weights_CxK, out)
        return out

    def gradients(self, weights_CxK: np.ndarray) -> np.ndarray:
        """[C, J, K] derivatives of the sums by the weights, float64."""
        out = np.zeros((len(weights_CxK), len(self.offsets), weights_CxK.shape[1]))
        self._add(_logmix.gradients, weights_CxK, np.moveaxis(out, 2, 1))
        return out

    def traced(self, kernel: Kernel, weights_CxK: jax.Array) -> jax.Array:
        """What `sums` (without offsets) or `gradients` gives, [C, J] or [C, K, J] float32, under a JAX transformation.

        Weights are not known yet, so it is decided on the device, for each block of candidates, whether shares are
        large enough for groups of eight tokens.
        """
        found = [_traced_tier(kernel, len(self.offsets), tier, weights_CxK) for tier in self.tiers]
        return functools.reduce(jnp.add, found)

    def _add(self, kernel: Kernel, weights_CxK: np.ndarray, out: np.ndarray) -> None:
        """Adds to `out`, [C, J] or [C, K, J], whatever the tiers give."""
        waiting: deque = deque()
        for tier in self.tiers:
            for group, support_K, rows in _classes(tier.reach, weights_CxK):
                for part, weights in _batches(tier, group, weights_CxK[rows]):
                    program = _program(kernel, group, len(self.offsets), tier.mesh)
                    pair = program(tier.steps, tier.blocks, tier.domains, support_K, weights)
                    waiting.append((rows[part], pair))
                    if len(waiting) > _UNDER_WAY:
                        _fetch(out, *waiting.popleft())
        while waiting:
            _fetch(out, *waiting.popleft())


class TermBuilder:
    """Collects rows, a chunk at a time, into a term."""

    def __init__(self, n_domains: int, n_devices: int):
        self._devices = n_devices
        self._offsets, self._counts = np.zeros(n_domains), np.zeros(n_domains, np.int64)
        self._parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in _REACHES]

    def add(self, logits: np.ndarray, domains: np.ndarray) -> None:
        """Adds rows [n, K] float64, which are overwritten, of the domains [n]; rounds them to float32 once."""
        columns = np.ascontiguousarray(logits.T)  # reductions over a few experts are many times faster this way round
        largest = columns.max(axis=0)
        largest[np.isneginf(largest)] = 0
        columns -= largest
        self._offsets += np.bincount(domains, weights=largest, minlength=len(self._offsets))
        self._counts += np.bincount(domains, minlength=len(self._counts))
        tiers = np.searchsorted(_REACHES, -columns.min(axis=0))
        for i, parts in enumerate(self._parts):
            rows = np.flatnonzero(tiers == i)
            if len(rows):
                chosen = columns[:, rows] if len(rows) < len(tiers) else columns
                values = _split(chosen.T) if np.isinf(_REACHES[i]) else np.exp(chosen).astype(np.float32).T
                parts.append((values, domains[rows]))

    def finish(self) -> Term:
        """The term; the builder is empty afterwards."""
        tiers = []
        for i, parts in enumerate(self._parts):
            if parts:
                tiers.append(_deal(_REACHES[i], parts, len(self._offsets), self._devices))
                parts.clear()
        return Term(self._offsets, self._counts, tuple(tiers))


def _split(values: np.ndarray) -> np.ndarray:
    """[..., K] float64 as [..., 2, K] float32: rounded, and what rounding lost."""
    high = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        low = np.where(np.isneginf(values), 0, values - high).astype(np.float32)
    return np.stack([high, low], axis=-2)


def _deal(widest: float, parts: list[tuple[np.ndarray, np.ndarray]], n_domains: int, n_devices: int) -> Tier:
    """Cuts the rows of each domain into blocks, fills these up with padding and deals them to the devices."""
    counts = np.bincount(np.concatenate([domains for _, domains in parts]), minlength=n_domains)
    size = _block_size(counts)
    used_J = -(-counts // size)
    shards = _shards(used_J.sum(), n_devices)
    steps = -(-used_J.sum() // shards)
    cut = (_rounded_up(steps), shards)  # blocks go round the shards
    logarithms = parts[0][0].ndim == 3
    rows = np.empty((cut[0] * cut[1] * size, *parts[0][0].shape[1:-1], parts[0][0].shape[-1] + 1), np.float32)
    zero, one = ((-np.inf, 0), (0, 0)) if logarithms else (0, 1)
    # Padding belongs to the expert of weight 1, and no token does.
    rows[..., :-1], rows[..., -1] = (np.reshape(zero, (-1, 1)) if logarithms else zero), one
    first = np.cumsum(used_J) * size - used_J * size
    for values, domains in parts:
        order = np.argsort(domains, kind="stable")
        here = np.bincount(domains, minlength=n_domains)
        target = np.arange(len(domains)) + np.repeat(first - np.cumsum(here) + here, here)
        rows[target, ..., :-1], rows[target, ..., -1] = values[order], zero
        first += here
    domain_of = np.pad(np.repeat(np.arange(n_domains, dtype=np.int32), used_J), (0, cut[0] * cut[1] - used_J.sum()))
    mesh = mesh_of((shards, n_devices // shards), ("tokens", "candidates"))
    dealt = NamedSharding(mesh, P(None, "tokens"))
    return Tier(
        jax.device_put(rows.reshape(*cut, size, *rows.shape[1:]), dealt),
        jax.device_put(domain_of.reshape(cut), dealt),
        jax.device_put(np.int32(steps), NamedSharding(mesh, P())),
        widest,
        mesh,
    )


def _block_size(counts: np.ndarray) -> int:
    """Tokens in a block: fewer where domains are so small that much of a large block would be padding."""
    small, large = _BLOCKS
    return large if counts.sum() >= large * np.count_nonzero(counts) else small


def _shards(blocks: int, devices: int) -> int:
    """Over how many devices tokens are spread; each has at least eight blocks."""
    return max(n for n in range(1, devices + 1) if devices % n == 0 and (n == 1 or blocks >= 8 * n))


def _rounded_up(blocks: int) -> int:
    """The next of 64, 96, 128, 192, 256, … : few sizes, so that few programs are compiled."""
    power = 1 << max(6, (int(blocks) - 1).bit_length())
    return 3 * power // 4 if power > 64 and blocks <= 3 * power // 4 else power


def _classes(widest: float, weights: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Group, support [K] and row numbers of candidates that one program serves on tokens of such a range."""
    if np.isinf(widest):
        # Of what no group reaches, log-sum-exp takes all supports together.
        smallest = np.min(weights, axis=1, where=weights > 0, initial=1)
        supports, support_of = np.unique(weights > 0, axis=0, return_inverse=True)
    else:
        smallest = weights.min(axis=1)
        supports, support_of = np.ones((1, weights.shape[1]), bool), np.zeros(len(weights), int)
    with np.errstate(divide="ignore"):
        groups = np.array([g for g, _ in GROUPS])[np.searchsorted(_REACHES, np.minimum(widest, -np.log(smallest)))]
    kinds, kind_of = np.unique([groups, np.where(groups > 0, support_of, 0)], axis=1, return_inverse=True)
    for i, (group, support) in enumerate(kinds.T):
        yield int(group), supports[support], np.flatnonzero(kind_of == i)


def _batches(tier: Tier, group: int, weights: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Which of the candidates, and their weights as the kernels want them, filled up to one of a few sizes."""
    lanes = tier.mesh.shape["candidates"]
    sizes = [lanes * width for width in _WIDTHS]
    size = next((size for size in sizes if size >= len(weights)), sizes[-1])
    for start in range(0, len(weights), size):
        part = slice(start, min(start + size, len(weights)))
        filled = np.full((weights.shape[1], size), 1 / weights.shape[1])
        filled[:, : part.stop - start] = weights[part].T
        with np.errstate(divide="ignore"):
            yield part, filled.astype(np.float32) if group else np.moveaxis(_split(np.log(filled).T), 0, 2)


def _fetch(out: np.ndarray, rows: np.ndarray, pair: _logmix.Pair) -> None:
    """Adds the sums of all shards, [shards, J, (K,) C], to the rows of `out`."""
    total = sum(np.asarray(part, np.float64).sum(axis=0) for part in pair)
    out[rows] += total.T[: len(rows)]


@functools.cache
def _program(kernel: Kernel, group: int, n_domains: int, mesh: Mesh) -> Callable[..., _logmix.Pair]:
    """The jitted program of a kernel."""
    program = _on_mesh(kernel, functools.partial(kernel, group, n_domains), mesh, 2 if group else 3)
    return jax.jit(program, compiler_options=compiler_options())


def _on_mesh(
    kernel: Kernel, work: Callable[..., _logmix.Pair], mesh: Mesh, weight_axes: int
) -> Callable[..., _logmix.Pair]:
    """The work of each shard of the tokens on each lane of candidates; sums get the shards as their first axis."""

    def local(
        steps: jax.Array, blocks: jax.Array, domains: jax.Array, support_K: jax.Array, weights: jax.Array
    ) -> _logmix.Pair:
        total, lost = work(steps, blocks[:, 0], domains[:, 0], support_K, weights)
        return total[None], lost[None]

    dealt = P(None, "tokens")
    lanes = P(*[None] * (weight_axes - 1), "candidates")
    found = P("tokens", *[None] * (2 if kernel is _logmix.gradients else 1), "candidates")
    return jax.shard_map(
        local, mesh=mesh, in_specs=(P(), dealt, dealt, P(), lanes), out_specs=(found, found), check_vma=False
    )


def _traced_tier(kernel: Kernel, n_domains: int, tier: Tier, weights_CxK: jax.Array) -> jax.Array:
    """[C, J] sums or [C, K, J] gradients of one tier, float32."""
    c, k = weights_CxK.shape
    lanes = tier.mesh.shape["candidates"]
    width = min(_WIDTHS[-1], 1 << (-(-c // lanes) - 1).bit_length())
    filled = jnp.pad(weights_CxK, ((0, -c % (lanes * width)), (0, 0)), constant_values=1 / k)

    def work(*arguments: jax.Array) -> _logmix.Pair:
        *tokens, weights_KxC = arguments

        def known(group: int) -> Callable[[jax.Array], _logmix.Pair]:
            return lambda weights: kernel(group, n_domains, *tokens, weights if group else _log_pairs(weights))

        group, reach = GROUPS[0]
        otherwise = next(group for group, reach in GROUPS if tier.reach <= reach)
        blocks = jnp.moveaxis(weights_KxC.reshape(k, -1, width), 1, 0)
        pair = lax.map(lambda w: lax.cond(jnp.min(w) >= np.exp(-reach), known(group), known(otherwise), w), blocks)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1), pair)

    program = _on_mesh(kernel, work, tier.mesh, 2)
    total, lost = program(tier.steps, tier.blocks, tier.domains, jnp.ones(k, bool), filled.T)
    return (total.sum(axis=0) + lost.sum(axis=0)).T[:c]


def _log_pairs(weights_KxC: jax.Array) -> jax.Array:
    """Logarithms of weights as pairs [2, K, C]; one Newton step finds what rounding lost."""
    high = jnp.log(weights_KxC)
    low = jnp.where(weights_KxC > 0, weights_KxC * jnp.exp(-high) - 1, 0)
    return jnp.stack([high, low])
