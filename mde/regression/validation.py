"""Out-of-fold judgement: how well a regressor predicts mixtures it was not fitted on.

A round is a list of splits (training rows, held-out rows) whose held-out predictions are scored together: one random
split, or the folds of a partition. Whatever a regressor tunes, it tunes inside the training rows.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mde.errors import UserError, unknown
from mde.regression import estimators, scores
from mde.regression.designs import fit_many, predict_with_deviation, work
from mde.regression.uncertainty import objective_deviation

Method = tuple[str, str]  # regressor, feature set
Split = tuple[np.ndarray, np.ndarray]  # training rows, held-out rows
Round = list[Split]

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
class Judgement:
    """What `judge` found.

    Attributes:
      objective: a row a method: `regressor`, `features`, then the scores of `mde.regression.scores` on the objective,
        each the mean over the rounds with its standard error (`mse`, `mse_se`, ...), and `n`, the number of rounds. The
        rounds share their observations, so a standard error speaks of the choice of training rows, not of new
        observations. `coverage` is NaN for regressors that do not say how sure they are.
      domains: the same for every evaluation domain, with a column `domain`.
      predictions: by method.
      rounds: a row a round, a column a method: mean squared error on the objective, NaN in rounds that an expensive
        method was not given.
    """

    objective: pd.DataFrame
    domains: pd.DataFrame
    predictions: dict[Method, OutOfFold]
    rounds: pd.DataFrame


def splits(n_rows: int, n_train: int, repeats: int, seed: int) -> list[Round]:
    """Rounds of one random split each; fewer repeats are a prefix of more.

    Raises:
      UserError: fewer than 3 rows would be held out (no rank correlation), fewer than 2 trained on, or no repeat.
    """
    if n_train >= n_rows - 2 or n_train < 2:
        raise UserError(
            f"train_mixtures={n_train} of {n_rows} observations: expected at least 2, and at least 3 held out"
        )
    orders = _orders(n_rows, repeats, seed)
    return [[(np.sort(order[:n_train]), np.sort(order[n_train:]))] for order in orders]


def folds(n_rows: int, n_folds: int, repeats: int, seed: int) -> list[Round]:
    """Rounds of K-fold cross-validation, a random partition each; fewer repeats are a prefix of more.

    With as many folds as rows it is leave-one-out, of which one round says everything.

    Raises:
      UserError: fewer than 2 folds, more folds than rows, fewer than 3 rows, or no repeat.
    """
    if not 2 <= n_folds <= n_rows or n_rows < 3:
        raise UserError(f"{n_folds} folds of {n_rows} observations: expected at least 2, and no more than observations")
    if n_folds == n_rows:
        repeats = min(repeats, 1)
    parts = [np.array_split(order, n_folds) for order in _orders(n_rows, repeats, seed)]
    everything = np.arange(n_rows)
    return [[(np.setdiff1d(everything, part), np.sort(part)) for part in round_] for round_ in parts]


def judge(
    observed: np.ndarray,
    domains: Sequence[str],
    designs: Mapping[str, np.ndarray],
    methods: Iterable[Method],
    objective: np.ndarray,
    rounds: Sequence[Round],
    make: Callable[[str, str], Any] = estimators.make,
    advance: Callable[[float], Any] = lambda _: None,
) -> Judgement:
    """Fits every method on the same splits and judges it on the rows held out.

    A method sees the held-out rows' features when it predicts them, and never their losses. Methods are paired: the
    expensive ones, on many rows, are given the first of the rounds only.

    Args:
      observed: losses of the trained mixtures, [R, J], nats per token.
      domains: the J evaluation domains.
      designs: by feature set, [R, F] or [R, J, F] from `features.assemble`.
      methods: pairs (regressor, feature set).
      objective: weights of the evaluation domains, [J], summing to one.
      rounds: from `splits` or `folds`.
      make: regressor and feature set -> unfitted estimator.
      advance: told again and again which part of a method has been judged since, one for each in the end.

    Raises:
      UserError: shapes that do not fit; an unknown regressor or feature set.
    """
    observed, objective = np.asarray(observed, dtype=np.float64), np.asarray(objective, dtype=np.float64)
    if observed.ndim != 2 or observed.shape[1] != len(domains) or objective.shape != (len(domains),):
        raise UserError(
            f"observed losses {observed.shape} and objective {objective.shape} for {len(domains)} evaluation domains"
        )
    overall, by_domain, predictions, errors = [], [], {}, {}
    for regressor, features in methods:
        if features not in designs:
            raise unknown("feature set", features, designs)
        design = designs[features]
        if len(design) != len(observed):
            raise UserError(f"feature set {features!r}: {len(design)} rows, expected {len(observed)} as observed")
        estimator = make(regressor, features)
        used = affordable(estimator, rounds, observed.shape[1])
        held = held_out(estimator, design, observed, used, objective, advance)
        predictions[regressor, features] = _by_row(held, observed.shape, objective)
        label, truth = {"regressor": regressor, "features": features}, observed[held.rows]
        errors[regressor, features] = pd.Series(np.mean(((held.mean - truth) @ objective) ** 2, axis=1))
        overall.append(label | scores.summary(held.mean @ objective, truth @ objective, held.deviation))
        by_domain += [
            label | {"domain": domain} | scores.summary(held.mean[..., j], truth[..., j], held.deviations[..., j])
            for j, domain in enumerate(domains)
        ]
    return Judgement(pd.DataFrame(overall), pd.DataFrame(by_domain), predictions, pd.DataFrame(errors))


def compare(rounds: pd.DataFrame) -> pd.DataFrame:
    """Methods on the rounds that all of them were given, against the best there: a row a method, least error first.

    Columns: mse, its mean over these rounds; excess over the best and its standard error, from the differences in each
    round, as rounds that are hard for one method are hard for all (zero where there is a single round).

    Args:
      rounds: errors, as in `Judgement.rounds`.
    """
    common = rounds.dropna()
    mse = common.mean().sort_values(kind="stable")
    excess = common[mse.index].sub(common[mse.index[0]], axis=0)
    return pd.DataFrame({"mse": mse, "excess": excess.mean(), "error": excess.sem().fillna(0)})


def in_rows(rounds: pd.DataFrame) -> pd.DataFrame:
    """`Judgement.rounds` as a table with a row a method and round: columns regressor, features, mse."""
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
) -> pd.DataFrame:
    """`judge` on the objective with each number of training rows: its table, with a column `train`."""
    parts = []
    for size in sizes:
        rounds = splits(len(observed), size, repeats, seed)
        found = judge(observed, domains, designs, methods, objective, rounds, advance=advance).objective
        parts.append(found.assign(train=size))
    return pd.concat(parts, ignore_index=True)


def noise_floor(observed: np.ndarray, mixtures: Sequence[Any], objective: np.ndarray) -> float:
    """Variance of the objective between runs of one mixture (other seeds, other data orders), pooled over mixtures.

    No regressor's squared error on lone runs can be expected below it.

    Args:
      observed: losses, [N, J], nats per token.
      mixtures: a label of the mixture of each of the N runs.
      objective: weights of the evaluation domains, [J].

    Raises:
      UserError: no mixture has two runs.
    """
    values = pd.Series(np.asarray(observed) @ objective).groupby(list(mixtures))
    counts = values.count()
    if (counts < 2).all():
        raise UserError("the noise of a run takes two runs of one mixture, with other seeds")
    return float((values.var(ddof=0) * counts)[counts > 1].sum() / (counts[counts > 1] - 1).sum())


@dataclass(frozen=True)
class Held:
    """Predictions of the held-out rows, H in each of N rounds.

    Attributes:
      rows: [N, H].
      mean: [N, H, J], nats per token.
      deviations: [N, H, J], of each target; NaN where the regressor does not say.
      deviation: [N, H], of the objective.
    """

    rows: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray
    deviation: np.ndarray


def held_out(
    estimator: Any,
    design: np.ndarray,
    observed: np.ndarray,
    rounds: Sequence[Round],
    objective: np.ndarray,
    advance: Callable[[float], Any] = lambda _: None,
) -> Held:
    """Fits a clone on every split of every round, in batches where the estimator can; `advance` as in `judge`."""
    every = [split for round_ in rounds for split in round_]
    parts = []
    for batch in _batches(estimator, every, observed.shape[1]):
        fitted = fit_many(estimator, [(design[train], observed[train]) for train, _ in batch])
        for one, (_, test) in zip(fitted, batch, strict=True):
            mean, deviations = predict_with_deviation(one, design[test])
            parts.append((test, mean, deviations, objective_deviation(one, deviations, objective)))
        advance(len(batch) / len(every))
    rows, mean, deviations, deviation = (np.concatenate(values) for values in zip(*parts, strict=True))
    n, j = len(rounds), observed.shape[1]
    return Held(rows.reshape(n, -1), mean.reshape(n, -1, j), deviations.reshape(n, -1, j), deviation.reshape(n, -1))


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


def _orders(n_rows: int, repeats: int, seed: int) -> list[np.ndarray]:
    if repeats < 1:
        raise UserError(f"{repeats} repeats, expected at least one")
    rng = np.random.default_rng(seed)
    return [rng.permutation(n_rows) for _ in range(repeats)]


def _by_row(held: Held, shape: tuple[int, ...], objective: np.ndarray) -> OutOfFold:
    each = np.full((len(held.rows), *shape), np.nan)
    for found, rows, mean in zip(each, held.rows, held.mean, strict=True):
        found[rows] = mean
    rounds = np.isfinite(each[..., 0]).sum(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row that no round held out has no mean
        return OutOfFold(np.nanmean(each, axis=0), rounds, np.nanstd(each @ objective, axis=0))
