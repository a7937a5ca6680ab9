"""`mixture_nll` beside what one would write instead: python -m benchmarks.evaluators

The slow contenders are given fewer candidates; times are scaled to the same number. All work in float32 but SciPy.
"""

import argparse
import os

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from benchmarks.timing import interleaved
from mde.evaluation import MixtureLosses

BLOCK = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--candidates", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    T, C, K = args.tokens, args.candidates, args.experts

    rng = np.random.default_rng(0)
    log_probs = -rng.gamma(1.0, 2.0, (T, K)).astype(np.float32)
    domains = np.repeat(np.arange(8), -(-T // 8))[:T]
    weights = rng.dirichlet(np.ones(K), C).astype(np.float32)
    probs = np.exp(log_probs)
    ours = MixtureLosses(log_probs, domains)
    vmapped = jax.jit(
        lambda lp, w: jax.lax.map(lambda one: jax.nn.logsumexp(lp + jnp.log(one), axis=1).sum(), w, batch_size=8)
    )

    def blocked() -> float:
        return sum(np.log(probs[i : i + BLOCK] @ weights.T).sum(0) for i in range(0, T, BLOCK))[0]

    def bare_matmul() -> None:
        out = np.empty((BLOCK, C), np.float32)
        for i in range(0, T, BLOCK):
            block = probs[i : i + BLOCK]
            np.matmul(block, weights.T, out=out[: len(block)])

    few = max(1, C // 256)
    contenders = {
        "mixture_nll": (C, lambda: ours(weights)),
        "bare matmul of the same blocks, NumPy": (C, bare_matmul),
        "NumPy log(P @ W), same blocks": (C, blocked),
        "NumPy, a candidate at a time": (few, lambda: [np.log(probs @ w).sum() for w in weights[:few]]),
        "jax.nn.logsumexp, vmapped": (8 * few, lambda: vmapped(log_probs, weights[: 8 * few]).block_until_ready()),
        "SciPy logsumexp, a candidate at a time": (
            few,
            lambda: [logsumexp(log_probs + np.log(w), axis=1).sum() for w in weights[:few]],
        ),
    }
    seconds = interleaved({name: run for name, (_, run) in contenders.items()}, args.rounds)
    scaled = {name: seconds[name] * C / n for name, (n, _) in contenders.items()}
    print(f"T = {T:,} tokens, C = {C:,} candidates, K = {K} experts; medians of {args.rounds} interleaved rounds")
    for name, value in scaled.items():
        print(f"{name:42s} {value:10.3f} s {value / scaled['mixture_nll']:8.1f} x")


if __name__ == "__main__":
    main()
