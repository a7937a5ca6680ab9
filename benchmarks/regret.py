"""What a recommendation costs: python -m benchmarks.regret [--regmix=FOLDER] [truth ...]

Regressors are fitted on a few noisy runs of a truth that is known everywhere; the mixture of least predicted mean loss
is then asked of the truth. Shown is its excess over the truth's own optimum (regret), mean and greatest over seeds; how
often the best observed run was better; and how far below the truth its prediction lay. Truths are mixing laws and power
laws of effective data (their domains help each other a little), and regressors fitted on RegMix's 512 published runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.iterate import TRUTHS
from mde.optimization import search, simplex
from mde.optimization.region import Region
from mde.regression import estimators
from mde.regression.auto import Auto
from mde.regression.features import FEATURES

Truth = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> losses [C, J]
WAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "auto": (Auto, "lambda"),
    "gp on λ": (lambda: estimators.make("gp"), "lambda"),
    "gp on cube roots": (lambda: estimators.make("gp"), "cbrt"),
    "mixing law": (lambda: estimators.make("mixing-law"), "lambda"),
    "ridge on logarithms": (lambda: estimators.make("ridge"), "log"),
}
DOMAINS = (5, 7, 17)
TARGETS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truths", nargs="*")
    parser.add_argument("--regmix", type=Path, help="where train_mixture_1m.csv is")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--noise", type=float, default=0.01, help="nats per token")
    args = parser.parse_args()
    known = [f"{kind}-{k}" for kind in ("law", "power") for k in DOMAINS]
    known += [f"regmix-{name}" for name in TRUTHS] if args.regmix else []
    for name in args.truths or known:
        tasks = [(name, seed, args) for seed in range(args.seeds)]
        rows = pd.DataFrame([row for task in tasks for row in one_seed(*task)])
        table = rows.groupby("way", sort=False).agg(
            mean=("regret", "mean"), greatest=("regret", "max"), lost=("lost", "sum"), optimism=("optimism", "mean")
        )
        print(f"\n{name}, {args.runs} runs, noise {args.noise}, {args.seeds} seeds; nats per token x1000")
        table[["mean", "greatest", "optimism"]] *= 1000
        print(table.round(1).to_string(), flush=True)


def one_seed(name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way and for the mixtures that need no regressor."""
    rng = np.random.default_rng(seed)
    truth, k = make_truth(name, rng, args.regmix)
    mixtures = simplex.space_filling(args.runs, k, seed)
    losses = truth(mixtures)
    observed = losses + args.noise * rng.normal(size=losses.shape)
    mean = lambda points: truth(points).mean(axis=1)  # noqa: E731
    least = search.minimize(mean, Region.simplex(k), seed, start=mixtures).loss
    best = mean(mixtures[[observed.mean(axis=1).argmin()]])[0] - least
    rows = []
    for way in args.ways:
        make, features = WAYS[way]
        model = make().fit(FEATURES[features](mixtures), observed)
        predict = lambda points, m=model, f=features: m.predict(FEATURES[f](points)).mean(axis=1)  # noqa: E731
        found = search.minimize(predict, Region.simplex(k), seed, start=mixtures)
        real = mean(found.mixture[None])[0]
        regret = real - least
        rows.append({"way": way, "regret": regret, "lost": regret > best, "optimism": real - found.loss})
    uniform = mean(np.full((1, k), 1 / k))[0] - least
    rest = {"best observed": best, "uniform": uniform}
    return rows + [{"way": name, "regret": regret, "lost": regret > best} for name, regret in rest.items()]


def make_truth(name: str, rng: np.random.Generator, regmix: Path | None) -> tuple[Truth, int]:
    kind, which = name.split("-", 1)
    if kind == "regmix":
        return regmix_truth(which, regmix), 17
    k = int(which)
    pulls = rng.uniform(0, 0.3, (k, TARGETS))
    pulls[np.arange(TARGETS) % k, np.arange(TARGETS)] = rng.uniform(0.9, 2, TARGETS)
    floor, factor = rng.uniform(1.5, 2.5, TARGETS), rng.uniform(0.8, 1.5, TARGETS)
    if kind == "law":
        return lambda points: floor + factor * np.exp(-points @ pulls), k
    power = rng.uniform(0.1, 0.4, TARGETS)
    return lambda points: floor + factor * (0.02 + points @ pulls) ** -power, k


def regmix_truth(which: str, folder: Path) -> Truth:
    regressor, features = TRUTHS[which]
    mixtures, losses = (
        pd.read_csv(folder / f"train_{part}_1m.csv", index_col="index") for part in ("mixture", "pile_loss")
    )
    weights = simplex.check_mixtures(mixtures, list(mixtures.columns), tolerance=5e-3)
    model = estimators.make(regressor).fit(features(weights), losses.loc[mixtures.index].to_numpy())
    return lambda points: model.predict(features(points))


if __name__ == "__main__":
    main()
