"""Sums over tokens of `log Σ_k λ_k p_k(x_t)` for many candidate mixtures λ, and their derivatives, on the devices.

A sum of logarithms is the logarithm of a product. The kernel multiplies the mixtures of all tokens of a domain and
keeps the product as a mantissa in [1, 2) and a count of octaves (powers of two), so nothing underflows and no logarithm
is taken on the device. The host takes one logarithm per domain and candidate, in float64.

A row holds a token's probabilities over the largest of them. Its mixture is at least the candidate's smallest weight,
and at least the row's smallest probability. Where one of the two is at least exp(−10), eight mixtures can be multiplied
as float32 numbers. Only candidates with smaller weights, on rows with smaller probabilities ("wide" rows), need more:
there each probability and weight is a mantissa and octaves of its own, and mixtures are taken over their largest term.
This is log-sum-exp in base 2, with exact exponents.

Shapes: T rows, K experts, C candidates, J domains, B blocks on a device, N rows in a block. Rows have one more column,
of an expert of weight 1 that owns the rows of padding: their mixture is exactly 1 and changes no product.
"""

import dataclasses
import enum
import functools
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde import hosts
from mde.training.placement import mesh_of

_GROUP = 8  # mixtures multiplied before the exponent is split off
_REACH = 10.0  # nats; the product of a group is at least exp(-80) = 1.8e-35, a normal float32
_MANTISSAS = 64  # numbers below 2 that are multiplied: below 2**64
_UNROLLED = 16  # experts up to which a spelled-out sum, which XLA fuses with the products, beats a matmul
_WIDTHS = (32, 512)  # candidates per program; two sizes, so that few programs are compiled
_PART = 1 << 13  # rows that one thread of the host prepares at a time
_TOKEN, _PADDING, _WIDE = 0, 1, 2  # what the last column says of a row

Step = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Part(enum.Enum):
    """Which rows a program covers, and how."""

    ALL = "all rows, for candidates without small weights"
    NARROW = "rows that are not wide"
    WIDE = "wide rows, for any candidate"


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
    rows: Blocks
    wide: Blocks | None

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
        """[C, J] sums without offsets, or [C, K, J] gradients, float32, under a JAX transformation.

        The weights are not known yet, so every wide row is treated as one.
        """
        program = functools.partial(_program, gradients, len(self.offsets))
        total = _total(jnp, gradients, program(Part.NARROW, self.rows, weights_CxK.T)).T
        if self.wide is None:
            return total
        mantissas, octaves = _normalise(weights_CxK.T)
        weights_2xKxC = jnp.stack([mantissas, jnp.where(weights_CxK.T > 0, octaves, -jnp.inf)])
        return total + _total(jnp, gradients, program(Part.WIDE, self.wide, weights_2xKxC)).T

    def _add(self, gradients: bool, weights_CxK: np.ndarray, found: np.ndarray) -> None:
        """Adds to `found`, [C, J] or [C, K, J]."""
        inner = weights_CxK.min(axis=1) >= np.exp(-_REACH)
        work = [(inner, Part.ALL, self.rows), (~inner, Part.NARROW, self.rows), (~inner, Part.WIDE, self.wide)]
        running = []  # devices work while the host hands over more
        for chosen, part, blocks in work:
            candidates = np.flatnonzero(chosen)
            width = _WIDTHS[0] if len(candidates) <= _WIDTHS[0] else _WIDTHS[1]
            for start in range(0, len(candidates) if blocks else 0, width):
                here = candidates[start : start + width]
                filled = np.resize(weights_CxK[here], (width, weights_CxK.shape[1])).T
                weights = np.stack(split(filled)) if part is Part.WIDE else filled
                program = _program(gradients, len(self.offsets), part, blocks, weights.astype(np.float32))
                running.append((here, program))
        for here, result in running:
            total = _total(np, gradients, [np.asarray(x, np.float64) for x in result])
            found[here] += total.T[: len(here)]


