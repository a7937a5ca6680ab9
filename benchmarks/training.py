"""Training beside PyTorch's, and a pool beside processes: python -m benchmarks.training steps | pool

`steps` gives tokens per second of whole train steps (loss, gradient, clipping, AdamW): ours on one device, split over
all (data), and one model a device (pool); `transformers`' Llama of the same shape, eager and compiled, on all cores.
All in float32 on the CPU. Ours also masks attention between documents; the peer does not. `pool` trains 32 small runs
in one process, and some of them in a process each; the time of these is scaled to 32.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")

import functools

import jax
import numpy as np
from etils import epath

from benchmarks import peers
from benchmarks.timing import interleaved
from mde.data import tokens as token_stores
from mde.models import sharding
from mde.models.config import DecoderConfig, preset
from mde.training import placement, pool
from mde.training.placement import MeshShape
from mde.training.step import TrainSettings, initial

SIZES = {  # config, sequences a step, steps a call
    "1M": (DecoderConfig(2048, 128, 4, 4, 4, 384), 16, 4),
    "5M": (DecoderConfig(2048, 256, 5, 4, 4, 704), 16, 1),
    "70M": (preset("70m", 2048), 4, 1),
}
CORES = len(os.sched_getaffinity(0))
LENGTH = 128
RUNS, RUN_STEPS = 32, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["steps", "pool", "run"])
    parser.add_argument("--size", choices=SIZES, default="1M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4, help="how many of the 32 to time, one a core at a time")
    parser.add_argument("--directory", help="of one run; `pool` uses it")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    if args.what == "steps":
        compare_steps(args.size, args.rounds)
    elif args.what == "pool":
        compare_pool(args.processes)
    else:
        train_runs(epath.Path(args.directory), args.first, args.runs)


def compare_steps(size: str, rounds: int) -> None:
    config, sequences, steps = SIZES[size]
    batch = np.random.default_rng(0).integers(1, config.vocab_size, (steps, sequences, LENGTH + 1)).astype(np.int32)
    contenders = {
        "ours, one device": ours(config, MeshShape(), batch),
        f"ours, data={CORES}": ours(config, MeshShape(data=CORES), batch),
        f"ours, pool={CORES}": ours(config, MeshShape(CORES), batch),
        "PyTorch": theirs(config, batch, compiled=False),
        "PyTorch, compiled": theirs(config, batch, compiled=True),
    }
    seconds = interleaved(contenders, rounds)
    count = {name: steps * sequences * LENGTH * (CORES if "pool" in name else 1) for name in contenders}
    print(f"{size}: {config.matmul_parameters / 1e6:.2f}M matmul parameters, {sequences} x {LENGTH} tokens a step")
    for name, value in seconds.items():
        print(f"{name:20s} {count[name] / value:10,.0f} tokens/s")


def ours(config: DecoderConfig, shape: MeshShape, batch: np.ndarray) -> Callable[[], object]:
    sequences = batch.shape[1]
    settings = TrainSettings(1000, sequences, LENGTH, 1e-3, loss_chunks=4)
    mesh = placement.make_mesh(shape)
    begin = functools.partial(initial, config, settings)
    where = sharding.stacked(mesh, jax.eval_shape(begin, 0))
    seeds = placement.stack(mesh, [np.int32(i) for i in range(shape.pool)])
    state = pool.on_pool(mesh, begin, donate=False, out_shardings=where)(seeds)
    batches = {"tokens": batch, "segments": np.ones_like(batch)}
    rates = placement.stack(mesh, [np.full(len(batch), settings.learning_rate, np.float32)] * shape.pool)
    program = pool.advance(mesh, config, settings)

    def run() -> None:
        nonlocal state
        state, metrics = program(state, placement.stack(mesh, [batches] * shape.pool, None, "data"), rates)
        jax.block_until_ready(metrics)

    return run


def theirs(config: DecoderConfig, batch: np.ndarray, compiled: bool) -> Callable[[], object]:
    import torch

    torch.set_num_threads(CORES)
    model = peers.llama(config).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def run() -> None:
        for step in batch:
            tokens = torch.tensor(step, dtype=torch.long)
            logits = forward(tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def compare_pool(processes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(0)
        for name in ("one", "other"):
            documents = [(rng.integers(1, 2048, 400).astype(np.int32), 1000) for _ in range(500)]
            token_stores.write(epath.Path(directory) / name, documents, name)
        together = timed([(0, RUNS)], directory)
        apart = 0.0
        for first in range(0, processes, CORES):
            apart += timed([(RUNS + i, 1) for i in range(first, min(first + CORES, processes))], directory)
    scaled = apart * RUNS / processes
    print(f"{RUNS} runs of {RUN_STEPS} steps: one pool {together:.0f} s")
    print(f"a process each, {CORES} at a time: {scaled:.0f} s (from {processes} of them), {scaled / together:.1f}x")


def timed(groups: list[tuple[int, int]], directory: str) -> float:
    """Seconds until processes that train so many runs from a first one on are all done."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.training", "run", f"--directory={directory}"]
    begun = [
        subprocess.Popen([*command, f"--first={first}", f"--runs={runs}"], stderr=subprocess.DEVNULL)
        for first, runs in groups
    ]
    if any(process.wait() for process in begun):
        raise RuntimeError("a process failed")
    return time.perf_counter() - started


def train_runs(directory: epath.Path, first: int, runs: int) -> None:
    stores = {name: token_stores.TokenStore(directory / name) for name in ("one", "other")}
    settings = TrainSettings(RUN_STEPS, 16, LENGTH, 1e-3)
    recipe = pool.Recipe(preset("demo", 2048), settings, stores, None, {})
    mixtures = np.linspace(0, 1, 2 * RUNS)
    wanted = [pool.Run(f"run-{i}", (float(mixtures[i]), float(1 - mixtures[i])), i) for i in range(first, first + runs)]
    pool.train_pool(wanted, recipe, directory / "runs", checkpoint_every=1000)


if __name__ == "__main__":
    main()
