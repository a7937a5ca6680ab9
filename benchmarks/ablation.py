"""All subsets of 12 units scored in one call, beside a loop in PyTorch: python -m benchmarks.ablation

A model of 1M parameters and 10,000 tokens. `MergedLosses` gets every subset at once, around the seed model. The
contender averages state dictionaries, loads and evaluates one subset after another in `transformers`, if that is
installed; it is given fewer subsets, and its time is scaled. Processor seconds are of all threads, so they hold on a
machine that is busy with other things. Memory is what the process has taken at most.
"""

import argparse
import resource
import time
from collections.abc import Callable

from benchmarks import merged  # first: it sets the devices and PyTorch's threads

import jax  # isort: skip
import numpy as np  # isort: skip

from mde.ablation import subsets
from mde.evaluation.merged import MergedLosses
from mde.models import decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--subsets", type=int, help="how many to score, spread over all; all by default")
    parser.add_argument("--few", type=int, default=8, help="subsets of the contender")
    parser.add_argument("--tokens", type=int, default=10_752)
    args = parser.parse_args()
    config, seq_len = merged.CONFIGS["1M"]
    experts = [jax.tree.map(np.asarray, decoder.init(config, k + 1)) for k in range(args.units)]
    base = jax.tree.map(np.asarray, decoder.init(config, 0))
    data = merged.text(np.random.default_rng(0), config, seq_len, args.tokens)
    every = subsets.averages(subsets.every(args.units))
    rows = every[np.linspace(0, len(every) - 1, args.subsets or len(every)).astype(int)]
    few = every[np.linspace(1, len(every) - 1, args.few).astype(int)]
    losses = MergedLosses(config, experts, data, base=base)
    found = losses(few)  # compiles, too
    before = _memory()
    print(f"{args.units} units of {merged.parameters(config):,} parameters, {int(data.mask.sum()):,} tokens")
    print(f"{'':44s} {'seconds':>9s} {'processor':>10s} {'a subset':>9s}")
    ours = _row(f"merged_nll, {len(rows):,} subsets in one call", lambda: losses(rows), len(rows), len(rows))
    print(f"memory: {before:.2f} GB at most before that call, {_memory():.2f} GB after it")
    in_torch = merged.in_transformers(config, experts, data)
    if in_torch is None:
        print("PyTorch is not measured: pip install torch transformers")
        return
    apart = np.abs(found - in_torch(few)).max()
    name = f"PyTorch, a subset at a time ({len(few)} measured)"
    theirs = _row(name, lambda: in_torch(few), len(few), len(rows))
    print(f"ratio: {theirs[0] / ours[0]:.2f} in seconds, {theirs[1] / ours[1]:.2f} in processor seconds")
    print(f"the two differ by {apart:.1e} nats per token at most")


def _row(name: str, run: Callable[[], object], done: int, wanted: int) -> tuple[float, float]:
    """Seconds and processor seconds of `wanted` subsets, from a call that does `done` of them."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    scale = wanted / done
    wall, processor = (time.perf_counter() - wall) * scale, (time.process_time() - processor) * scale
    print(f"{name:44s} {wall:9.1f} {processor:10.1f} {processor / wanted:9.3f}", flush=True)
    return wall, processor


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
