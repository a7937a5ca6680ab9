"""Sums over tokens of `log Σ_k λ_k p_k(x_t)` for many candidate mixtures λ, and their derivatives, on the devices.

A sum of logarithms is the logarithm of a product. The kernel multiplies the mixtures of a block of tokens as mantissas
in [1, 2) and a count of octaves (powers of two), and takes one logarithm per block. Octaves and logarithms are summed
apart, with what rounding loses of them; the host puts them together in float64.

A row holds a token's probabilities over the largest of them. The mixtures of eight rows are multiplied as float32
numbers. Where such a product is so small that float32 could have lost something, the block of tokens is redone: each
probability and weight is then a mantissa and octaves of its own, and each mixture is taken over its largest term. This
is log-sum-exp in base 2, with exact exponents.

Shapes: T rows, K experts, C candidates, J domains, B blocks on a device, N rows in a block. Rows have one more column,
of an expert of weight 1 that owns the rows of padding: their mixture is exactly 1 and changes no product.
"""

import dataclasses
import functools
import operator
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde import hosts
from mde.models.products import compiler_options
from mde.training.placement import mesh_of

_GROUP = 8  # mixtures multiplied before the exponent is split off
_LEAST = 2.0**-96  # of a product: terms that float32 drops, below 2**-126 each, are then below 1e-9 of it
_LOWEST = -87.0  # nats; exp of it is a normal float32
_MANTISSAS = 64  # numbers below 2 that are multiplied: below 2**64
_UNROLLED = 16  # experts up to which a spelled-out sum, which XLA fuses with the products, beats a matmul
_WIDTHS = (32, 512)  # candidates per program; two sizes, so that few programs are compiled
_RUNNING = 4  # programs that devices may be ahead of the host, which bounds what waits to be fetched
_PART = 1 << 13  # rows that one thread of the host prepares at a time


