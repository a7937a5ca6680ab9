"""Regressors beside published figures and direct calls: python -m benchmarks.regressors --regmix=DIR --study=DIR

`--regmix` is a folder with the four CSV files of RegMix's 1M-parameter runs (arXiv 2407.01492): 512 mixtures to train
on and 256 to test on. `--study` is a finished study, such as the demo's: errors by number of training mixtures.
"""

import argparse
import time
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from benchmarks.timing import interleaved
from mde.regression import cross_validation, estimators
from mde.regression.features import assemble
from mde.results.proxy_runs import proxy_runs
from mde.study import Study

# Spearman x100 on the test mixtures: LightGBM as published, which stops early on the test rows.
PUBLISHED = [99.60, 99.71, 99.08, 99.45, 97.20, 99.77, 99.73, 99.18, 98.92, 96.87, 98.51, 99.19, 99.12]
METHODS = ("ridge", "mixing-law", "log-linear", "gbm", "gbm-regmix", "gp", "auto")
SIZES, REPEATS = (8, 12, 16, 20), 20
REGMIX = {"objective": "regression", "learning_rate": 0.01, "verbosity": -1, "num_threads": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regmix", type=Path)
    parser.add_argument("--study")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scikit-learn", action="store_true", help="time its Gaussian process on one target, minutes")
    args = parser.parse_args()
    if args.regmix:
        mixtures, losses = read(args.regmix, "train")
        for rows in args.rows:
            ranks(mixtures[:rows], losses[:rows], *read(args.regmix, "test"))
        against_direct_calls(mixtures.to_numpy(), losses.to_numpy(), args.rounds)
        if args.scikit_learn:
            against_scikit_learn(mixtures.to_numpy(), losses.to_numpy())
    if args.study:
        learning_curve(Study(args.study))


def read(folder: Path, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    mixtures = pd.read_csv(folder / f"{split}_mixture_1m.csv", index_col="index")
    losses = pd.read_csv(folder / f"{split}_pile_loss_1m.csv", index_col="index").loc[mixtures.index]
    losses.columns = losses.columns.str.removeprefix("metric/the_pile_").str.removesuffix("_val_loss")
    return mixtures.div(mixtures.sum(axis=1), axis=0), losses


def ranks(mixtures: pd.DataFrame, losses: pd.DataFrame, test_mixtures: pd.DataFrame, test_losses: pd.DataFrame) -> None:
    """Rank correlations on the test mixtures, one column per regressor, and seconds of fitting."""
    table, seconds = pd.DataFrame({"published": PUBLISHED}, index=losses.columns), {"published": float("nan")}
    for name in METHODS:
        regressor = estimators.make(name)
        features = np.cbrt if name == "gp" else np.asarray
        started = time.perf_counter()
        regressor.fit(features(mixtures.to_numpy()), losses.to_numpy())
        seconds[name] = time.perf_counter() - started
        predicted = regressor.predict(features(test_mixtures.to_numpy()))
        table[name] = [
            100 * spearmanr(predicted[:, j], test_losses[target]).statistic if np.ptp(predicted[:, j]) else np.nan
            for j, target in enumerate(losses.columns)
        ]
    table.loc["mean"], table.loc["seconds"] = table.mean(), pd.Series(seconds)
    print(f"RegMix, {len(mixtures)} -> {len(test_mixtures)} mixtures, Spearman x100 (published: LightGBM, 512 rows)")
    print(f"{table.round(2).to_string()}\nauto: {regressor.describe()}\n")


def against_direct_calls(mixtures: np.ndarray, losses: np.ndarray, rounds: int) -> None:
    """LightGBM with RegMix's settings and 100,000 simulated candidates, through the estimator and without."""
    candidates = np.random.default_rng(0).dirichlet(np.ones(mixtures.shape[1]), 100_000)

    def ours() -> np.ndarray:
        return estimators.make("gbm-regmix").fit(mixtures, losses[:, :1]).predict(candidates)

    def direct() -> np.ndarray:
        booster = lightgbm.train(REGMIX, lightgbm.Dataset(mixtures, losses[:, 0]), 1000)
        return booster.predict(candidates, num_threads=1)

    seconds = interleaved({"estimator": ours, "LightGBM's own calls": direct}, rounds)
    print(f"fit and 100,000 candidates, one target, one thread, medians of {rounds} interleaved rounds")
    for name, value in seconds.items():
        print(f"{name:24s} {value:8.2f} s {value / seconds['estimator']:8.2f} x")
    print()


def against_scikit_learn(mixtures: np.ndarray, losses: np.ndarray) -> None:
    """The same process for one target; the gap is per target."""
    kernel = kernels.ConstantKernel(10.0) * kernels.Matern(np.full(mixtures.shape[1], 3.0), nu=2.5)
    kernel += kernels.WhiteKernel(1e-2)
    target = losses[:, 0]
    for name, regressor in {
        "gp": estimators.make("gp"),
        "scikit-learn's": GaussianProcessRegressor(kernel, normalize_y=True),
    }.items():
        started = time.perf_counter()
        regressor.fit(np.cbrt(mixtures), target[:, None])
        print(f"{name:16s} one target {time.perf_counter() - started:8.1f} s")


def learning_curve(study: Study) -> None:
    """Out-of-fold errors on the average objective by number of training mixtures, and the noise of a run."""
    inputs = proxy_runs(study, "avg-all")
    evaluated = [name for name in inputs.evaluated if name.startswith("mde")]
    methods = [("ridge", name) for name in ("lambda", "sqrt", "log")]
    methods += [("auto", "lambda"), ("auto", "+".join([*evaluated, "lambda"]))]
    designs = {
        features: assemble(features, inputs.mixtures.to_numpy(), inputs.evaluated)
        for features in dict.fromkeys(features for _, features in methods)
    }
    observed, started = inputs.losses.to_numpy(), time.perf_counter()
    curve = cross_validation.learning_curve(
        observed, inputs.domains, designs, methods, inputs.objective, SIZES, REPEATS
    )
    print(f"{study}: {len(observed)} proxy runs, mean squared error x10^-3 of the average objective, out of fold")
    wide = (curve.assign(mse=1e3 * curve["mse"])).pivot(index=["regressor", "features"], columns="train", values="mse")
    print(wide.round(4).to_string())
    print(
        curve[["train", "regressor", "features", "spearman", "regret", "optimism", "coverage", "n"]]
        .round(4)
        .to_string()
    )
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
