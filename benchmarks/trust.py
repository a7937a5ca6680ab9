"""How reliable the default regressor is: python -m benchmarks.trust [--quick] [--only PART] [--swarm NAME ...]

Beside it in the same run: scikit-learn's Gaussian process, ridge on logarithms, a robust mixing law, LightGBM with
RegMix's settings, and the mean. Each split of a simulated swarm (`benchmarks.swarms`) is a new truth, new proxy runs
and 200 new runs to predict; each split of a public one holds out a quarter of its mixtures. Five parts:

  error     squared error on new runs, as a ratio to that of the mean
  coverage  of 90% intervals: on new runs, and at the recommended mixture
  regret    true objective of the recommended mixture above that of the real optimum; also with a diverged run
  choice    what `mde fit` chooses, and whether that is worse than the mean on new runs
  claims    how often a gain over the best baseline is called distinguishable, and is none

The objective is the mean over targets. `--swarms` is a folder of Olmix pairs NAME_ratios.csv and NAME_metrics.csv;
`--regmix` one of RegMix's CSV files, for `regmix` and, if named, `regmix-gp`, `regmix-gbm-regmix` and `regmix-ridge`,
simulated swarms whose truth is that regressor, fitted on RegMix's runs.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from tqdm import tqdm

from benchmarks import swarms, trust_tables
from benchmarks.iterate import TRUTHS
from benchmarks.regressors import read
from mde.api import Study
from mde.errors import UserError, unknown
from mde.optimization import search
from mde.optimization.region import Region
from mde.regression import estimators
from mde.regression.designs import predict_with_deviation
from mde.regression.features import FEATURES
from mde.regression.groups import group_folds, mixture_groups
from mde.regression.uncertainty import half_sample_refits, objective_deviation, selected_interval

PARTS = ("error", "coverage", "regret", "choice", "claims")
ALONE = ("choice", "claims")  # parts that are tasks of their own
NEW = 200  # new runs that are predicted in each split, and new runs of the recommended mixture
LARGE, LARGE_TARGETS = 256, 8  # from so many proxy runs on: so many targets, and a fifth of the splits
CLAIM_REFITS = 30  # as many as `mde optimize` makes of `auto`
REFITS = 10  # on half of the runs, for the interval of the objective; not for large swarms
REACH = norm.ppf(0.95)  # standard deviations to either side in an interval of 90%
QUICK = ("law-5x24", "noise", "virtual")
DIVERGED = ("law-5x24", "power-8x32")  # swarms to which a diverged run is added
HARMS = [(nats, whole) for nats in (1.0, 5.0, 1e3) for whole in (False, True)]
CHOICES = (*DIVERGED, "heteroscedastic-5x24", "heavy-tailed", "replicates", "virtual", "accuracies", "noise")
CLAIMS = ("noise", "weak", "law-5x24", "power-8x32", "heteroscedastic-5x24", "replicates", "virtual", "accuracies")
CLAIM_SPLITS = 4  # as many times more than in other parts: a claim is a yes or a no
CHOICE_HARMS = (None, (5.0, False), (5.0, True))
MARK = "<!-- tables: python -m benchmarks.trust -->"  # before and after the tables on a page
FAILURES = (UserError, ValueError, np.linalg.LinAlgError)  # of a fit: listed, and its error is not finite


class Process:
    """scikit-learn's Gaussian process, one per target; its deviations are those of a new run."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Process":
        kernel = kernels.ConstantKernel() * kernels.Matern(nu=2.5) + kernels.WhiteKernel(0.1, (1e-6, 1e1))
        self.processes = [GaussianProcessRegressor(kernel, normalize_y=True).fit(X, target) for target in y.T]
        return self

    def predict(self, X: np.ndarray, return_std: bool = False) -> Any:
        found = [process.predict(X, return_std=return_std) for process in self.processes]
        return tuple(np.stack(part, axis=1) for part in zip(*found, strict=True)) if return_std else np.stack(found, 1)


METHODS: dict[str, tuple[Callable[[], Any], str]] = {
    "auto": (functools.partial(estimators.make, "auto"), "lambda"),
    "process": (Process, "sqrt"),
    "ridge": (functools.partial(estimators.make, "ridge"), "log"),
    "law": (functools.partial(estimators.make, "log-linear"), "lambda"),
    "LightGBM": (functools.partial(estimators.make, "gbm-regmix"), "lambda"),
    "mean": (functools.partial(estimators.make, "mean"), "lambda"),
}


