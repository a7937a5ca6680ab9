"""What the machine gives at most, on all its cores: the evaluators' times are read beside it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.timing import Row, interleaved

CORES = len(os.sched_getaffinity(0))
ROUNDS = 5
LARGE, SMALL, SIZE = 1 << 25, 1 << 15, 1536  # numbers beyond the caches, in the first ones; of a matrix's side
REPEATS = 400  # passes over the small ones


def floors() -> list[Row]:
    rng = np.random.default_rng(0)
    large = [(np.zeros(LARGE, np.float32), np.ones(LARGE, np.float32)) for _ in range(CORES)]
    small = [rng.uniform(0.1, 1, SMALL) for _ in range(CORES)]
    square = [rng.standard_normal((SIZE, SIZE)) for _ in range(CORES)]
    thin = [rng.standard_normal((2, 7, SMALL // 4)) for _ in range(CORES)]
    single = [[x.astype(np.float32) for x in arrays] for arrays in (small, square)]

    def over(arrays: list[np.ndarray], function: Callable[[np.ndarray, np.ndarray], object]) -> Callable[[int], None]:
        def run(core: int) -> None:
            out = np.empty_like(arrays[core])
            for _ in range(REPEATS):
                function(arrays[core], out)

        return run

    work: dict[str, tuple[Callable[[int], object], float, str]] = {  # of a core, how much that is, its unit
        "memory, read and written": (lambda core: np.copyto(*large[core]), 2 * 4 * LARGE / 1e9, "GB/s"),
        "float32 matrix products": (lambda core: single[1][core] @ single[1][core], 2 * SIZE**3 / 1e9, "GFLOP/s"),
        "float64 matrix products": (lambda core: square[core] @ square[core], 2 * SIZE**3 / 1e9, "GFLOP/s"),
        "float64 products of 7 rows and 7 columns": (
            lambda core: [thin[core][0] @ thin[core][1].T for _ in range(REPEATS)],
            REPEATS * 2 * 49 * SMALL / 4 / 1e9,
            "GFLOP/s",
        ),
        "float32 exponentials": (over(single[0], np.exp), REPEATS * SMALL / 1e9, "10⁹/s"),
        "float64 exponentials": (over(small, np.exp), REPEATS * SMALL / 1e9, "10⁹/s"),
        "float32 logarithms": (over(single[0], np.log), REPEATS * SMALL / 1e9, "10⁹/s"),
        "float64 logarithms": (over(small, np.log), REPEATS * SMALL / 1e9, "10⁹/s"),
    }
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(CORES) as threads:
        seconds = interleaved(
            {name: lambda run=run: list(threads.map(run, range(CORES))) for name, (run, *_) in work.items()}, ROUNDS
        )
    return [Row(f"{name}, {unit}", f"{CORES * much / seconds[name]:.1f}") for name, (_, much, unit) in work.items()]


PARTS = {"floors": floors}
