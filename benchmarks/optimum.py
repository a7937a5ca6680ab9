"""The exact optimum and compressed evaluation, beside what one would use otherwise: python -m benchmarks.optimum

Text is either drawn from made-up experts or, with --study, the scored text of a study drawn with replacement. MixMin's
steps (arXiv 2502.10510: exponentiated gradient, rate 1, from the uniform mixture, log-sum-exp of every row) are jitted
here, one evaluation a step; its own script runs them op by op and evaluates twice.
"""

import argparse
import os
import time

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved
from mde.evaluation import MixtureLosses, bootstrap, compress, optimum
from mde.evaluation.compression import spread

EXPERTS = DOMAINS = 7
STEPS = 100


def made_up(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Every expert has a distribution of its own for each of 2,000 contexts, around one that all share."""
    rng = np.random.default_rng(0)
    contexts, vocabulary = 2000, 50
    shared = rng.dirichlet(np.full(vocabulary, 0.3), contexts)
    experts = rng.gamma(20 * shared[:, None] + 0.05, size=(contexts, EXPERTS, vocabulary)) + 1e-3
    experts /= experts.sum(axis=2, keepdims=True)
    cumulative = np.cumsum(experts, axis=2)
    segment_ids = rng.integers(0, DOMAINS, tokens)
    log_probs = np.empty((tokens, EXPERTS), np.float32)
    for start in range(0, tokens, 100_000):
        speakers = segment_ids[start : start + 100_000]
        context = rng.integers(0, contexts, len(speakers))
        words = (rng.random((len(speakers), 1)) > cumulative[context, speakers]).sum(axis=1).clip(max=vocabulary - 1)
        log_probs[start : start + 100_000] = np.log(experts[context, :, words])
    return log_probs, segment_ids


def of_study(directory: str, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    from etils import epath

    from mde.stages.score import evaluation_data, log_probs_of
    from mde.study import Study

    study = Study(epath.Path(directory))
    scored = study.read_json("scoring.json", "score")
    data = evaluation_data(study, scored)
    # A study with fewer experts than seven lends the models of some mixtures.
    runs = [f"expert-{name}" for name in study.domains.training] + list(study.mixtures().index[-EXPERTS:])
    log_probs = log_probs_of(study, scored, runs[:EXPERTS])[:]
    rows = np.random.default_rng(0).integers(len(log_probs), size=tokens)
    return log_probs[rows], data.segment_ids[rows]


def best_mixture(log_probs: np.ndarray, segment_ids: np.ndarray, rounds: int) -> None:
    objective = np.full((1, DOMAINS), 1 / DOMAINS)
    row_weights = jnp.asarray((1 / DOMAINS / np.bincount(segment_ids))[segment_ids], jnp.float32)
    on_device = jnp.asarray(log_probs)

    @jax.jit
    def step(weights: jax.Array) -> jax.Array:
        loss = lambda w: -jnp.sum(row_weights * jax.scipy.special.logsumexp(on_device, axis=1, b=w))  # noqa: E731
        moved = weights * jnp.exp(-jax.grad(loss)(weights))
        return moved / moved.sum()

    def exponentiated(steps: int) -> np.ndarray:
        weights = jnp.full(EXPERTS, 1 / EXPERTS)
        for _ in range(steps):
            weights = step(weights)
        return np.asarray(weights, np.float64)

    few = STEPS // 5
    seconds = interleaved(
        {"ours": lambda: optimum(log_probs, segment_ids, objective), "theirs": lambda: exponentiated(few)}, rounds
    )
    theirs_seconds = seconds["theirs"] * STEPS / few
    found = optimum(log_probs, segment_ids, objective)
    theirs = exponentiated(STEPS)
    # The value of their mixture, exact: the optimum over the one mixture that is allowed.
    value = optimum(log_probs, segment_ids, objective, lower=theirs / theirs.sum() * (1 - 1e-13)).objective[0]
    print(f"best mixture of {EXPERTS} experts on {len(log_probs):,} tokens, one objective")
    print(f"  optimum            {seconds['ours']:8.3f} s   gap {found.gap[0]:.1e}, {found.passes} passes")
    print(f"  {STEPS} steps of EG    {theirs_seconds:8.3f} s   {theirs_seconds / seconds['ours']:.1f} x")
    print(f"  loss of EG above ours: {value - found.objective[0]:.2e} nats per token")
    documents = np.unique(np.arange(len(log_probs)) // 1000 * DOMAINS + segment_ids, return_inverse=True)[1]
    counts = bootstrap(documents, segment_ids, 200, 0)
    started = time.perf_counter()
    many = optimum(log_probs, segment_ids, np.repeat(objective, 200, 0), unit_ids=documents, unit_counts=counts)
    print(f"  200 resamples      {time.perf_counter() - started:8.3f} s   largest gap {many.gap.max():.1e}", flush=True)


def compressed(log_probs: np.ndarray, segment_ids: np.ndarray, sizes: list[int], rounds: int) -> None:
    exact = MixtureLosses(log_probs, segment_ids)
    rng = np.random.default_rng(1)
    uniform, spread_out = rng.dirichlet(np.ones(EXPERTS), 1000), spread(1000, EXPERTS, rng)
    expected = exact(np.concatenate([uniform, spread_out]))
    few = rng.dirichlet(np.ones(EXPERTS), 1 << 18).astype(np.float32)
    print(f"10⁶ candidates on {len(log_probs):,} tokens; error in nats per token, worst of the domains")
    print("  pseudo-tokens   built s   10⁶ in s   uniform: median     99%     max   spread: 99%   stated")
    for size in sizes:
        started = time.perf_counter()
        found = compress(log_probs, segment_ids, size)
        built = time.perf_counter() - started
        seconds = interleaved({"ours": lambda f=found: f(few)}, rounds)["ours"] * 1e6 / len(few)
        errors = np.abs(found(np.concatenate([uniform, spread_out])).losses - expected).max(axis=1)
        inside, outside = errors[:1000], errors[1000:]
        print(
            f"  {size:13d} {built:9.1f} {seconds:10.2f} {np.median(inside):17.1e} {np.quantile(inside, 0.99):7.1e} "
            f"{inside.max():7.1e} {np.quantile(outside, 0.99):13.1e} {found.error.max():8.1e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--compressed_tokens", type=int, default=1_000_000)
    parser.add_argument("--pseudo_tokens", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--study", help="directory of a finished study, for its scored text")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    text = (lambda tokens: of_study(args.study, tokens)) if args.study else made_up
    if args.tokens:
        best_mixture(*text(args.tokens), args.rounds)
    if args.pseudo_tokens:
        compressed(*text(args.compressed_tokens), args.pseudo_tokens, args.rounds)


if __name__ == "__main__":
    main()
