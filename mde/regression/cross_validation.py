"""Cross-validation: how well a regressor predicts mixtures it was not fitted on.

A round is a list of splits (training rows, held-out rows) whose held-out predictions are scored together: one random
split, or the folds of a partition. Replicates (runs of one mixture) are always on the same side of a split. Whatever a
regressor tunes, it tunes inside the training rows.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mde.errors import UserError, reason, unknown
from mde.regression import estimators, scores
from mde.regression.designs import fit_many, predict_with_deviation, work
from mde.regression.robust import Outlier, find_outliers, robust_spread
from mde.regression.scores import corrected_error
from mde.regression.uncertainty import objective_deviation

Method = tuple[str, str]  # regressor, feature set
Split = tuple[np.ndarray, np.ndarray]  # training rows, held-out rows
Round = list[Split]

MEAN: Method = ("mean", "lambda")  # the trivial baseline
FAILURES = (ValueError, ArithmeticError, RuntimeError)  # of numbers, which a regressor may have; others are bugs

# Entries of covariance matrices (rows² × targets, of each process of a blend), summed over the splits:
BUDGET = 1e7  # that an expensive method may be fitted on
TOGETHER = 1e6  # that are fitted in a batch, between two moves of a progress bar: a second or so


class OutOfFold(NamedTuple):
    """What a method predicted of each row when it was held out.

    Attributes:
      mean: [R, J] nats per token, the mean over the rounds that held the row out; NaN in a row that none did.
      rounds: [R] how many did.
      spread: [R] standard deviation of the objective over them.
    """

    mean: np.ndarray
    rounds: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class CrossValidation:
    """What `cross_validate` found.

    Attributes:
      objective: one row per method: `regressor`, `features`, then the scores of `mde.regression.scores` on the
        objective, each the mean over the rounds with its standard error over new swarms (`mse`, `mse_se`, ...), `n`,
        the number of rounds, and `failed`, the reason where a method failed (its scores are NaN) and empty elsewhere.
        `coverage` is NaN for regressors that do not say how sure they are.
      domains: the same for every evaluation domain, with a column `domain`, and the mean logarithm of the mean's error
        ÷ this one, `gain` and `gain_se`, where the mean is among the methods.
      predictions: by method that did not fail.
      rounds: one row per split, one column per method: mean squared error on the objective, NaN in splits that an
        expensive method was not given; only methods that did not fail.
      ratio: held-out rows per training row, which the standard error of a difference depends on.
      outliers: losses that do not fit what the other runs predict, by `find_outliers`; they are not scored.
    """

    objective: pd.DataFrame
    domains: pd.DataFrame
    predictions: dict[Method, OutOfFold]
    rounds: pd.DataFrame
    ratio: float
    outliers: list[Outlier]


def splits(groups: int | np.ndarray, n_train: int, repeats: int, seed: int) -> list[Round]:
    """Rounds of one random split each; fewer repeats are a prefix of more.

    Args:
      groups: a label per row, [R], from `groups.mixture_groups`; or the number of rows, all of different mixtures.
      n_train: mixtures that are trained on.
      repeats: number of rounds.
      seed: of the splits.

    Raises:
      UserError: fewer than 3 mixtures would be held out (no rank correlation), fewer than 2 trained on, or no repeat.
    """
    labels, count = _labels(groups)
    if n_train >= count - 2 or n_train < 2:
        raise UserError(
            f"train_mixtures={n_train} of {_said(labels, count)}: expected at least 2, and at least 3 held out"
        )
    orders = _orders(count, repeats, seed)
    return [[(_rows(labels, order[:n_train]), _rows(labels, order[n_train:]))] for order in orders]


def folds(groups: int | np.ndarray, n_folds: int, repeats: int, seed: int) -> list[Round]:
    """Rounds of K-fold cross-validation, a random partition each; fewer repeats are a prefix of more.

    With as many folds as mixtures it is leave-one-out, of which one round says everything.

    Args:
      groups: a label per row, [R], from `groups.mixture_groups`; or the number of rows, all of different mixtures.
      n_folds: number of parts.
      repeats: number of rounds.
      seed: of the partitions.

    Raises:
      UserError: fewer than 2 folds, more folds than mixtures, fewer than 3 mixtures, or no repeat.
    """
    labels, count = _labels(groups)
    if not 2 <= n_folds <= count or count < 3:
        raise UserError(
            f"{n_folds} folds of {_said(labels, count)}: expected at least 3 mixtures, at least 2 folds and no more "
            "folds than mixtures"
        )
    if n_folds == count:
        repeats = min(repeats, 1)
    parts = [np.array_split(order, n_folds) for order in _orders(count, repeats, seed)]
    everything = np.arange(count)
    return [
        [(_rows(labels, np.setdiff1d(everything, part)), _rows(labels, part)) for part in round_] for round_ in parts
    ]


def cross_validate(
    observed: np.ndarray,
    domains: Sequence[str],
    designs: Mapping[str, np.ndarray],
    methods: Iterable[Method],
    objective: np.ndarray,
    rounds: Sequence[Round],
    make: Callable[[str, str], Any] = estimators.make,
    advance: Callable[[float], Any] = lambda _: None,
    outliers: Sequence[Outlier] | None = None,
) -> CrossValidation:
    """Fits every method on the same splits and scores it on the rows held out.

    A method sees the held-out rows' features when it predicts them, and never their losses. Methods are paired: the
    expensive ones, on many rows, are given the first of the rounds only. A method that raises, or predicts a number
    that is not finite, in any split has failed.

    Args:
      observed: losses of the trained mixtures, [R, J], nats per token.
      domains: the J evaluation domains.
      designs: by feature set, [R, F] or [R, J, F] from `features.assemble`.
      methods: pairs (regressor, feature set).
      objective: weights of the evaluation domains, [J], summing to one.
      rounds: from `splits` or `folds`.
      make: regressor and feature set -> unfitted estimator.
      advance: told again and again which part of a method is done since, one for each in the end.
      outliers: losses that are fitted on and not scored, nor the objective of their runs; by default those far from
        the median of the methods' predictions.

    Raises:
      UserError: shapes that do not fit; an unknown regressor or feature set.
    """
    observed, objective = np.asarray(observed, dtype=np.float64), np.asarray(objective, dtype=np.float64)
    if observed.ndim != 2 or observed.shape[1] != len(domains) or objective.shape != (len(domains),):
        raise UserError(
            f"observed losses {observed.shape} and objective {objective.shape} for {len(domains)} evaluation domains"
        )
    methods = list(methods)
    held: dict[Method, Held] = {}
    failed: dict[Method, str] = {}
    for regressor, features in methods:
        if features not in designs:
            raise unknown("feature set", features, designs)
        design = designs[features]
        if len(design) != len(observed):
            raise UserError(f"feature set {features!r}: {len(design)} rows, expected {len(observed)} as observed")
        estimator = make(regressor, features)
        used = affordable(estimator, rounds, observed.shape[1])
        try:
            held[regressor, features] = held_out(estimator, design, observed, used, objective, advance)
        except FAILURES as error:
            failed[regressor, features] = reason(error)
    predictions = {method: _by_row(found, observed.shape, objective) for method, found in held.items()}
    outliers = _outliers(observed, predictions) if outliers is None else list(outliers)
    ratio = float(np.mean([len(test) / len(train) for round_ in rounds for train, test in round_]))
    truth = observed.copy()
    truth[[one.row for one in outliers], [one.target for one in outliers]] = np.nan
    goal = np.where(np.isnan(truth[:, objective > 0]).any(axis=1), np.nan, observed @ objective)
    overall, by_domain, errors = [], [], {}
    for method in methods:
        label: dict[str, Any] = dict(zip(("regressor", "features"), method, strict=True))
        if method in failed:
            overall.append(label | {"n": 0, "failed": failed[method]})
            by_domain += [label | {"domain": domain} for domain in domains]
            continue
        found = held[method]
        errors[method] = pd.Series(found.errors(found.mean @ objective, goal))
        score = scores.summary(found.mean @ objective, found.of(goal), found.deviation, ratio)
        overall.append(label | score | {"failed": ""})
        by_domain += [label | row for row in _domain_scores(found, held.get(MEAN), truth, domains, ratio)]
    return CrossValidation(
        pd.DataFrame(overall), pd.DataFrame(by_domain), predictions, pd.DataFrame(errors), ratio, outliers
    )


def compare(rounds: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Methods on the splits that all of them were given, against the best there: one row per method, best first.

    Columns: mse, its mean over these splits; log_ratio, the mean logarithm of a method's error ÷ the best one's in each
    split, and `error`, its standard error over new swarms (NaN where there is one split). Splits that are hard for one
    method are hard for all, and a few odd runs make most of a mean squared error: of logarithms, intervals of two
    standard errors hold the value over new swarms 70 to 98 times in 100 in simulations, of differences 65 to 99.

    Args:
      rounds: errors, as in `CrossValidation.rounds`.
      ratio: held-out rows per training row.
    """
    common = rounds.dropna()
    if common.empty:
        return pd.DataFrame(columns=["mse", "log_ratio", "error"], dtype=float)
    logs = _logs(common)
    order = logs.mean().sort_values(kind="stable").index
    against = logs[order].sub(logs[order[0]], axis=0)
    error = pd.Series(corrected_error(against.to_numpy(), ratio), order)
    return pd.DataFrame({"mse": common[order].mean(), "log_ratio": against.mean(), "error": error})


