"""Work on shards by several processes, with the speed of all of them together."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mde.errors import UserError

_CONTEXT = multiprocessing.get_context("spawn")  # a fork would inherit the threads of JAX and TensorFlow
# Bytes and tokens of this pass so far, over all processes; and whether they shall stop.
_counters: tuple[Any, ...] | None = None


class _StoppedError(Exception):
    """Another shard has failed."""


def _set_up(counters: tuple[Any, ...] | None) -> None:
    global _counters
    _counters = counters
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core is parallel enough


def _start(counters: tuple[Any, ...]) -> None:
    """What a process of the pool does first. It ends with its parent, and leaves interrupts to it."""
    _set_up(counters)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def advance(size: int, tokens: int = 0) -> None:
    """Counts bytes and tokens that were worked on; ends this job if another one has failed."""
    if _counters is not None:
        for counter, amount in zip(_counters, (size, tokens), strict=False):
            with counter.get_lock():
                counter.value += amount
        if _counters[2].value:
            raise _StoppedError


def over(
    work: Callable[..., dict[str, Any]], jobs: Sequence[tuple[Any, ...]], processes: int, label: str
) -> list[dict[str, Any]]:
    """`work(*job)` of every job, in their order, by several processes, with the speed in MB and tokens per second.

    Jobs of registered domains are done in this process, where TensorFlow is already.

    Raises:
        UserError: of any job; or a process was killed, which is what happens where memory does not suffice.
    """
    counters = tuple(_CONTEXT.Value("q", 0) for _ in range(3))
    results: dict[int, dict[str, Any]] = {}
    there = [i for i, job in enumerate(jobs) if processes > 1 and not job[0].corpus.registered]
    _set_up(counters)
    try:
        with _Bar(label, len(jobs), counters) as bar:
            for i in sorted(set(range(len(jobs))) - set(there)):
                results[i] = work(*jobs[i])
                bar.refresh(len(results))
            if there:
                _in_pool(work, {i: jobs[i] for i in there}, min(processes, len(there)), results, bar)
    finally:
        _set_up(None)
    return [results[i] for i in range(len(jobs))]


def _in_pool(
    work: Callable[..., dict[str, Any]],
    jobs: Mapping[int, tuple[Any, ...]],
    processes: int,
    results: dict[int, dict[str, Any]],
    bar: "_Bar",
) -> None:
    pool = concurrent.futures.ProcessPoolExecutor(processes, _CONTEXT, initializer=_start, initargs=(bar.counters,))
    try:
        waiting = {pool.submit(work, *job): i for i, job in jobs.items()}
        while waiting:
            ready, _ = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_COMPLETED)
            for future in ready:
                results[waiting.pop(future)] = future.result()
            bar.refresh(len(results))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a process was killed, which happens where memory does not suffice; "
            "bind a smaller prepare.processes; the same command goes on from here"
        ) from error
    finally:
        bar.counters[2].value = 1  # nothing is left to do, or it failed
        pool.shutdown(cancel_futures=True)


class _Bar:
    """Shards done, and what the counters say of the speed."""

    def __init__(self, label: str, total: int, counters: tuple[Any, ...]):
        self._bar = tqdm(total=total, desc=label, unit="shard", disable=None)
        self.counters, self._started = counters, time.perf_counter()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def refresh(self, shards_done: int) -> None:
        seconds = time.perf_counter() - self._started
        size, tokens, _ = (counter.value for counter in self.counters)
        speed = {"MB/s": f"{size / 1e6 / seconds:.1f}", **({"tokens/s": f"{tokens / seconds:,.0f}"} if tokens else {})}
        self._bar.set_postfix(speed, refresh=False)
        self._bar.update(shards_done - self._bar.n)
