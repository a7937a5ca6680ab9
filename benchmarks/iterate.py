"""Rounds of Bayesian optimisation beside random search: python -m benchmarks.iterate --regmix=FOLDER or --study=STUDY

A regressor fitted on RegMix's 512 published runs (arXiv 2407.01492), or on those of a study such as the demo's, plays
the truth: it says what training a mixture of its domains would give, and noise is added. Both searches start from the
same runs, then spend the same number of further ones. Shown is the true objective of the best of all runs, as its
excess over the truth's optimum; then that of the mixture that the same regressor recommends, untrained, after the runs
of each.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mde.optimization import acquisition, search, simplex
from mde.optimization.region import Region
from mde.regression import estimators
from mde.regression.features import FEATURES
from mde.study import Study

Truth = Callable[[np.ndarray], np.ndarray]
TRUTHS = {
    "gp": ("gp", FEATURES["sqrt"]),
    "gbm-regmix": ("gbm-regmix", FEATURES["lambda"]),
    "ridge": ("ridge", FEATURES["log"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--regmix", type=Path, help="where train_mixture_1m.csv is")
    source.add_argument("--study", type=Path, help="a study with proxy runs")
    parser.add_argument("--truths", nargs="+", default=list(TRUTHS), choices=TRUTHS)
    parser.add_argument("--regressor", default="gp")
    parser.add_argument("--features", default="sqrt", choices=FEATURES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=24, help="runs that both start from")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--noise", type=float, default=0.005, help="nats per token")
    args = parser.parse_args()
    mixtures, objective = read_study(args.study) if args.study else read_regmix(args.regmix)
    print(
        f"{args.first} runs, then {args.rounds} rounds of {args.batch}; excess over the optimum, nats per token x1000"
    )
    for name in args.truths:
        truth = fitted(name, mixtures, objective)
        region = Region.simplex(mixtures.shape[1])
        least = search.minimize(truth, region, 0, start=mixtures).loss
        rows = [compete(truth, region, seed, args) - least for seed in range(args.seeds)]
        table = pd.DataFrame(rows, columns=["iterate", "random", "iterate, advised", "random, advised"]) * 1000
        wins = [(table[f"iterate{kind}"] <= table[f"random{kind}"]).sum() for kind in ("", ", advised")]
        print(f"\ntruth {name}: at least as good as random in {wins[0]} of {args.seeds} seeds, advised in {wins[1]}")
        print(table.rename_axis("seed").round(2).to_string(), flush=True)


def read_regmix(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures [512, 17] and the mean loss over 13 domains [512]."""
    mixtures, losses = (
        pd.read_csv(folder / f"train_{part}_1m.csv", index_col="index") for part in ("mixture", "pile_loss")
    )
    weights = simplex.check_mixtures(mixtures, list(mixtures.columns), tolerance=5e-3)
    return weights, losses.loc[mixtures.index].to_numpy().mean(axis=1)


def read_study(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures [R, K] of the proxy runs and their mean loss [R]."""
    study = Study(folder)
    runs = study.mixtures()
    mixtures = runs.loc[runs["role"] == "proxy", list(study.domains.training)]
    return mixtures.to_numpy(), study.losses().loc[mixtures.index].to_numpy().mean(axis=1)


def fitted(name: str, mixtures: np.ndarray, objective: np.ndarray) -> Truth:
    """What training gives, according to a regressor that has seen all rows."""
    regressor, features = TRUTHS[name]
    model = estimators.make(regressor).fit(features(mixtures), objective[:, None])
    return lambda points: model.predict(features(points))[:, 0]


def compete(truth: Truth, region: Region, seed: int, args: argparse.Namespace) -> np.ndarray:
    """True objectives [4]: the best run of rounds of Bayesian optimisation, of random ones, and what each advises."""
    noise = np.random.default_rng(seed)
    total = args.first + args.rounds * args.batch
    drawn = simplex.space_filling(total, region.k, seed)
    observed = truth(drawn) + args.noise * noise.normal(size=total)
    model, features = estimators.make(args.regressor), FEATURES[args.features]
    known, values = drawn[: args.first], observed[: args.first]
    for number in range(args.rounds):
        new = acquisition.propose(model, features, known, values, region, args.batch, seed=number).mixtures
        known = np.vstack([known, new])
        values = np.append(values, truth(new) + args.noise * noise.normal(size=len(new)))
    ends = [truth(known).min(), truth(drawn).min()]
    for mixtures, losses in ((known, values), (drawn, observed)):
        model.fit(features(mixtures), losses[:, None])
        advised = search.minimize(lambda p: model.predict(features(p))[:, 0], region, seed, start=mixtures).mixture
        ends.append(truth(advised[None])[0])
    return np.array(ends)


if __name__ == "__main__":
    main()