def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mantissas in [1, 2) and octaves of non-negative numbers; zero has minus infinity octaves."""
    mantissas, octaves = np.frexp(values)
    return np.where(values > 0, 2 * mantissas, 1), np.where(values > 0, octaves - 1.0, -np.inf)


class TermBuilder:
    """Makes a term of logits that come a chunk at a time.

    Args:
      domains_T: domain of every row that will be added, in their order.
      n_domains: J.
      n_experts: K.
      n_devices: over which the rows are spread.
    """

    def __init__(self, domains_T: np.ndarray, n_domains: int, n_experts: int, n_devices: int):
        self._domains, self._devices, self._added = domains_T, n_devices, 0
        self._offsets = np.zeros(n_domains)
        self._layout = _Layout(domains_T, n_domains, n_devices)
        self._rows = self._layout.empty(n_experts + 1)
        self._wide: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: np.ndarray) -> None:
        """Adds rows [n, K]; probabilities are rounded to float32 once."""
        starts = range(0, len(logits), _PART)
        with ThreadPoolExecutor(hosts.cores()) as threads:
            found = list(
                threads.map(lambda start: self._part(logits[start : start + _PART], self._added + start), starts)
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
        impossible = np.isneginf(largest)  # whatever the weights; the offset says so, and the row becomes padding
        columns -= np.where(impossible, 0, largest)
        wide = (columns.min(axis=0) < -_REACH) & ~impossible
        high = columns.astype(np.float32)
        with np.errstate(invalid="ignore"):  # −inf has no rest
            rest = np.nan_to_num((columns - high).astype(np.float32))
        target, domains = (x[first : first + len(logits)] for x in (self._layout.target, self._domains))
        self._rows[target, :-1] = (np.exp(high) * (1 + rest)).T  # what rounding the logits lost is put back
        self._rows[target, -1] = np.select([impossible, wide], [_PADDING, _WIDE], _TOKEN)
        offsets = np.bincount(domains, weights=largest, minlength=len(self._offsets))
        return offsets, domains[wide], columns[:, wide].T

    def finish(self) -> Term:
        """The term."""
        wide = None
        if self._wide:
            domains, logits = (np.concatenate(parts) for parts in zip(*self._wide, strict=True))
            layout = _Layout(domains, len(self._offsets), self._devices)
            rows = layout.empty(2, logits.shape[1] + 1)
            octaves = np.floor(logits / np.log(2))
            with np.errstate(invalid="ignore"):
                mantissas = np.nan_to_num(np.exp2(logits / np.log(2) - octaves), nan=1)
            rows[layout.target, 0, :-1], rows[layout.target, 1, :-1] = mantissas, octaves
            rows[:, 0, -1], rows[layout.target, 1, -1] = 1, -np.inf
            wide = layout.deal(rows)
        counts = np.bincount(self._domains, minlength=len(self._offsets))
        return Term(self._offsets, counts, self._layout.deal(self._rows), wide)


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
        rows[..., -1] = _PADDING
        if len(shape) == 2:
            rows[:, 1] = np.append(np.full(shape[1] - 1, -np.inf), 0)
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _program(gradients: bool, n_domains: int, part: Part, blocks: Blocks, weights: jax.Array) -> list[jax.Array]:
    """What each device finds on its own rows; the devices are the first axis."""
    kernel = _gradients if gradients else _products

    def local(rows: jax.Array, domains_B: jax.Array, steps: jax.Array, weights: jax.Array) -> list[jax.Array]:
        return [x[None] for x in kernel(part, n_domains, rows, domains_B, steps, weights)]

    dealt = P("tokens")
    mapped = jax.shard_map(local, mesh=blocks.mesh, in_specs=(dealt, dealt, P(), P()), out_specs=dealt, check_vma=False)
    return mapped(blocks.rows, blocks.domains, blocks.steps, weights)


def _total(xp: object, gradients: bool, parts: list) -> np.ndarray:
    """Sums over the devices in nats: [J, C], or [J, K, C] gradients."""
    if gradients:
        return (parts[0] + parts[1]).sum(axis=0)
    mantissas, octaves, lost = parts
    return (xp.log(mantissas) + (octaves + lost) * np.log(2)).sum(axis=0)


def _products(
    part: Part, n_domains: int, rows: jax.Array, domains_B: jax.Array, steps: jax.Array, weights: jax.Array
) -> tuple[jax.Array, ...]:
    """[J, C] products of mixtures: mantissas, octaves, and what rounding lost of the octaves."""
    step = functools.partial(_wide_mixtures if part is Part.WIDE else _mixtures, part, weights)

    def add(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (mantissas, octaves, lost), j = carry, domains_B[i]
        piece = rows[i].reshape(-1, _tile()[1], *rows.shape[2:])
        products, octaves_here = lax.map(step, piece)  # one piece after another, each in the cache
        product, more = _multiply(products.reshape(-1, products.shape[-1]))
        mantissa, carried = _normalise(mantissas[j] * product)
        total, lost_here = two_sum(octaves[j], octaves_here.sum(axis=0) + more + carried)
        return mantissas.at[j].set(mantissa), octaves.at[j].set(total), lost.at[j].add(lost_here)

    zeros = jnp.zeros((n_domains, weights.shape[-1]), jnp.float32)
    return lax.fori_loop(0, steps, add, (zeros + 1, zeros, zeros))


def _gradients(
    part: Part, n_domains: int, rows: jax.Array, domains_B: jax.Array, steps: jax.Array, weights: jax.Array
) -> tuple[jax.Array, ...]:
    """[J, K, C] derivatives `Σ_t p_tk / Σ_l λ_l p_tl`, and what rounding lost of them.

    They are infinite where float32 has no number for them: for an expert without weight, on a token that it finds
    exp(88) times likelier than those with weight.
    """
    step = functools.partial(_wide_slopes if part is Part.WIDE else _slopes, part, weights)

    def add(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        (total, lost), j = carry, domains_B[i]
        found = lax.map(step, rows[i].reshape(-1, _tile()[1], *rows.shape[2:])).sum(axis=0)
        new, lost_here = two_sum(total[j], found)
        return total.at[j].set(new), lost.at[j].add(lost_here)

    zeros = jnp.zeros((n_domains, *weights.shape[-2:]), jnp.float32)
    return lax.fori_loop(0, steps, add, (zeros, zeros))


def _covered(part: Part, rows_NxK: jax.Array) -> jax.Array:
    """The rows with those that are not covered turned into padding."""
    kind = rows_NxK[:, -1:]
    padding = kind == _PADDING if part is Part.ALL else kind != _TOKEN
    return jnp.where(padding, 0, rows_NxK).at[:, -1].set(padding[:, 0].astype(jnp.float32))


def _mix(rows_NxK: jax.Array, weights_KxC: jax.Array) -> jax.Array:
    """[N, C] mixtures."""
    if len(weights_KxC) > _UNROLLED:
        return jnp.matmul(rows_NxK[:, :-1], weights_KxC, precision=lax.Precision.HIGHEST) + rows_NxK[:, -1:]
    terms = (rows_NxK[:, k, None] * weights_KxC[k] for k in range(len(weights_KxC)))
    return functools.reduce(operator.add, terms, rows_NxK[:, -1:])


def _mixtures(part: Part, weights_KxC: jax.Array, rows_NxK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N / 8, C] products of the mixtures of eight rows each, and [C] octaves beside them."""
    groups = _covered(part, rows_NxK).reshape(_GROUP, -1, rows_NxK.shape[1])
    products = functools.reduce(operator.mul, [_mix(rows, weights_KxC) for rows in groups])
    return products, jnp.zeros(weights_KxC.shape[1:])


