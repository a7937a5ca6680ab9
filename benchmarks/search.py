"""The ways to search beside each other: python -m benchmarks.search

Losses of 7 and 17 domains whose optimum is known by a linear program or with a bound: linear, the worst of five linear
ones, convex, and a convex one under bounds, a group and a cap on divergence. Shown are nats per token above the
optimum, mixtures evaluated, and seconds (medians of interleaved rounds, after one call that compiles).
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.timing import interleaved
from mde.optimization import losses, search
from mde.optimization.constraints import Bounds, Group
from mde.optimization.region import Region
from mde.optimization.search import Optimum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", type=int, nargs="+", default=[7, 17])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for k in args.domains:
        for name, (loss, region) in problems(k).items():
            contenders = ways(loss, region)
            found = {way: run() for way, run in contenders.items()}
            seconds = interleaved(contenders, args.rounds)
            least = min(one.loss - (one.gap or 0.0) for one in found.values() if one.gap is not None)
            rows = [[one.loss - least, one.gap, one.evaluations, seconds[way]] for way, one in found.items()]
            table = pd.DataFrame(rows, list(found), ["above the bound", "its own gap", "evaluations", "seconds"])
            print(f"\n{k} domains, {name}\n{table.to_string(float_format=lambda x: f'{x:.3g}')}", flush=True)


def problems(k: int) -> dict[str, tuple[losses.Differentiable, Region]]:
    rng = np.random.default_rng(k)
    names = tuple(f"d{i}" for i in range(k))
    root, slope = rng.normal(size=(k, k)) / np.sqrt(k), rng.normal(size=k)
    curvature = root @ root.T + 0.05 * np.eye(k)
    convex = losses.Smooth(lambda x: x @ curvature @ x / 2 + slope @ x, convex=True)
    logs = losses.Formula(3.0, np.zeros(k), log=-rng.dirichlet(np.ones(k)))
    bounds = {"min": {"d0": 0.05}, "max": {"d1": 0.2}, "groups": {"g": Group(names[: k // 2], 0.3, 0.5)}}
    return {
        "linear": (losses.Formula(0.0, slope), Region.simplex(k)),
        "worst of five linear": (losses.Formula(0.0, rng.normal(size=(5, k))), Region.simplex(k)),
        "sum of logarithms": (logs, Region.simplex(k)),
        "convex quadratic": (convex, Region.simplex(k)),
        "convex quadratic, bounds and a group": (convex, Bounds(names, **bounds).region),
        "convex quadratic, KL at most 0.2": (
            convex,
            Bounds(names, prior=dict.fromkeys(names, 1 / k), max_kl=0.2).region,
        ),
    }


def ways(loss: losses.Differentiable, region: Region) -> dict[str, Callable[[], Optimum]]:
    def by(method: str, **settings: int) -> Callable[[], Optimum]:
        return lambda: search.minimize(loss, region, 0, method, **settings)

    return {
        "auto": by("auto"),
        "refinement": by("refinement"),
        "simulation": by("simulation"),
        "simulation of 100,000": by("simulation", n_candidates=100_000, top=128),
    }


if __name__ == "__main__":
    main()