class Task(NamedTuple):
    """A split of a swarm, for a worker.

    Attributes:
      swarm: its name.
      split: its number.
      parts: of `PARTS`; those of `ALONE` stand alone.
      targets: how many at most.
      folder: the CSV files of a public swarm; None for simulated ones.
      harm: nats added to a random run, and whether to all of its losses or to one.
    """

    swarm: str
    split: int
    parts: tuple[str, ...]
    targets: int
    folder: Path | None = None
    harm: tuple[float, bool] | None = None


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    started, tasks = time.perf_counter(), plan(args)
    rows = pd.DataFrame([row for found in work(tasks, args.jobs) for row in found])
    tables = trust_tables.tables(rows, args.only)
    tables += f"\n{len(tasks)} tasks, {args.splits} splits, at most {args.targets} targets, {args.jobs} processes, "
    tables += f"{time.perf_counter() - started:.0f} s.\n"
    print(tables)
    for (swarm, method, reason), count in rows.value_counts(["swarm", "method", "failed"]).items():
        print(f"failed: {method} on {swarm}, {count} times: {reason}")
    if args.page:
        before, _, rest = args.page.read_text().partition(MARK)
        args.page.write_text(f"{before}{MARK}\n\n{tables}\n{MARK}{rest.partition(MARK)[2]}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small swarms, two splits")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--swarm", nargs="+", help="of those in benchmarks.swarms.SWARMS, or public ones")
    parser.add_argument("--swarms", type=Path, help="folder of Olmix pairs of CSV files")
    parser.add_argument("--regmix", type=Path, help="folder of RegMix's CSV files")
    parser.add_argument("--splits", type=int, help="10 by default; a fifth of them for swarms of 256 runs and more")
    parser.add_argument("--targets", type=int, help="16 by default; at most 8 for swarms of 256 runs and more")
    parser.add_argument("--page", type=Path, help="a page of the docs, whose tables are replaced")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    if args.page and args.page.read_text().count(MARK) != 2:
        raise UserError(f"{args.page}: expected two lines {MARK}, around the tables")
    args.splits = args.splits or (2 if args.quick else 10)
    args.targets = args.targets or (6 if args.quick else 16)
    return args