def _slopes(part: Part, weights_KxC: jax.Array, rows_NxK: jax.Array) -> jax.Array:
    """[K, C] derivatives of the sum of logarithms."""
    rows_NxK = _covered(part, rows_NxK)
    return jnp.matmul(rows_NxK[:, :-1].T, 1 / _mix(rows_NxK, weights_KxC), precision=lax.Precision.HIGHEST)


def _wide_mixtures(part: Part, weights_2xKxC: jax.Array, rows_Nx2xK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_mixtures`; the octaves of each mixture's largest term are split off, so that it is at least 1."""
    mixtures, octaves = _scaled(weights_2xKxC, rows_Nx2xK)
    groups = jnp.where(mixtures > 0, mixtures, 1).reshape(_GROUP, -1, mixtures.shape[1])
    return functools.reduce(operator.mul, groups), octaves.sum(axis=0)


def _wide_slopes(part: Part, weights_2xKxC: jax.Array, rows_Nx2xK: jax.Array) -> jax.Array:
    mixtures, octaves = _scaled(weights_2xKxC, rows_Nx2xK)
    numerators = rows_Nx2xK[:, 0, :-1, None] * _power_of_two(rows_Nx2xK[:, 1, :-1, None] - octaves[:, None])
    possible = (mixtures > 0)[:, None]
    return jnp.where(possible, numerators / mixtures[:, None], 0).sum(axis=0)


def _scaled(weights_2xKxC: jax.Array, rows_Nx2xK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, C] mixtures over the power of two of their largest term, in [1, 4 (K + 1)], and that power's octaves.

    A mixture that is impossible is 0 and has minus infinity octaves.
    """
    mantissas, octaves = (
        jnp.pad(x, ((0, 1), (0, 0)), constant_values=c) for x, c in zip(weights_2xKxC, (1, 0), strict=True)
    )
    terms = [rows_Nx2xK[:, 1, k, None] + octaves[k] for k in range(len(octaves))]
    largest = functools.reduce(jnp.maximum, terms)
    base = jnp.where(jnp.isneginf(largest), 0, largest)
    products = (rows_Nx2xK[:, 0, k, None] * mantissas[k] * _power_of_two(term - base) for k, term in enumerate(terms))
    return functools.reduce(operator.add, products), largest


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
