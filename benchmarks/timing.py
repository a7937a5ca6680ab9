"""Interleaved timings: every contender once a round, so that a machine's drift hits all of them alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, what was found, and the bar it must reach if there is one."""

    measure: str
    found: str
    wanted: str = ""


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender over the rounds, after one call that is not counted."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(rows: Sequence[Row]) -> str:
    """The lines of the table, under their heads."""
    width = max((len(row.measure) for row in rows), default=0)
    lines = [f"{'measure':{width}}  {'found':>12}  at least / at most"]
    return "\n".join(lines + [f"{row.measure:{width}}  {row.found:>12}  {row.wanted}" for row in rows])
