"""Sums over tokens of `log Σ_k λ_k p_k(x_t)` for many candidate mixtures λ, and their derivatives, on the devices.

A sum of logarithms is the logarithm of a product. The kernel multiplies the mixtures of all tokens of a domain and
keeps the product as a mantissa in [1, 2) and a count of octaves (powers of two), so no logarithm is taken on the
device. The host takes one logarithm per domain and candidate, in float64.

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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde import hosts
from mde.training.placement import mesh_of

_GROUP = 8  # mixtures multiplied before the exponent is split off
_LEAST = 2.0**-96  # of a product: terms that float32 drops, below 2**-126 each, are then below 1e-9 of it
_LOWEST = -87.0  # nats; exp of it is a normal float32
_MANTISSAS = 64  # numbers below 2 that are multiplied: below 2**64
_UNROLLED = 16  # experts up to which a spelled-out sum, which XLA fuses with the products, beats a matmul
_WIDTHS = (32, 512)  # candidates per program; two sizes, so that few programs are compiled
_PART = 1 << 13  # rows that one thread of the host prepares at a time


def _tile() -> tuple[int, int]:
    """Rows in a block, and rows worked on at a time: on CPUs what is between two steps stays in the first cache."""
    return (512, 64) if jax.default_backend() == "cpu" else (8192, 8192)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows in blocks that never cross a domain, dealt to the devices."""

    rows: jax.Array  # [devices · B, N, K + 1] probabilities, or [devices · B, N, 2, K + 1] mantissas and octaves
    domains: jax.Array  # [devices · B] domain of each block
    steps: jax.Array  # [] blocks of each device that are in use
    mesh: Mesh = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """`Σ_t log Σ_k λ_k exp(a_tk)` by domain, for logits a [T, K] that are given once and many λ."""

    offsets: np.ndarray  # [J] sums of the rows' largest logits, float64
    counts: np.ndarray  # [J] rows
    blocks: tuple[Blocks, ...]

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
        mantissas, octaves = _split(weights_CxK.T)
        weights_2xKxC = jnp.stack([mantissas, octaves])
        found = [_program(gradients, len(self.offsets), blocks, weights_2xKxC) for blocks in self.blocks]
        return functools.reduce(operator.add, (_total(jnp, gradients, parts) for parts in found)).T

    def _add(self, gradients: bool, weights_CxK: np.ndarray, found: np.ndarray) -> None:
        """Adds to `found`, [C, J] or [C, K, J]."""
        c, k = weights_CxK.shape
        width = _WIDTHS[0] if c <= _WIDTHS[0] else _WIDTHS[1]
        # Candidates with small weights need blocks redone, so they stand together.
        order = np.argsort(weights_CxK.min(axis=1))
        running = []  # devices work while the host hands over more
        for start in range(0, c, width):
            here = order[start : start + width]
            mantissas, exponents = np.frexp(np.resize(weights_CxK[here], (width, k)).T)
            octaves = np.where(mantissas > 0, exponents, -np.inf)
            weights_2xKxC = np.stack([mantissas, octaves]).astype(np.float32)
            running += [(here, _program(gradients, len(self.offsets), blocks, weights_2xKxC)) for blocks in self.blocks]
        for here, parts in running:
            total = _total(np, gradients, [np.asarray(x, np.float64) for x in parts])
            found[here] += total.T[: len(here)]