def _tile() -> tuple[int, int]:
    """Rows in a block, and rows worked on at a time: on CPUs what is between two steps stays in the first cache."""
    return (512, 64) if jax.default_backend() == "cpu" else (8192, 8192)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows in blocks that never cross a domain, dealt to the devices."""

    probs: jax.Array  # [devices · B, N, K + 1]
    octaves: jax.Array | None  # the same, if any: powers of two beside the probabilities that float32 does not hold
    domains: jax.Array  # [devices · B] domain of each block
    steps: jax.Array  # [] blocks of each device that are in use
    mesh: Mesh = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """`Σ_t log Σ_k λ_k exp(a_tk)` by domain, for logits a [T, K] that are given once and many λ."""

    offsets: np.ndarray  # [J] sums of the rows' largest logits, float64
    counts: np.ndarray  # [J] rows
    blocks: Blocks

    def sums(self, weights_CxK: np.ndarray) -> np.ndarray:
        """[C, J] sums in nats, float64."""
        found = np.zeros((len(weights_CxK), len(self.offsets)))
        self._add(False, weights_CxK, found)
        return found + self.offsets

    def gradients(self, weights_CxK: np.ndarray) -> np.ndarray:
        """[C, J, K] derivatives of the sums by the weights, float64."""
        c, k = weights_CxK.shape
        found = np.zeros((c, len(self.offsets), k))
        self._add(True, weights_CxK, np.moveaxis(found, 2, 1))
        return found

    def traced(self, gradients: bool, weights_CxK: jax.Array) -> jax.Array:
        """[C, J] sums without offsets, or [C, K, J] gradients, float32, under a JAX transformation."""
        parts = _traced(gradients, len(self.offsets), self.blocks, jnp.stack(_split(weights_CxK.T)))
        return _total(gradients, parts).T

    def _add(self, gradients: bool, weights_CxK: np.ndarray, found: np.ndarray) -> None:
        """Adds to `found`, [C, J] or [C, K, J]."""
        smallest = weights_CxK.min(axis=1)
        order = np.argsort(smallest)
        # Candidates whose weights are small may need blocks redone, so they stand together; apart from the others where
        # experts differ so much that every block is.
        small = np.searchsorted(smallest[order], _LEAST ** (1 / _GROUP)) if self.blocks.octaves is not None else 0
        running: deque = deque()  # devices work while the host hands over more

        def fetch(candidates: np.ndarray, parts: Any) -> None:
            total = _total(gradients, [np.asarray(x, np.float64) for x in parts])
            found[candidates] += total.T[: len(candidates)]

        for candidates in np.split(order, [small]):
            width = _WIDTHS[0] if len(candidates) <= _WIDTHS[0] else _WIDTHS[1]
            for start in range(0, len(candidates), width):
                here = candidates[start : start + width]
                mantissas, exponents = np.frexp(weights_CxK[np.resize(here, width)].T)
                octaves = np.where(mantissas > 0, exponents, -np.inf)
                weights_2xKxC = np.stack([mantissas, octaves]).astype(np.float32)
                running.append((here, _program()(gradients, len(self.offsets), self.blocks, weights_2xKxC)))
                if len(running) > _RUNNING:
                    fetch(*running.popleft())
        for here, parts in running:
            fetch(here, parts)


class TermBuilder:
    """Makes a term of logits that come a chunk at a time.

    Args:
      domains_T: domain of every row that will be added, in their order.
      n_domains: J.
      n_experts: K.
      n_devices: over which the rows are spread.
    """

    def __init__(self, domains_T: np.ndarray, n_domains: int, n_experts: int, n_devices: int):
        self._domains, self._added = domains_T, 0
        self._counts, self._offsets = np.bincount(domains_T, minlength=n_domains), np.zeros(n_domains)
        self._mesh = mesh_of((n_devices,), ("tokens",))
        self._size = _tile()[0]
        used_J = -(-self._counts // self._size)  # blocks
        self._steps = -(-used_J.sum() // n_devices)  # blocks of a device
        power = 1 << max(3, int(self._steps - 1).bit_length())
        capacity = next(n for n in range(power // 2, power + 1, power // 8) if n >= self._steps)  # few programs
        line = np.arange(self._steps * n_devices)  # the blocks in a line, which is cut into the devices' parts
        slots = line // self._steps * capacity + line % self._steps
        self._block_domains = np.zeros(n_devices * capacity, np.int32)
        self._block_domains[slots[: used_J.sum()]] = np.repeat(np.arange(n_domains), used_J)
        # A row's place among the rows of its domain, in the line, and on its device.
        place = np.arange(len(domains_T))
        if (np.diff(domains_T) < 0).any():
            place[np.argsort(domains_T, kind="stable")] = np.arange(len(domains_T))
        before = (np.cumsum(used_J) - used_J) * self._size - (np.cumsum(self._counts) - self._counts)
        place += before[domains_T]
        self._target = slots[place // self._size] * self._size + place % self._size
        self._probs = np.zeros((n_devices * capacity * self._size, n_experts + 1), np.float32)
        self._probs[:, -1] = 1
        self._octaves: np.ndarray | None = None

    def add(self, logits: np.ndarray) -> None:
        """Adds rows [n, K]; probabilities are rounded to float32 once."""
        starts = range(0, len(logits), _PART)
        with ThreadPoolExecutor(hosts.cores()) as threads:
            parts = threads.map(lambda i: self._part(logits[i : i + _PART], self._added + i), starts)
            for offsets, target, octaves in parts:
                self._offsets += offsets
                if octaves is not None:
                    if self._octaves is None:
                        self._octaves = np.zeros_like(self._probs)
                    self._octaves[target, :-1] = octaves
        self._added += len(logits)

    def _part(self, logits: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Writes probabilities; returns sums of the largest logits [J], where the rows stand [n], octaves [n, K]."""
        columns = np.ascontiguousarray(logits.T, dtype=np.float64)  # reductions over few experts are faster this way
        largest = columns.max(axis=0)
        largest[np.isneginf(largest)] = 0
        columns -= largest
        octaves = None
        if columns.min() < _LOWEST:
            octaves = np.where((columns < _LOWEST) & (columns > -np.inf), np.floor(columns / np.log(2)), 0)
            columns -= octaves * np.log(2)
        high = columns.astype(np.float32)
        with np.errstate(invalid="ignore"):  # −inf has no rest
            rest = (columns - high).astype(np.float32)
        rest[np.isneginf(high)] = 0
        here = slice(first, first + len(logits))
        target = self._target[here]
        self._probs[target, :-1] = (np.exp(high) * (1 + rest)).T  # what rounding the logits lost is put back
        self._probs[target, -1] = 0
        offsets = np.bincount(self._domains[here], weights=largest, minlength=len(self._offsets))
        return offsets, target, None if octaves is None or not octaves.any() else octaves.T

    def finish(self) -> Term:
        """The term."""

        def deal(values: np.ndarray) -> jax.Array:
            return jax.device_put(values, NamedSharding(self._mesh, P("tokens")))

        shape = (len(self._block_domains), self._size, self._probs.shape[1])
        octaves = None if self._octaves is None else deal(self._octaves.reshape(shape))
        steps = jax.device_put(np.int32(self._steps), NamedSharding(self._mesh, P()))
        blocks = Blocks(deal(self._probs.reshape(shape)), octaves, deal(self._block_domains), steps, self._mesh)
        return Term(self._offsets, self._counts, blocks)