def _logs(errors: Any) -> Any:
    """Logarithms of errors, of which zero is one as well."""
    return np.log(np.maximum(errors, np.finfo(float).tiny))


def in_rows(rounds: pd.DataFrame) -> pd.DataFrame:
    """`CrossValidation.rounds` as a table with one row per method and split: columns regressor, features, mse."""
    named = rounds.rename_axis(index="round", columns=["regressor", "features"])
    return pd.DataFrame({"mse": named.unstack()}).dropna().reset_index().set_index("round")


def from_rows(table: pd.DataFrame) -> pd.DataFrame:
    """What `in_rows` took apart."""
    return table.pivot(columns=["regressor", "features"], values="mse")


def learning_curve(
    observed: np.ndarray,
    domains: Sequence[str],
    designs: Mapping[str, np.ndarray],
    methods: Sequence[Method],
    objective: np.ndarray,
    sizes: Sequence[int],
    repeats: int = 50,
    seed: int = 0,
    advance: Callable[[float], Any] = lambda _: None,
    groups: np.ndarray | None = None,
    outliers: Sequence[Outlier] | None = None,
) -> pd.DataFrame:
    """`cross_validate` on the objective with each number of training mixtures: its table, with a column `train`."""
    parts = []
    for size in sizes:
        rounds = splits(len(observed) if groups is None else groups, size, repeats, seed)
        found = cross_validate(
            observed, domains, designs, methods, objective, rounds, advance=advance, outliers=outliers
        ).objective
        parts.append(found.assign(train=size))
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Held:
    """Predictions of the held-out rows, up to H in each of the S splits of each of N rounds.

    Attributes:
      rows: [N, S, H], −1 where a split has fewer than H.
      mean: [N, S, H, J], nats per token; NaN where there is no row.
      deviations: [N, S, H, J], of each target; NaN where the regressor does not say.
      deviation: [N, S, H], of the objective.
    """

    rows: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray
    deviation: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """Values of the held-out rows, [N, S, H, ...] of [R, ...]; NaN where there is no row."""
        there = (self.rows >= 0).reshape(self.rows.shape + (1,) * (values.ndim - 1))
        return np.where(there, values[self.rows], np.nan)

    def errors(self, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Mean squared error of each split, [N S, ...], of predictions [N, S, H, ...] of truths [R, ...]."""
        squared = (predicted - self.of(truth)) ** 2
        squared = squared.reshape(-1, *squared.shape[2:])
        scored = np.isfinite(squared)
        count = scored.sum(axis=1)
        return np.where(count, np.where(scored, squared, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def held_out(
    estimator: Any,
    design: np.ndarray,
    observed: np.ndarray,
    rounds: Sequence[Round],
    objective: np.ndarray,
    advance: Callable[[float], Any] = lambda _: None,
) -> Held:
    """Fits a clone on every split of every round, in batches where the estimator can; `advance` as in `cross_validate`.

    Raises:
      ArithmeticError: a prediction that is not finite. What the estimator raises goes through.
    """
    every = [split for round_ in rounds for split in round_]
    most = max(len(test) for _, test in every)
    rows = np.full((len(every), most), -1)
    mean, deviations = np.full((2, len(every), most, observed.shape[1]), np.nan)
    deviation = np.full(rows.shape, np.nan)
    done = 0
    for batch in _batches(estimator, every, observed.shape[1]):
        fitted = fit_many(estimator, [(design[train], observed[train]) for train, _ in batch])
        for one, (_, test) in zip(fitted, batch, strict=True):
            there = slice(len(test))
            rows[done, there] = test
            mean[done, there], deviations[done, there] = predict_with_deviation(one, design[test])
            if not np.isfinite(mean[done, there]).all():
                raise ArithmeticError("it predicts a loss that is not finite")
            deviation[done, there] = objective_deviation(one, deviations[done, there], objective)
            done += 1
        advance(len(batch) / len(every))
    shape = (len(rounds), len(rounds[0]))
    return Held(*(values.reshape(*shape, *values.shape[1:]) for values in (rows, mean, deviations, deviation)))


def _domain_scores(
    found: Held, baseline: Held | None, truth: np.ndarray, domains: Sequence[str], ratio: float
) -> list[dict[str, Any]]:
    """Scores of each evaluation domain, and by how much its error is below that of the mean."""
    errors = found.errors(found.mean, truth)
    gains = np.full_like(errors, np.nan)
    if baseline is not None:
        gains = _logs(baseline.errors(baseline.mean, truth)[: len(errors)]) - _logs(errors)
    measured = found.of(truth)
    return [
        {"domain": domain}
        | scores.summary(found.mean[..., j], measured[..., j], found.deviations[..., j], ratio)
        | {"gain": float(np.mean(gains[:, j])), "gain_se": float(corrected_error(gains[:, j], ratio))}
        for j, domain in enumerate(domains)
    ]


def _outliers(observed: np.ndarray, predictions: Mapping[Method, OutOfFold]) -> list[Outlier]:
    """Losses that are far from the median prediction over the methods that learn.

    A prediction beyond all but the most extreme observed losses has gone astray itself, and says nothing of the loss.
    """
    learnt = [found.mean for method, found in predictions.items() if method[0] not in ("mean", "alone")]
    if not learnt:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row that no round held out has no prediction
        predicted = np.nanmedian(np.stack(learnt), axis=0)
    ordered = np.sort(observed, axis=0)
    spread = robust_spread(observed)
    with np.errstate(invalid="ignore"):
        sane = (predicted >= ordered[1] - spread) & (predicted <= ordered[-2] + spread)
    return find_outliers(np.where(sane, observed - predicted, np.nan), spread)


def affordable(estimator: Any, rounds: Sequence[Round], targets: int) -> Sequence[Round]:
    """The first of the rounds, at least two, as far as the budget of an expensive method goes."""
    cost = np.cumsum([sum(work(estimator, len(train), targets) for train, _ in round_) for round_ in rounds])
    return rounds[: max(2, int(np.searchsorted(cost, BUDGET)))]


def _batches(estimator: Any, every: Sequence[Split], targets: int) -> Iterator[list[Split]]:
    """The splits in parts that cost about `TOGETHER` each; one by one where a batch is no faster than its members."""
    if not hasattr(estimator, "fit_many"):
        yield from ([split] for split in every)
        return
    batch, cost = [], 0.0
    for split in every:
        batch.append(split)
        cost += work(estimator, len(split[0]), targets)
        if cost >= TOGETHER:
            yield batch
            batch, cost = [], 0.0
    if batch:
        yield batch


def _labels(groups: int | np.ndarray) -> tuple[np.ndarray, int]:
    """A number for each row's mixture, and how many mixtures there are."""
    if isinstance(groups, int):
        return np.arange(groups), groups
    names, labels = np.unique(groups, return_inverse=True)
    return labels, len(names)


def _rows(labels: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """The rows of these mixtures, in order."""
    return np.flatnonzero(np.isin(labels, mixtures))


def _said(labels: np.ndarray, mixtures: int) -> str:
    """How many runs there are, and of how many mixtures where that is another number."""
    return f"{len(labels)} proxy runs" + (f" of {mixtures} mixtures" if mixtures != len(labels) else "")


def _orders(count: int, repeats: int, seed: int) -> list[np.ndarray]:
    if repeats < 1:
        raise UserError(f"{repeats} repeats, expected at least one")
    rng = np.random.default_rng(seed)
    return [rng.permutation(count) for _ in range(repeats)]


def _by_row(held: Held, shape: tuple[int, ...], objective: np.ndarray) -> OutOfFold:
    each = np.full((len(held.rows), *shape), np.nan)
    for found, rows, mean in zip(each, held.rows, held.mean, strict=True):
        found[rows[rows >= 0]] = mean[rows >= 0]
    rounds = np.isfinite(each[..., 0]).sum(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row that no round held out has no mean
        return OutOfFold(np.nanmean(each, axis=0), rounds, np.nanstd(each @ objective, axis=0))