def plan(args: argparse.Namespace) -> list[Task]:
    """What is to be done, the longest first."""
    pairs = sorted(args.swarms.glob("*_ratios.csv")) if args.swarms else []
    public = {path.name.removesuffix("_ratios.csv"): args.swarms for path in pairs}
    if args.regmix:
        public["regmix"] = args.regmix
    fitted = {f"regmix-{name}": args.regmix for name in TRUTHS if args.regmix}
    tasks = []
    for name in args.swarm or [*(QUICK if args.quick else swarms.SWARMS), *public]:
        if name not in {**swarms.SWARMS, **public, **fitted}:
            raise unknown("swarm", name, [*swarms.SWARMS, *public, *fitted])
        large = name in swarms.SWARMS and len(swarms.SWARMS[name](seed=0).mixtures) >= LARGE
        splits = range(max(1, args.splits // 5) if large else args.splits)
        targets = min(args.targets, LARGE_TARGETS) if large else args.targets
        task = Task(name, 0, tuple(args.only), targets, {**public, **fitted}.get(name))
        if set(args.only) - set(ALONE):
            tasks += [task._replace(split=split) for split in splits]
        if "regret" in args.only and name in DIVERGED:
            tasks += [task._replace(split=s, harm=harm, parts=("regret",)) for harm in HARMS for s in splits]
        if "choice" in args.only and name not in public and (name in CHOICES or args.swarm):
            harms = CHOICE_HARMS if name in DIVERGED else (None,)
            few = task._replace(parts=("choice",), targets=min(targets, LARGE_TARGETS))
            tasks += [few._replace(split=s, harm=harm) for harm in harms for s in splits]
        if "claims" in args.only and name not in public and (name in CLAIMS or args.swarm):
            tasks += [task._replace(split=s, parts=("claims",)) for s in range(CLAIM_SPLITS * len(splits))]
    return sorted(tasks, key=lambda task: "x512" not in task.swarm and task.swarm != "wide")


def work(tasks: list[Task], jobs: int) -> Iterable[list[dict[str, Any]]]:
    """The rows of each task, in their order, from processes of one thread each."""
    with tqdm(total=len(tasks), desc="trust", unit="task") as bar:
        if jobs == 1:
            for task in tasks:
                yield run(task)
                bar.update()
            return
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(run, task) for task in tasks]
            for _ in as_completed(futures):
                bar.update()
            yield from (future.result() for future in futures)


def run(task: Task) -> list[dict[str, Any]]:
    """A row per method; and for the regret of mixtures that need no regressor."""
    harm = (
        "" if task.harm is None else f"{task.harm[0]:+g} nats, {'all losses' if task.harm[1] else 'one loss'} of a run"
    )
    label = {"swarm": task.swarm, "split": task.split, "harm": harm, "failed": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hyper-parameter at its bound
        warnings.simplefilter("ignore", RuntimeWarning)  # a law that overflows shows as not finite
        rows = {("choice",): choose, ("claims",): claim}.get(task.parts, compare)(task)
    return [label | row for row in rows]


def simulated(task: Task) -> swarms.Swarm:
    """The proxy runs of a split, and their truth."""
    if task.folder is None:
        swarm = swarms.SWARMS[task.swarm](seed=task.split)
    else:
        mixtures, truth = regmix_truth(task.folder, task.swarm.removeprefix("regmix-"))
        swarm = swarms.fitted(task.swarm, truth, mixtures, seed=task.split)
    swarm = swarms.thinned(swarm, task.targets) if swarm.losses.shape[1] > task.targets else swarm
    if task.harm:
        rng = np.random.default_rng(task.split)
        row, target = rng.integers(swarm.losses.shape[0]), rng.integers(swarm.losses.shape[1])
        swarm = swarms.diverged(swarm, task.harm[0], row, None if task.harm[1] else target)
    return swarm


@functools.cache
def regmix_truth(folder: Path, name: str) -> tuple[np.ndarray, swarms.Truth]:
    """RegMix's mixtures, and a regressor that was fitted on all of its runs."""
    mixtures, losses = (table.to_numpy() for table in read(folder, "train"))
    regressor, features = TRUTHS[name]
    model = estimators.make(regressor).fit(features(mixtures), losses)
    return mixtures, lambda points: model.predict(features(points))


def held_out(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mixtures and losses to fit on, and those to predict, of a public swarm."""
    if task.swarm == "regmix":  # 64 of its 512 training runs, and its 256 test runs
        (mixtures, losses), test = (
            [table.to_numpy() for table in read(task.folder, part)] for part in ("train", "test")
        )
        rows = np.random.default_rng(task.split).permutation(len(losses))[:64]
        return mixtures[rows], losses[rows], *test
    tables = [pd.read_csv(task.folder / f"{task.swarm}_{part}.csv", index_col="run") for part in ("ratios", "metrics")]
    ratios, metrics = (table.loc[:, "index":].drop(columns="index") for table in tables)
    mixtures, losses = ratios.div(ratios.sum(axis=1), axis=0).to_numpy(), metrics.loc[ratios.index].to_numpy()
    losses = losses[:, np.unique(np.linspace(0, losses.shape[1] - 1, task.targets).astype(int))]
    test = group_folds(mixture_groups(mixtures), 4, task.split)[0]
    rest = np.setdiff1d(np.arange(len(losses)), test)
    return mixtures[rest], losses[rest], mixtures[test], losses[test]


def compare(task: Task) -> list[dict[str, Any]]:
    """All methods on one split."""
    swarm = simulated(task) if task.folder is None or task.swarm.startswith("regmix-") else None
    if swarm is None:
        mixtures, losses, new, truth = held_out(task)
    else:
        mixtures, losses, new = swarm.mixtures, swarm.losses, swarm.draw(NEW, task.split)
        truth = swarm.runs(new, task.split)
    rows: list[dict[str, Any]] = []
    searched = swarm is not None and bool({"coverage", "regret"} & set(task.parts))
    if searched:
        best = optimum(swarm.truth, mixtures, task.split, 4096, 30).loss
        known = np.vstack([mixtures[losses.mean(axis=1).argmin()], np.full(mixtures.shape[1], 1 / mixtures.shape[1])])
        excess = swarm.truth(known).mean(axis=1) - best
        rows += [{"method": "best run", "regret": excess[0]}, {"method": "uniform", "regret": excess[1]}]
    for name, (make, transform) in METHODS.items():
        features = FEATURES[transform]
        row: dict[str, Any] = {"method": name, "error": np.inf, "worst target": np.inf}
        rows.append(row | ({"regret": np.inf} if searched else {}))
        try:
            model = make().fit(features(mixtures), losses)
            row |= scores(*predict_with_deviation(model, features(new)), truth, losses.mean(axis=0))
            if searched:
                row |= at_the_recommended(swarm, task.split, model, features, best)
                row["lost"] = row["regret"] > excess[0]
        except FAILURES as failure:
            row["failed"] = str(failure)[:80]
        rows[-1] |= row
    return rows


def scores(mean: np.ndarray, deviation: np.ndarray, truth: np.ndarray, constant: np.ndarray) -> dict[str, Any]:
    ratio = np.mean((mean - truth) ** 2, axis=0) / np.mean((constant - truth) ** 2, axis=0)
    ratio = np.where(np.isfinite(ratio), ratio, np.inf)
    found = {"error": ratio.mean(), "worst target": ratio.max()}
    if not np.isnan(deviation).all():
        inside = np.abs(mean - truth) <= REACH * deviation
        found |= {"coverage": inside.mean(), "covered, worst target": inside.mean(axis=0).min()}
    return found


def at_the_recommended(
    swarm: swarms.Swarm, split: int, model: Any, features: Callable[[np.ndarray], np.ndarray], best: float
) -> dict[str, Any]:
    """Regret of the mixture of the lowest predicted objective, and how often its new runs are in its intervals."""
    found = optimum(lambda points: model.predict(features(points)), swarm.mixtures, split, 2048, 10)
    real = swarm.truth(found.mixture[None]).mean()
    row = {"regret": real - best, "optimism": real - found.loss}
    mean, deviation = predict_with_deviation(model, features(found.mixture[None]))
    if not np.isnan(deviation).all():
        missed = swarm.runs(np.repeat(found.mixture[None], NEW, axis=0), 1000 + split) - mean
        row["covered, recommended"] = np.mean(np.abs(missed) <= REACH * deviation)
        if hasattr(model, "correlation_"):  # without it the objective's interval is wide beyond use
            weights = np.full(len(mean[0]), 1 / len(mean[0]))
            reach = REACH * objective_deviation(model, deviation, weights)[0]
            if len(swarm.mixtures) < LARGE:
                design = features(swarm.mixtures)
                refits = half_sample_refits(design, swarm.losses, clone(model), REFITS, split)
                refitted = np.array([one.predict(features(found.mixture[None]))[0] @ weights for one in refits])
                predicted = mean[0] @ weights
                low, high = selected_interval(predicted + np.array([-reach, reach]), predicted, refitted)
                real = missed @ weights + predicted
                row["covered, objective"] = np.mean((low <= real) & (real <= high))
    return row


def optimum(predict: swarms.Truth, mixtures: np.ndarray, seed: int, candidates: int, rounds: int) -> search.Optimum:
    """The mixture of the lowest mean loss, of domains that some run was trained on."""
    trained = (mixtures.max(axis=0) > 0).astype(float)
    region = replace(Region.simplex(mixtures.shape[1]), high=trained)
    loss = lambda points: predict(points).mean(axis=1)  # noqa: E731
    return search.minimize(loss, region, seed, "refinement", candidates, rounds, start=mixtures)


def choose(task: Task) -> list[dict[str, Any]]:
    """What `mde fit` chooses, and the squared error of its objective on new runs as a ratio to that of the mean."""
    swarm = simulated(task)
    new = swarm.draw(NEW, task.split)
    truth = swarm.runs(new, task.split).mean(axis=1)
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        files = {}
        for what, table in (("mixtures", swarm.mixtures), ("losses", swarm.losses)):
            files[what] = str(Path(name) / f"{what}.csv")
            pd.DataFrame(table).add_prefix(what).rename("run{}".format).to_csv(files[what], index_label="run")
        try:
            study = Study(Path(name) / "study").run("fit", **files, repeats=5, curve_sizes=[])
            chosen = study.read_json("fit/choice.json", "fit")["regressor"]
            mean = study.predictor()(new).mean(axis=1)
        except FAILURES as failure:
            return [{"method": "mde fit", "choice": "nothing", "failed": f"{type(failure).__name__}: {failure}"[:80]}]
    ratio = np.mean((mean - truth) ** 2) / np.mean((swarm.losses.mean() - truth) ** 2)
    return [{"method": "mde fit", "choice": chosen, "ratio": ratio}]


def claim(task: Task) -> list[dict[str, Any]]:
    """Whether `mde optimize` would call the gain over the better of uniform and the best run distinguishable."""
    swarm = simulated(task)
    model = estimators.make("auto").fit(swarm.mixtures, swarm.losses)
    found = optimum(model.predict, swarm.mixtures, task.split, 2048, 10)
    best_run = swarm.mixtures[swarm.losses.mean(axis=1).argmin()]
    baselines = np.stack([np.full_like(best_run, 1 / len(best_run)), best_run])
    pair = np.stack([found.mixture, baselines[model.predict(baselines).mean(axis=1).argmin()]])
    gain = np.diff(model.predict(pair).mean(axis=1))[0]
    refits = half_sample_refits(swarm.mixtures, swarm.losses, clone(model), CLAIM_REFITS, task.split)
    error = np.std([np.diff(one.predict(pair).mean(axis=1))[0] for one in refits])
    real = np.diff(swarm.truth(pair).mean(axis=1))[0]
    return [{"method": "auto", "claims": float(gain > REACH * error), "gain": gain, "gain_error": error, "real": real}]


if __name__ == "__main__":
    main()