def _found(gradients: bool, n_domains: int, blocks: Blocks, weights_2xKxC: jax.Array) -> tuple[jax.Array, ...]:
    """What each device finds on its own rows; the devices are the first axis."""
    kernel = _gradients if gradients else _products

    def local(blocks: Blocks, weights_2xKxC: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(x[None] for x in kernel(n_domains, blocks, weights_2xKxC))

    dealt = P("tokens")
    specs = jax.tree.map(lambda x: dealt if x.ndim else P(), blocks)  # all devices take as many steps
    mapped = jax.shard_map(local, mesh=blocks.mesh, in_specs=(specs, P()), out_specs=dealt, check_vma=False)
    return mapped(blocks, weights_2xKxC)


_traced = jax.jit(_found, static_argnums=(0, 1))  # inside another program there are no options


@functools.cache
def _program() -> Callable[..., tuple[jax.Array, ...]]:
    return jax.jit(_found, static_argnums=(0, 1), compiler_options=compiler_options())


def _total(gradients: bool, parts: Any) -> Any:
    """Sums over the devices in nats: [J, C], or [J, K, C] gradients."""
    found = (parts[0] + parts[1]).sum(axis=0)
    return found if gradients else found[:, 0] * np.log(2) + found[:, 1]


def _products(n_domains: int, blocks: Blocks, weights_2xKxC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[J, 2, C] products of mixtures as octaves and a logarithm to add to them, and what rounding lost of both."""

    def exact(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixtures, octaves = _by_pieces(functools.partial(_scaled, weights_2xKxC), _scales(blocks, i))
        product, more = _multiply(jnp.where(mixtures > 0, mixtures, 1))
        return product, octaves.sum(axis=0) + more

    def block(i: jax.Array) -> jax.Array:
        groups = _by_pieces(functools.partial(_groups, _values(weights_2xKxC)), _probabilities(blocks, i))
        safe = groups.min(axis=0).min() >= _LEAST
        product, octaves = lax.cond(safe, lambda: _multiply(groups), lambda: exact(i))
        return jnp.stack([octaves, jnp.log(product)])

    return _accumulate(block, n_domains, (2, weights_2xKxC.shape[-1]), blocks)


def _gradients(n_domains: int, blocks: Blocks, weights_2xKxC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[J, K, C] derivatives `Σ_t p_tk / Σ_l λ_l p_tl`, and what rounding lost of them.

    They are infinite where float32 has no number for them: for an expert without weight, on a token that it finds
    exp(88) times likelier than those with weight.
    """

    def exact(i: jax.Array) -> jax.Array:
        return _by_pieces(functools.partial(_scaled_slopes, weights_2xKxC), _scales(blocks, i)).sum(axis=0)

    def block(i: jax.Array) -> jax.Array:
        probs = _probabilities(blocks, i)
        mixtures = _by_pieces(functools.partial(_mix, _values(weights_2xKxC)), probs)
        slopes = functools.partial(jnp.matmul, probs[:, :-1].T, precision=lax.Precision.HIGHEST)
        safe = mixtures.min(axis=0).min() >= _LEAST
        return lax.cond(safe, lambda: slopes(1 / mixtures), lambda: exact(i))

    return _accumulate(block, n_domains, weights_2xKxC.shape[1:], blocks)


def _accumulate(
    block: Callable[[jax.Array], jax.Array], n_domains: int, shape: tuple[int, ...], blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
    """[J, *shape] sums by domain over a device's blocks, and what rounding lost of them."""

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (total, lost), j = carry, blocks.domains[i]
        new, lost_here = two_sum(total[j], block(i))
        return total.at[j].set(new), lost.at[j].add(lost_here)

    zeros = jnp.zeros((n_domains, *shape), jnp.float32)
    return lax.fori_loop(0, blocks.steps, add, (zeros, zeros))


def _by_pieces(work: Callable[[Any], Any], rows: Any) -> Any:
    """What `work` makes of rows [N, …], a piece of them at a time; the loop keeps XLA from working things out twice."""
    piece = _tile()[1]
    found = lax.map(work, jax.tree.map(lambda x: x.reshape(-1, piece, *x.shape[1:]), rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _probabilities(blocks: Blocks, i: jax.Array) -> jax.Array:
    """[N, K + 1] of a block."""
    return blocks.probs[i] if blocks.octaves is None else blocks.probs[i] * _power_of_two(blocks.octaves[i])


def _scales(blocks: Blocks, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mantissas and octaves [N, K + 1] of a block."""
    mantissas, octaves = _split(blocks.probs[i])
    return mantissas, octaves if blocks.octaves is None else octaves + blocks.octaves[i]


def _values(weights_2xKxC: jax.Array) -> jax.Array:
    """[K, C] weights; those too small for float32 are 0."""
    return weights_2xKxC[0] * _power_of_two(weights_2xKxC[1])


def _mix(weights_KxC: jax.Array, rows_NxK: jax.Array) -> jax.Array:
    """[N, C] mixtures."""
    if len(weights_KxC) > _UNROLLED:
        return jnp.matmul(rows_NxK[:, :-1], weights_KxC, precision=lax.Precision.HIGHEST) + rows_NxK[:, -1:]
    terms = (rows_NxK[:, k, None] * weights_KxC[k] for k in range(len(weights_KxC)))
    return functools.reduce(operator.add, terms, rows_NxK[:, -1:])


def _groups(weights_KxC: jax.Array, rows_NxK: jax.Array) -> jax.Array:
    """[N / 8, C] products of the mixtures of eight rows each."""
    parts = rows_NxK.reshape(_GROUP, -1, rows_NxK.shape[1])
    return functools.reduce(operator.mul, [_mix(weights_KxC, rows) for rows in parts])


def _scaled(weights_2xKxC: jax.Array, rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """[N, C] mixtures over the power of two of their largest term, and the octaves of that.

    They lie between 1/2 and 4 (K + 1). A mixture that is impossible is 0 and has minus infinity octaves.
    """
    mantissas, octaves = rows
    weights = jnp.pad(weights_2xKxC, ((0, 0), (0, 1), (0, 0))).at[0, -1].set(1)  # the owner of padding
    exponents = [octaves[:, k, None] + weights[1, k] for k in range(octaves.shape[1])]
    largest = functools.reduce(jnp.maximum, exponents)
    base = jnp.where(jnp.isneginf(largest), 0, largest)
    terms = (mantissas[:, k, None] * weights[0, k] * _power_of_two(e - base) for k, e in enumerate(exponents))
    return functools.reduce(operator.add, terms), largest


def _scaled_slopes(weights_2xKxC: jax.Array, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
    """[1, K, C] derivatives of the sum of logarithms."""
    mixtures, largest = _scaled(weights_2xKxC, rows)
    mantissas, octaves = (x[:, :-1, None] for x in rows)
    values = mantissas * _power_of_two(octaves - largest[:, None]) / mixtures[:, None]
    return jnp.where((mixtures > 0)[:, None], values, 0).sum(axis=0, keepdims=True)


def _split(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mantissas in [1, 2) and octaves of normal float32 numbers and of 0, which has minus infinity octaves."""
    mantissas, octaves = _normalise(values)
    return mantissas, jnp.where(values > 0, octaves, -jnp.inf)


def _multiply(values_RxC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product [C] over the rows of normal numbers, below 2**64, and the octaves that were split off it."""
    octaves = jnp.zeros(values_RxC.shape[1:])
    while len(values_RxC) > 1:
        mantissas, more = _normalise(values_RxC)
        octaves += _halve(operator.add, more, 1)[0]
        values_RxC = _halve(operator.mul, mantissas, -(-len(mantissas) // _MANTISSAS))
    return values_RxC[0], octaves


def _halve(combine: Callable[[jax.Array, jax.Array], jax.Array], values: jax.Array, rows: int) -> jax.Array:
    """Combines halves until so many rows are left; XLA fuses this, which saves a tenth over a reduction."""
    while len(values) > rows:
        values = combine(*jnp.split(values, 2))
    return values


def _normalise(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mantissas in [1, 2) and octaves of normal positive float32 numbers."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    mantissas = lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    return mantissas, ((bits >> 23) - 127).astype(jnp.float32)


def _power_of_two(octaves: jax.Array) -> jax.Array:
    """2 to the power of whole numbers, exact; 0 below −126 and infinity above 127."""
    return lax.bitcast_convert_type((jnp.clip(octaves, -127, 128).astype(jnp.int32) + 127) << 23, jnp.float32)


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum, and exactly what rounding lost (Knuth, TAOCP 2, section 4.2.2)."""
    total = a + b
    part = total - a
    return total, jnp.where(jnp.isfinite(total), (a - (total - part)) + (b - part), 0)
