"""Training beside PyTorch's, a pool beside processes, memory and input: python -m benchmarks.training [part ...]

Without names all parts are run, in about half an hour on two cores; all compute in float32 on the CPU.

`steps-SIZE`: tokens per second of whole train steps (loss, gradient, clipping, AdamW), as many as a call of `mde train`
takes. Ours is one model split over all cores (data) and one model per core (pool, as `mde train` does); the peer is
`transformers`' Llama of the same shape on all cores, eager and compiled. Ours also masks attention between documents;
the peer does not. The share of the peak counts the FLOPs of `DecoderConfig.train_flops` against products of large
matrices in the same rounds.
`pool`: 32 runs in one process, and some of them in a process each, whose time is scaled to 32.
`memory-SIZE`: the most that a training process holds, less what it held before, over what `mde plan` foresees.
`input-SIZE`: the share of the steps' time that the trainer stands waiting for a batch to be read.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while the others run

import jax
import numpy as np
from etils import epath

from benchmarks import peers
from benchmarks.merged import matmul
from benchmarks.timing import Row, interleaved, table
from mde.data import tokens as token_stores
from mde.errors import unknown
from mde.models import sharding
from mde.models.config import DecoderConfig, preset
from mde.training import placement, planning, pool
from mde.training.placement import MeshShape
from mde.training.settings import TrainSettings
from mde.training.step import initial

CORES = len(os.sched_getaffinity(0))
SIZES = {  # architecture, sequences per step
    "demo": (preset("demo", 2048), 16),
    "1M": (DecoderConfig(2048, 128, 4, 4, 4, 384), 16),
    "5M": (DecoderConfig(2048, 256, 5, 4, 4, 704), 16),
    "30M": (DecoderConfig(2048, 512, 8, 8, 8, 1408), 8),
    "70m": (preset("70m", 2048), 4),
}
LENGTH, ROUNDS = 128, 5
RUNS, PROCESSES = 32, 8  # how many of the runs are timed in a process of their own
POOL_MODEL, POOL_SETTINGS = preset("tiny", 2048), TrainSettings(60, 16, 64, 3e-3)


def steps(size: str) -> list[Row]:
    config, sequences = SIZES[size]
    drawn = np.random.default_rng(0).integers(1, config.vocab_size, (pool.STEPS_PER_CALL, sequences, LENGTH + 1))
    batch = drawn.astype(np.int32)
    peak, peak_flops = matmul()
    contenders: dict[str, Callable[[], object]] = {
        "peak": peak,
        f"ours, data={CORES}": ours(config, MeshShape(data=CORES), batch),
        f"ours, pool={CORES}": ours(config, MeshShape(CORES), batch),
    }
    with contextlib.suppress(ImportError):
        contenders["PyTorch"] = theirs(config, batch, compiled=False)
        contenders["PyTorch, compiled"] = theirs(config, batch, compiled=True)
    seconds = interleaved(contenders, ROUNDS)
    reach = peak_flops / seconds.pop("peak")
    tokens = len(batch) * sequences * LENGTH
    speed = {name: tokens * (CORES if "pool" in name else 1) / taken for name, taken in seconds.items()}
    name = f"{size}, {config.matmul_parameters / 1e6:.2f}M matmul parameters, {sequences} × {LENGTH} tokens per step"
    rows = [Row(f"{name}: matmul peak, GFLOP/s", f"{reach / 1e9:.0f}")]
    for contender, each in speed.items():
        rows.append(Row(f"   {contender}, tokens per second", f"{each:,.0f}"))
        rows.append(Row("      share of the peak", f"{each * config.train_flops(LENGTH) / reach:.0%}"))
    if "PyTorch" not in speed:
        return [*rows, Row("   PyTorch is not measured: pip install torch transformers", "")]
    best = max(each for contender, each in speed.items() if "PyTorch" in contender)
    for contender, each in speed.items():
        if "PyTorch" not in contender:
            rows.append(Row(f"   {contender}, over the better of the two", f"{each / best:.2f}×", "1×"))
    return rows


def ours(config: DecoderConfig, shape: MeshShape, batch: np.ndarray) -> Callable[[], object]:
    settings = TrainSettings(1000, batch.shape[1], LENGTH, 1e-3)
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


def pooled() -> list[Row]:
    with stores() as directory:
        together = timed(directory, [(0, RUNS)], CORES)
        one = sum(timed(directory, [(RUNS + i, 1)], CORES) for i in range(PROCESSES))
        first = RUNS + PROCESSES
        several = sum(
            timed(directory, [(first + j, 1) for j in range(i, min(i + CORES, PROCESSES))], 1)
            for i in range(0, PROCESSES, CORES)
        )
    shape = f"{POOL_SETTINGS.steps} steps of {POOL_SETTINGS.batch_size} × {POOL_SETTINGS.seq_len} tokens"
    rows = [Row(f"{RUNS} runs of `tiny`, {shape}, one pool, seconds", f"{together:.1f}")]
    for name, taken in {"one after another": one, f"{CORES} at a time": several}.items():
        scaled = taken * RUNS / PROCESSES
        rows.append(Row(f"   a process each, {name} ({PROCESSES} of them, scaled), seconds", f"{scaled:.0f}"))
        rows.append(Row("      over the pool", f"{scaled / together:.1f}×", "3×"))
    return rows


def memory(size: str) -> list[Row]:
    config, sequences = SIZES[size]
    settings = TrainSettings(20, sequences, LENGTH, 1e-3)
    plan = planning.measure(config, settings, MeshShape())
    with stores() as directory:
        before, most = json.loads(child(directory, ["memory", size], 1).communicate()[0].splitlines()[-1])
    taken = most - before
    name = f"memory of {size}, one device, {sequences} × {LENGTH} tokens per step"
    return [
        Row(f"{name}: `mde plan`, MB", f"{plan.total / 1e6:,.0f}"),
        Row("   the process at its most, less what it held before, MB", f"{taken / 1e6:,.0f}"),
        Row("      over the plan", f"{taken / plan.total:.2f}×", "at most 1.3×"),
    ]


def waiting(size: str) -> list[Row]:
    calls = 20 if size == "demo" else 3
    with stores() as directory:
        read, total = json.loads(child(directory, ["input", size, str(calls)], CORES).communicate()[0].splitlines()[-1])
    name = f"input of {size}: share of the steps' time waiting for a batch, {calls - 1} calls of {pool.STEPS_PER_CALL}"
    return [Row(name, f"{read / total:.2%}", "at most 1%")]


@contextlib.contextmanager
def stores() -> Iterator[str]:
    """A directory with the tokens of two domains."""
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(0)
        for name in ("one", "other"):
            documents = [(rng.integers(1, 2048, 400).astype(np.int32), 1000) for _ in range(2500)]
            token_stores.write(epath.Path(directory) / name, documents, name)
        yield directory


def child(directory: str, words: Sequence[str], devices: int) -> subprocess.Popen:
    """A process of this module with so many devices."""
    command = [sys.executable, "-m", "benchmarks.training", "child", directory, *words]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)


def timed(directory: str, groups: Sequence[tuple[int, int]], devices: int) -> float:
    """Seconds until processes that train so many runs from a first one on are all done."""
    started = time.perf_counter()
    begun = [child(directory, ["runs", str(first), str(count)], devices) for first, count in groups]
    if any(process.wait() for process in begun):
        raise RuntimeError("a process failed")
    return time.perf_counter() - started


def as_child(directory: epath.Path, what: str, *words: str) -> None:
    """What a process that the parts start does."""
    if what == "runs":
        first, count = map(int, words)
        train(directory, POOL_MODEL, POOL_SETTINGS, range(first, first + count))
        return
    config, sequences = SIZES[words[0]]
    if what == "memory":
        jax.block_until_ready(jax.numpy.zeros(1))
        before = resident()
        train(directory, config, TrainSettings(20, sequences, LENGTH, 1e-3), range(1))
        print(json.dumps([before, resident()]))
    else:
        print(json.dumps(reading(directory, config, sequences, int(words[1]))))


def resident() -> int:
    """Bytes of memory that this process has held at its most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reading(directory: epath.Path, config: DecoderConfig, sequences: int, calls: int) -> tuple[float, float]:
    """Seconds that batches were waited for, and seconds of all steps, the first call (compilation) left out."""
    waits: dict[str, list[float]] = {}
    batches = pool._batches

    def watched(run: pool.Run, *arguments: Any) -> Iterator[dict[str, np.ndarray]]:
        reader, waits[run.name] = batches(run, *arguments), []
        while True:
            begun = time.perf_counter()
            batch = next(reader)
            waits[run.name].append(time.perf_counter() - begun)
            yield batch

    pool._batches = watched
    count = CORES if config.matmul_parameters < 1e7 else 1
    settings = TrainSettings(calls * pool.STEPS_PER_CALL, sequences, LENGTH, 1e-3)
    train(directory, config, settings, range(count))
    lines = (directory / "runs" / "run-0" / "metrics.jsonl").read_text().splitlines()[pool.STEPS_PER_CALL :]
    tokens = sequences * LENGTH
    total = sum(tokens / json.loads(line)["tokens_per_second"] for line in lines)
    return sum(sum(each[pool.STEPS_PER_CALL :]) for each in waits.values()), total


def train(directory: epath.Path, model: DecoderConfig, settings: TrainSettings, runs: Sequence[int]) -> None:
    domains = {name: token_stores.TokenStore(directory / name) for name in ("one", "other")}
    weights = np.linspace(0, 1, 4 * RUNS)
    wanted = [pool.Run(f"run-{i}", (float(weights[i]), float(1 - weights[i])), i) for i in runs]
    pool.train_pool(wanted, pool.Recipe(model, settings, domains, None, {}), directory / "runs", checkpoint_every=10**6)


PARTS = {
    **{f"steps-{size}": functools.partial(steps, size) for size in SIZES},
    "pool": pooled,
    **{f"memory-{size}": functools.partial(memory, size) for size in ("5M", "30M", "70m")},
    **{f"input-{size}": functools.partial(waiting, size) for size in ("demo", "70m")},
}


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        return as_child(epath.Path(sys.argv[2]), *sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=", ".join(PARTS))
    names = parser.parse_args().part or list(PARTS)
    for name in names:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    print(table([row for name in names for row in PARTS[name]()]))
    return None


if __name__ == "__main__":
    main()
