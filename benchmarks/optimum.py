"""The exact optimum of mixtures of experts, beside what one would use otherwise: python -m benchmarks.optimum

Text is either drawn from made-up experts or, with --study, the scored text of a study drawn with replacement. MixMin's
steps (arXiv 2502.10510: exponentiated gradient, rate 1, from the uniform mixture, log-sum-exp of every row) are taken
in two ways: as its script does (`mixmin_gen.py` of its repository: JAX op by op, on arrays of NumPy handed over anew
in every step, the loss beside its gradient), and jitted on text that stays on all cores, with the gradient alone.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.timing import Row, interleaved, table
from mde.evaluation import bootstrap, optimum

EXPERTS = DOMAINS = 7
STEPS = 100
FEW, FEWER = 20, 4  # of them that are timed; of the script's


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

    from mde.results.scored_text import evaluation_data, log_probs_of
    from mde.study import Study

    study = Study(epath.Path(directory))
    scored = study.read_json("scoring.json", "score")
    data = evaluation_data(study, scored)
    # A study with fewer experts than seven lends the models of some mixtures.
    runs = [f"expert-{name}" for name in study.domains.training] + list(study.mixtures().index[-EXPERTS:])
    log_probs = log_probs_of(study, scored, runs[:EXPERTS])[:]
    rows = np.random.default_rng(0).integers(len(log_probs), size=tokens)
    return log_probs[rows], data.segment_ids[rows]


def best_mixture(log_probs: np.ndarray, segment_ids: np.ndarray, rounds: int) -> list[Row]:
    objective = np.arange(1.0, DOMAINS + 1)[None] / np.arange(1, DOMAINS + 1).sum()
    row_weights = (objective[0] / np.bincount(segment_ids))[segment_ids].astype(np.float32)
    published = as_published(log_probs, row_weights)
    jitted = exponentiated(lambda logs, w: jax.scipy.special.logsumexp(logs, axis=1, b=w), log_probs, 0, row_weights)
    probs = np.ascontiguousarray(np.exp(log_probs.T))
    tuned = exponentiated(lambda probs, w: jnp.log(w @ probs), probs, 1, row_weights)
    seconds = interleaved(
        {
            "ours": lambda: optimum(log_probs, segment_ids, objective),
            "published": lambda: published(FEWER),
            "jitted": lambda: jitted(FEW),
            "tuned": lambda: tuned(FEW),
        },
        rounds,
    )
    found = optimum(log_probs, segment_ids, objective)

    def value(weights: np.ndarray) -> float:
        """Of a mixture, in float64."""
        terms = np.log(np.exp(np.float64(log_probs)) @ (weights / weights.sum()))
        return -terms @ (objective[0] / np.bincount(segment_ids))[segment_ids]

    worse = value(jitted(STEPS)) - value(found.weights[0])
    documents = np.unique(np.arange(len(log_probs)) // 1000 * DOMAINS + segment_ids, return_inverse=True)[1]
    counts = bootstrap(documents, segment_ids, 200, 0)
    started = time.perf_counter()
    many = optimum(log_probs, segment_ids, np.repeat(objective, 200, 0), unit_ids=documents, unit_counts=counts)
    resampled = time.perf_counter() - started
    ours = seconds["ours"]

    def ratio(name: str, timed: int = FEW) -> str:
        return f"{seconds[name] * STEPS / timed / ours:.1f}×"

    steps = f"{STEPS} steps of exponentiated gradient"
    return [
        Row(f"exact optimum, T = {len(log_probs):,}, K = {EXPERTS}, {found.passes} passes, seconds", f"{ours:.3f}"),
        Row("   its gap, nats per token", f"{found.gap[0]:.1e}", "at most 1e-8"),
        Row(f"{steps} as MixMin's script takes them, over it ({FEWER}, scaled)", ratio("published", FEWER), "20×"),
        Row("   jitted, on all cores, the gradient alone, over it", ratio("jitted"), "20×"),
        Row("   the loss they end with, above the optimum's", f"{worse:.1e}", "above 0"),
        Row("   jitted, on probabilities that are given to them, over it", ratio("tuned")),
        Row(f"200 resamples, largest gap {many.gap.max():.0e}, seconds", f"{resampled:.1f}"),
    ]


def as_published(log_probs: np.ndarray, row_weights: np.ndarray) -> Callable[[int], np.ndarray]:
    """The script's steps; its lengths of sequences, by which it divides, have the rows' weights in them here."""
    given, lengths = np.float64(np.ascontiguousarray(log_probs.T)), 1 / (len(row_weights) * np.float64(row_weights))

    def loss(weights: jax.Array) -> jax.Array:
        return -jnp.mean(jnp.divide(jax.scipy.special.logsumexp(a=given.T, axis=1, b=weights), lengths))

    def descend(steps: int) -> np.ndarray:
        weights = jnp.full(EXPERTS, 1 / EXPERTS)
        for _ in range(steps):
            loss(weights)
            factors = jnp.exp(-jax.grad(loss)(weights))
            weights = weights * factors / jnp.dot(weights, factors)
        return np.asarray(weights)

    return descend


def exponentiated(
    log_mixture: Callable[[jax.Array, jax.Array], jax.Array], text: np.ndarray, tokens: int, row_weights: np.ndarray
) -> Callable[[int], np.ndarray]:
    """Descends for so many steps; the tokens, the axis of `text` of that number, are dealt to the devices."""
    mesh = jax.make_mesh((jax.device_count(),), ("tokens",), (AxisType.Auto,))
    whole = len(row_weights) // mesh.size * mesh.size  # a token or two of a million are let go
    by_token = P("tokens") if tokens == 0 else P(None, "tokens"), P("tokens")
    parts = text.take(range(whole), axis=tokens), row_weights[:whole]
    given = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(parts, by_token, strict=True)]

    def local(text: jax.Array, row_weights: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.grad(lambda w: -jnp.sum(row_weights * log_mixture(text, w)))(weights)[None]

    slope = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(*by_token, P()), out_specs=P("tokens"), check_vma=False))

    def descend(steps: int) -> np.ndarray:
        weights = np.full(EXPERTS, 1 / EXPERTS)
        for _ in range(steps):
            weights = weights * np.exp(-np.asarray(slope(*given, weights.astype(np.float32)), np.float64).sum(axis=0))
            weights /= weights.sum()
        return weights

    return descend


PARTS = {
    "optimum": lambda: best_mixture(*made_up(1_000_000), 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--study", help="directory of a finished study, for its scored text")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    text = (lambda tokens: of_study(args.study, tokens)) if args.study else made_up
    print(table(best_mixture(*text(args.tokens), args.rounds)))


if __name__ == "__main__":
    main()