class TermBuilder:
    """Makes a term of logits that come a chunk at a time.

    Args:
      domains_T: domain of every row that will be added, in their order.
      n_domains: J.
      n_experts: K.
      n_devices: over which the rows are spread.
      wide: whether most rows have logits that are further apart than float32 can hold probabilities.
    """

    def __init__(self, domains_T: np.ndarray, n_domains: int, n_experts: int, n_devices: int, wide: bool):
        self._domains, self._devices, self._added = domains_T, n_devices, 0
        self._offsets = np.zeros(n_domains)
        self._layout = None if wide else _Layout(domains_T, n_domains, n_devices)
        self._rows = None if self._layout is None else self._layout.empty(n_experts + 1)
        self._wide: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: np.ndarray) -> None:
        """Adds rows [n, K]; probabilities are rounded to float32 once."""
        with ThreadPoolExecutor(hosts.cores()) as threads:
            found = threads.map(
                lambda start: self._part(logits[start : start + _PART], self._added + start),
                range(0, len(logits), _PART),
            )
            for offsets, domains, wide in found:
                self._offsets += offsets
                if len(domains):
                    self._wide.append((domains, wide))
        self._added += len(logits)

    def _part(self, logits: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Writes probabilities; returns sums of the largest logits [J], and domains and values of wide rows."""
        columns = np.ascontiguousarray(logits.T, dtype=np.float64)  # reductions over few experts are faster this way
        largest = columns.max(axis=0)
        largest[np.isneginf(largest)] = 0
        columns -= largest
        domains = self._domains[first : first + len(logits)]
        offsets = np.bincount(domains, weights=largest, minlength=len(self._offsets))
        if self._layout is None or self._rows is None:
            return offsets, domains, columns.T
        wide = columns.min(axis=0) < _LOWEST
        target = self._layout.target[first : first + len(logits)]
        if wide.any():
            wide &= ((columns < _LOWEST) & (columns > -np.inf)).any(axis=0)
            columns, kept = columns[:, ~wide], columns
            target = target[~wide]
        else:
            kept = columns
        high = columns.astype(np.float32)
        with np.errstate(invalid="ignore"):  # −inf has no rest
            rest = np.nan_to_num((columns - high).astype(np.float32))
        self._rows[target, :-1] = (np.exp(high) * (1 + rest)).T  # what rounding the logits lost is put back
        self._rows[target, -1] = 0
        return offsets, domains[wide], kept[:, wide].T

    def finish(self) -> Term:
        """The term."""
        blocks = []
        if self._layout is not None and self._rows is not None:
            blocks.append(self._layout.deal(self._rows))
        if self._wide:
            domains, logits = (np.concatenate(parts) for parts in zip(*self._wide, strict=True))
            layout = _Layout(domains, len(self._offsets), self._devices)
            rows = layout.empty(2, logits.shape[1] + 1)
            octaves = np.floor(logits / np.log(2))
            with np.errstate(invalid="ignore"):
                mantissas = np.nan_to_num(np.exp2(logits / np.log(2) - octaves), nan=1)
            rows[layout.target, 0, :-1], rows[layout.target, 1, :-1] = mantissas, octaves
            rows[layout.target, 1, -1] = -np.inf
            blocks.append(layout.deal(rows))
        counts = np.bincount(self._domains, minlength=len(self._offsets))
        return Term(self._offsets, counts, tuple(blocks))


class _Layout:
    """Where rows of known domains stand in blocks, and on which device; the rest of the blocks is padding."""

    def __init__(self, domains_T: np.ndarray, n_domains: int, n_devices: int):
        self._size = _tile()[0]
        counts = np.bincount(domains_T, minlength=n_domains)
        used_J = -(-counts // self._size)
        self._steps = -(-used_J.sum() // n_devices)  # of each device
        power = 1 << max(3, int(self._steps - 1).bit_length())
        self._capacity = next(n for n in range(power // 2, power + 1, power // 8) if n >= self._steps)  # few programs
        self._mesh = mesh_of((n_devices,), ("tokens",))
        block = np.arange(self._steps * n_devices)
        slot = block // self._steps * self._capacity + block % self._steps
        self._domains = np.zeros(n_devices * self._capacity, np.int32)
        self._domains[slot[: used_J.sum()]] = np.repeat(np.arange(n_domains), used_J)
        # A row's place in the blocks of all domains in a line, then that block's slot.
        order = None if (np.diff(domains_T) >= 0).all() else np.argsort(domains_T, kind="stable")
        shift = np.repeat((np.cumsum(used_J) - used_J) * self._size - (np.cumsum(counts) - counts), counts)
        place = np.arange(len(domains_T)) + shift
        target = slot[place // self._size] * self._size + place % self._size
        self.target = target
        if order is not None:
            self.target = np.empty_like(target)
            self.target[order] = target

    def empty(self, *shape: int) -> np.ndarray:
        """[devices · B · N, *shape] rows of padding."""
        rows = np.zeros((len(self._domains) * self._size, *shape), np.float32)
        if len(shape) == 1:
            rows[:, -1] = 1
        else:  # mantissas 1; octaves −inf, but for the owner of padding
            rows[:, 0], rows[:, 1, :-1] = 1, -np.inf
        return rows

    def deal(self, rows: np.ndarray) -> Blocks:
        """The blocks on their devices."""
        dealt = NamedSharding(self._mesh, P("tokens"))
        return Blocks(
            jax.device_put(rows.reshape(len(self._domains), self._size, *rows.shape[1:]), dealt),
            jax.device_put(self._domains, dealt),
            jax.device_put(np.int32(self._steps), NamedSharding(self._mesh, P())),
            self._mesh,
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _program(gradients: bool, n_domains: int, blocks: Blocks, weights_2xKxC: jax.Array) -> tuple[jax.Array, ...]:
    """What each device finds on its own rows; the devices are the first axis."""
    kernel = _gradients if gradients else _products

    def local(
        rows: jax.Array, domains_B: jax.Array, steps: jax.Array, weights_2xKxC: jax.Array
    ) -> tuple[jax.Array, ...]:
        return tuple(x[None] for x in kernel(n_domains, rows, domains_B, steps, weights_2xKxC))

    dealt = P("tokens")
    mapped = jax.shard_map(local, mesh=blocks.mesh, in_specs=(dealt, dealt, P(), P()), out_specs=dealt, check_vma=False)
    return mapped(blocks.rows, blocks.domains, blocks.steps, weights_2xKxC)


def _total(xp: Any, gradients: bool, parts: Any) -> Any:
    """Sums over the devices in nats: [J, C], or [J, K, C] gradients."""
    if gradients:
        return (parts[0] + parts[1]).sum(axis=0)
    mantissas, octaves, lost = parts
    return (xp.log(mantissas) + (octaves + lost) * np.log(2)).sum(axis=0)


def _products(
    n_domains: int, rows: jax.Array, domains_B: jax.Array, steps: jax.Array, weights_2xKxC: jax.Array
) -> tuple[jax.Array, ...]:
    """[J, C] products of mixtures: mantissas, octaves, and what rounding lost of the octaves."""
    weights_KxC = weights_2xKxC[0] * _power_of_two(weights_2xKxC[1])

    def exact(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixtures, octaves = lax.map(functools.partial(_scaled_groups, weights_2xKxC), _pieces(block))
        product, more = _multiply(mixtures.reshape(-1, mixtures.shape[-1]))
        return product, octaves.sum(axis=0) + more

    def add(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (mantissas, octaves, lost), j = carry, domains_B[i]
        groups = lax.map(functools.partial(_groups, weights_KxC), _pieces(_probabilities(rows[i])))
        groups = groups.reshape(-1, groups.shape[-1])
        product, octaves_here = lax.cond(groups.min() >= _LEAST, lambda: _multiply(groups), lambda: exact(rows[i]))
        mantissa, carried = _normalise(mantissas[j] * product)
        total, lost_here = two_sum(octaves[j], octaves_here + carried)
        return mantissas.at[j].set(mantissa), octaves.at[j].set(total), lost.at[j].add(lost_here)

    zeros = jnp.zeros((n_domains, weights_2xKxC.shape[-1]), jnp.float32)
    return lax.fori_loop(0, steps, add, (zeros + 1, zeros, zeros))


def _gradients(
    n_domains: int, rows: jax.Array, domains_B: jax.Array, steps: jax.Array, weights_2xKxC: jax.Array
) -> tuple[jax.Array, ...]:
    """[J, K, C] derivatives `Σ_t p_tk / Σ_l λ_l p_tl`, and what rounding lost of them.

    They are infinite where float32 has no number for them: for an expert without weight, on a token that it finds
    exp(88) times likelier than those with weight.
    """
    weights_KxC = weights_2xKxC[0] * _power_of_two(weights_2xKxC[1])

    def fast(probs: jax.Array, mixtures: jax.Array) -> jax.Array:
        return jnp.matmul(probs[:, :-1].T, 1 / mixtures, precision=lax.Precision.HIGHEST)

    def add(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (total, lost), j = carry, domains_B[i]
        probs = _probabilities(rows[i])
        mixtures = lax.map(lambda piece: _mix(piece, weights_KxC), _pieces(probs)).reshape(len(probs), -1)
        found = lax.cond(
            mixtures.min() >= _LEAST,
            lambda: fast(probs, mixtures),
            lambda: lax.map(functools.partial(_scaled_slopes, weights_2xKxC), _pieces(rows[i])).sum(axis=0),
        )
        new, lost_here = two_sum(total[j], found)
        return total.at[j].set(new), lost.at[j].add(lost_here)

    zeros = jnp.zeros((n_domains, *weights_2xKxC.shape[-2:]), jnp.float32)
    return lax.fori_loop(0, steps, add, (zeros, zeros))


def _pieces(block: jax.Array) -> jax.Array:
    """[N / piece, piece, ...] rows; the loop over them keeps XLA from working out results twice."""
    return block.reshape(-1, _tile()[1], *block.shape[1:])


def _probabilities(block: jax.Array) -> jax.Array:
    """[N, K + 1]."""
    return block if block.ndim == 2 else block[:, 0] * _power_of_two(block[:, 1])


def _mix(rows_NxK: jax.Array, weights_KxC: jax.Array) -> jax.Array:
    """[N, C] mixtures."""
    if len(weights_KxC) > _UNROLLED:
        return jnp.matmul(rows_NxK[:, :-1], weights_KxC, precision=lax.Precision.HIGHEST) + rows_NxK[:, -1:]
    terms = (rows_NxK[:, k, None] * weights_KxC[k] for k in range(len(weights_KxC)))
    return functools.reduce(operator.add, terms, rows_NxK[:, -1:])


def _groups(weights_KxC: jax.Array, rows_NxK: jax.Array) -> jax.Array:
    """[N / 8, C] products of the mixtures of eight rows each."""
    parts = rows_NxK.reshape(_GROUP, -1, rows_NxK.shape[1])
    return functools.reduce(operator.mul, [_mix(rows, weights_KxC) for rows in parts])


def _scaled_groups(weights_2xKxC: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_groups`, and [C] octaves of the mixtures' largest terms, which are split off before."""
    mixtures, octaves = _scaled(weights_2xKxC, rows)
    parts = jnp.where(mixtures > 0, mixtures, 1).reshape(_GROUP, -1, mixtures.shape[1])
    return functools.reduce(operator.mul, parts), octaves.sum(axis=0)


def _scaled_slopes(weights_2xKxC: jax.Array, rows: jax.Array) -> jax.Array:
    """[K, C] derivatives of the sum of logarithms."""
    mixtures, largest = _scaled(weights_2xKxC, rows)
    mantissas, octaves = (x[:, :-1, None] for x in _scales(rows))
    values = mantissas * _power_of_two(octaves - largest[:, None]) / mixtures[:, None]
    return jnp.where((mixtures > 0)[:, None], values, 0).sum(axis=0)


def _scaled(weights_2xKxC: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, C] mixtures over the power of two of their largest term, and the octaves of that.

    They lie between 1/2 and 4 (K + 1). A mixture that is impossible is 0 and has minus infinity octaves.
    """
    mantissas, octaves = _scales(rows)
    weights = jnp.pad(weights_2xKxC, ((0, 0), (0, 1), (0, 0))).at[0, -1].set(1)  # the owner of padding
    exponents = [octaves[:, k, None] + weights[1, k] for k in range(octaves.shape[1])]
    largest = functools.reduce(jnp.maximum, exponents)
    base = jnp.where(jnp.isneginf(largest), 0, largest)
    terms = (mantissas[:, k, None] * weights[0, k] * _power_of_two(e - base) for k, e in enumerate(exponents))
    return functools.reduce(operator.add, terms), largest


def _scales(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mantissas and octaves [N, K + 1] of rows in either form."""
    return (rows[:, 0], rows[:, 1]) if rows.ndim == 3 else _split(rows)


def _split(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mantissas in [1, 2) and octaves of normal float32 numbers and of 0, which has minus infinity octaves."""
    mantissas, octaves = _normalise(values)
    return mantissas, jnp.where(values > 0, octaves, -jnp.inf)


def _multiply(values_RxC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product [C] over the rows of normal numbers, below 2**64, and the octaves that were split off it."""
    octaves = jnp.zeros(values_RxC.shape[1:])
    while len(values_RxC) > 1:
        mantissas, more = _normalise(values_RxC)
        octaves += more.sum(axis=0)
        values_RxC = mantissas.reshape(min(_MANTISSAS, len(mantissas)), -1, mantissas.shape[1]).prod(axis=0)
    return values_RxC[0], octaves


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
