"""The evaluators beside what one would write instead, in one table: python -m benchmarks.evaluators [part ...]

Without names all parts are run, each a minute or two on two cores. Contenders take turns, and medians are compared.
"""

import argparse
import importlib
import os

os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}")

from benchmarks.timing import Row, table
from mde.errors import unknown

MODULES = (
    "benchmarks.floors",
    "benchmarks.mixture",
    "benchmarks.optimum",
    "benchmarks.merged",
)  # each has PARTS: functions by name that return rows of the table


def main() -> None:
    parts = {name: part for module in MODULES for name, part in importlib.import_module(module).PARTS.items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=", ".join(parts))
    names = parser.parse_args().part or list(parts)
    for name in names:
        if name not in parts:
            raise unknown("part", name, parts)
    rows: list[Row] = [row for name in names for row in parts[name]()]
    print(table(rows))


if __name__ == "__main__":
    main()
