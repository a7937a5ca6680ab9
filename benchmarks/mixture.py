"""`mixture_nll` beside NumPy, SciPy and plain JAX; its error; how its cost grows.

Contenders that would take minutes are given fewer candidates, and their times scaled; the table says how many. All work
in float32 but SciPy. Text is drawn, so that it has tokens on which the experts agree and some on which they do not.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits

from benchmarks.timing import Row, interleaved
from mde.evaluation import MixtureLosses

T, C, K, J = 1_000_000, 10_000, 7, 8
BLOCK = 512
SIZE = f"T = {T:,}, C = {C:,}, K = {K}"


def text(tokens: int, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and segment ids."""
    log_probs = -np.random.default_rng(0).gamma(1.0, 2.0, (tokens, experts)).astype(np.float32)
    return log_probs, np.repeat(np.arange(J), -(-tokens // J))[:tokens]


def mixtures(count: int, experts: int) -> np.ndarray:
    return np.random.default_rng(1).dirichlet(np.ones(experts), count)


def against_blocks() -> list[Row]:
    log_probs, domains = text(T, K)
    weights = mixtures(C, K)
    probs, single = np.exp(log_probs), weights.astype(np.float32)
    losses = MixtureLosses(log_probs, domains)
    some = 1024  # candidates for those who take longer; the blocks are as large
    columns = np.ascontiguousarray(single[:some].T)
    cores = len(os.sched_getaffinity(0))

    def numpy_blocks(then: Callable[[np.ndarray], object]) -> None:
        def share(core: int) -> None:
            out = np.empty((BLOCK, BLOCK), np.float32)
            for c in range(0, some, BLOCK):
                part = np.ascontiguousarray(columns[:, c : c + BLOCK])
                for t in range(core * BLOCK, T, cores * BLOCK):
                    block = probs[t : t + BLOCK]
                    then(np.matmul(block, part, out=out[: len(block)]))

        # One thread per core: OpenBLAS's own threads take longer to agree than such a block takes to multiply.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
            list(pool.map(share, range(cores)))

    matmul = bare_matmul()
    filled = np.pad(probs, ((0, -T % (2 * BLOCK * jax.device_count())), (0, 0))).reshape(-1, BLOCK, K)
    blocks = np.ascontiguousarray(np.moveaxis(columns.reshape(K, -1, BLOCK), 1, 0))
    on_device = jax.device_put(filled), jax.device_put(blocks)
    took = interleaved(
        {
            "ours": lambda: losses(weights),
            "XLA": lambda: matmul(*on_device).block_until_ready(),
            "NumPy": lambda: numpy_blocks(lambda x: None),
            "log": lambda: numpy_blocks(lambda x: np.log(x).sum(axis=0)),
        },
        5,
    )
    ours, scale = took["ours"], C / some
    floor = min(took["XLA"], took["NumPy"])
    note = f"({some:,} candidates, scaled)"
    return [
        Row(f"mixture_nll, {SIZE}, seconds", f"{ours:.2f}"),
        Row(f"NumPy log(P @ W) in blocks of 512 × 512, over it {note}", f"{took['log'] * scale / ours:.1f}×", "4×"),
        Row(
            f"it, over the bare matmul of such blocks, the faster of XLA and NumPy {note}",
            f"{ours / (floor * scale):.2f}",
            "at most 1.25",
        ),
        Row("   the same over XLA's matmul", f"{ours / (took['XLA'] * scale):.2f}"),
        Row("   the same over NumPy's matmul", f"{ours / (took['NumPy'] * scale):.2f}"),
    ]


def bare_matmul() -> Callable[..., jax.Array]:
    """[B, N, K] and [M, K, C] to [devices, C]: every product is formed, and a row of each is read."""

    def local(blocks: jax.Array, weights: jax.Array) -> jax.Array:
        def candidates(part: jax.Array) -> jax.Array:
            def add(carry: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
                product = jnp.matmul(block, part, precision=jax.lax.Precision.HIGHEST)
                return carry + jax.lax.optimization_barrier(product)[0], None

            return jax.lax.scan(add, jnp.zeros(part.shape[1], jnp.float32), blocks)[0]

        return jnp.sum(jax.lax.map(candidates, weights), axis=0)[None]

    mesh = jax.make_mesh((jax.device_count(),), ("tokens",), (jax.sharding.AxisType.Auto,))
    split = P("tokens")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(split, P()), out_specs=split, check_vma=False))


def against_loops() -> list[Row]:
    log_probs, domains = text(T, K)
    weights = mixtures(C, K)
    probs, single = np.exp(log_probs), weights.astype(np.float32)
    losses = MixtureLosses(log_probs, domains)
    vmapped = jax.jit(jax.vmap(lambda lp, w: jax.nn.logsumexp(lp + jnp.log(w), axis=1).sum(), in_axes=(None, 0)))
    one, few, many = 1, 4, 20
    on_device = jax.device_put(log_probs), jax.device_put(single[:few])
    took = interleaved(
        {
            "ours": lambda: losses(weights),
            "NumPy": lambda: [np.log(probs @ w).sum() for w in single[:many]],
            "vmap": lambda: vmapped(*on_device).block_until_ready(),
            "SciPy": lambda: [logsumexp(log_probs + np.log(w), axis=1).sum() for w in weights[:one]],
        },
        3,
    )

    def row(name: str, measure: str, count: int, wanted: str) -> Row:
        times = f"{took[name] * C / count / took['ours']:,.0f}×"
        return Row(f"{measure}, over mixture_nll ({count} candidates, scaled)", times, wanted)

    return [
        row("NumPy", "NumPy, a candidate at a time", many, "20×"),
        row("vmap", "vmap of jax.nn.logsumexp", few, "100×"),
        row("SciPy", "SciPy logsumexp, a candidate at a time", one, "1000×"),
    ]


def error() -> list[Row]:
    rng = np.random.default_rng(2)
    tokens, count = 20_000, 40
    gaps = rng.uniform(0, 1, (tokens, K)) * rng.choice([1.0, 9.0, 30.0, 60.0, 100.0], (tokens, 1))
    log_probs = -np.minimum(gaps + rng.exponential(0.1, (tokens, 1)), 100).astype(np.float32)
    domains = np.arange(tokens) * J // tokens
    faces = rng.dirichlet(np.ones(K), count) * (rng.random((count, K)) < 0.5)
    faces = faces[faces.sum(axis=1) > 0]
    points = [np.eye(K), faces / faces.sum(axis=1, keepdims=True)]
    points += [rng.dirichlet(np.full(K, a), count) for a in (0.02, 0.2, 1.0)]
    weights = np.concatenate(points)
    found = MixtureLosses(log_probs, domains)(weights)
    with np.errstate(divide="ignore"):
        exact = np.stack([-logsumexp(np.float64(log_probs) + np.log(w), axis=1) for w in weights])
    exact = np.stack([exact[:, domains == j].mean(axis=1) for j in range(J)], axis=1)
    worst = np.abs(found - exact).max()
    measure = f"largest error over {len(weights)} random points, faces, corners, log-probs to −100, nats per token"
    return [Row(measure, f"{worst:.1e}", "at most 1e-6")]


def growth() -> list[Row]:
    sizes = {"base": (1, 1, 1), "C": (1, 10, 1), "T": (10, 1, 1), "K": (1, 1, 10)}
    base = (100_000, 2048, K)
    runs = {}
    for name, factors in sizes.items():
        tokens, count, experts = (x * f for x, f in zip(base, factors, strict=True))
        losses, weights = MixtureLosses(*text(tokens, experts)), mixtures(count, experts)
        runs[name] = lambda losses=losses, weights=weights: losses(weights)
    took = interleaved(runs, 5)
    at = "T = {:,}, C = {:,}, K = {}".format(*base)
    return [
        Row(f"growth of the cost with ten times {name} (from {at})", f"{took[name] / took['base']:.1f}×", "at most 10×")
        for name in ("C", "T", "K")
    ]


def more() -> list[Row]:
    """Preparation, derivatives, τ: in units of a call."""
    log_probs, domains = text(T, K)
    sequences = np.arange(T) // 500 * J + domains
    weights = mixtures(1024, K)
    losses = MixtureLosses(log_probs, domains, sequences)
    took = interleaved(
        {
            "prepare": lambda: MixtureLosses(log_probs, domains),
            "call": lambda: losses(weights),
            "slopes": lambda: losses.value_and_grad(weights),
            "half": lambda: losses(weights, 0.5),
            "one": lambda: losses(weights, 1.0),
        },
        3,
    )
    call = took["call"]
    return [
        Row(f"preparation, over a call for {C:,} candidates", f"{took['prepare'] * 1024 / C / call:.2f}"),
        Row("losses and all derivatives [C, J, K], over losses", f"{took['slopes'] / call:.1f}×"),
        Row("τ = 0.5, sequences of 500, over τ = 0", f"{took['half'] / call:.1f}×"),
        Row("τ = 1, over τ = 0", f"{took['one'] / call:.3f}×"),
    ]


PARTS = {
    "mixture-blocks": against_blocks,
    "mixture-loops": against_loops,
    "mixture-error": error,
    "mixture-growth": growth,
    "mixture-more": more,
}
