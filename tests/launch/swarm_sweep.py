"""Sweeps that are cheap enough to run by the dozen: fits of a swarm in two CSV files."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mde.optimization import simplex

ROOT = Path(__file__).parents[2]


def write_sweep(folder: Path, body: str, runs: int = 24) -> Path:
    """Writes a swarm and a sweep file over it; `body` is what it binds beside its base."""
    names = pd.Index([f"r{i}" for i in range(runs)], name="run")
    mixtures = pd.DataFrame(simplex.space_filling(runs, 3, seed=1), names, ["web", "code", "books"])
    slopes = np.array([[-1.0, 0.2], [0.1, -2.0], [-0.3, -0.3]])
    mixtures.to_csv(folder / "m.csv")
    pd.DataFrame(3 + np.sqrt(mixtures.to_numpy()) @ slopes, names, ["news", "code"]).to_csv(folder / "l.csv")
    base = [
        f"fit.mixtures = {str(folder / 'm.csv')!r}",
        f"fit.losses = {str(folder / 'l.csv')!r}",
        "fit.regressors = ['ridge']",
        "fit.repeats = 3",
        "sweep.first = 'fit'",
    ]
    file = folder / "sweep.gin"
    file.write_text("\n".join(["# a sweep", *base, body]) + "\n")
    return file


def events(root: Path) -> dict[str, list[dict]]:
    """By point, what it noted of its attempts."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(root.glob("*/attempts.jsonl"))
    }


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
