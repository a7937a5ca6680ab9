"""Out-of-fold judgement: how well a regressor predicts mixtures it was not fitted on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mde.errors import UserError, unknown
from mde.regression import estimators

Method = tuple[str, str]  # regressor, feature set


@dataclass(frozen=True)
class Judgement:
    """What `judge` found.

    Attributes:
      objective: a row a method: `regressor`, `features`, `mse` (squared nats per token) and `spearman` of the
        objective, each with its standard error over the repeats (`mse_se`, `spearman_se`), and `n`, the number of
        repeats. The repeats share their observations, so a standard error speaks of the choice of training rows, not of
        new observations.
      domains: the same for every evaluation domain, with a column `domain`.
      predictions: by method, [R, J] nats per token, each row's mean over the repeats that held it out; NaN in a row
        that none did.
    """

    objective: pd.DataFrame
    domains: pd.DataFrame
    predictions: dict[Method, np.ndarray]


def splits(n_rows: int, n_train: int, repeats: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random (training rows, held-out rows); fewer repeats are a prefix of more.

    Raises:
      UserError: fewer than 3 rows would be held out (no rank correlation), fewer than 2 trained on, or no repeat.
    """
    if n_train >= n_rows - 2 or n_train < 2:
        raise UserError(
            f"{n_train} training mixtures of {n_rows} observations: expected at least 2, and at least 3 held out"
        )
    if repeats < 1:
        raise UserError(f"{repeats} repeats, expected at least one")
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(n_rows) for _ in range(repeats))
    return [(np.sort(order[:n_train]), np.sort(order[n_train:])) for order in orders]


def judge(
    observed: np.ndarray,
    domains: Sequence[str],
    designs: Mapping[str, np.ndarray],
    methods: Iterable[Method],
    objective: np.ndarray,
    n_train: int,
    repeats: int = 100,
    seed: int = 0,
    make: Callable[[str], Any] = estimators.make,
) -> Judgement:
    """Fits every method on the same random splits and judges it on the rows held out.

    A method sees the held-out rows' features when it predicts them, and never their losses. The splits depend only on
    (R, n_train, seed), so methods are paired, across calls too.

    Args:
      observed: losses of the trained mixtures, [R, J], nats per token.
      domains: the J evaluation domains.
      designs: by feature set, [R, F] or [R, J, F] from `features.assemble`.
      methods: pairs (regressor, feature set).
      objective: weights of the evaluation domains, [J], summing to one.
      n_train: training rows in each repeat; the others are held out.
      repeats: number of splits.
      seed: of the splits.
      make: regressor name -> unfitted estimator.

    Raises:
      UserError: too few observations for `n_train`; shapes that do not fit; an unknown regressor or feature set.
    """
    observed, objective = np.asarray(observed, dtype=np.float64), np.asarray(objective, dtype=np.float64)
    if observed.ndim != 2 or observed.shape[1] != len(domains) or objective.shape != (len(domains),):
        raise UserError(
            f"observed losses {observed.shape} and objective {objective.shape} for {len(domains)} evaluation domains"
        )
    rows = splits(len(observed), n_train, repeats, seed)
    overall, by_domain, predictions = [], [], {}
    for regressor, features in methods:
        if features not in designs:
            raise unknown("feature set", features, designs)
        design = designs[features]
        if len(design) != len(observed):
            raise UserError(f"feature set {features!r}: {len(design)} rows, expected {len(observed)} as observed")
        predicted = _held_out(make, regressor, design, observed, rows)
        predictions[regressor, features] = _mean_by_row(predicted, rows, observed.shape)
        truth = np.stack([observed[test] for _, test in rows])
        label = {"regressor": regressor, "features": features}
        overall.append(label | _scores(predicted @ objective, truth @ objective))
        by_domain += [
            label | {"domain": domain} | _scores(predicted[..., j], truth[..., j]) for j, domain in enumerate(domains)
        ]
    return Judgement(pd.DataFrame(overall), pd.DataFrame(by_domain), predictions)


def _held_out(
    make: Callable[[str], Any],
    regressor: str,
    design: np.ndarray,
    observed: np.ndarray,
    rows: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """[repeats, held out, J]: a fresh estimator for every split."""
    return np.stack([make(regressor).fit(design[train], observed[train]).predict(design[test]) for train, test in rows])


def _mean_by_row(
    predicted: np.ndarray, rows: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, ...]
) -> np.ndarray:
    total, count = np.zeros(shape), np.zeros((shape[0], 1))
    for losses, (_, test) in zip(predicted, rows, strict=True):
        total[test] += losses
        count[test] += 1
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)


def _scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean and standard error, over repeats, of the error of [repeats, held out] values and of their rank correlation.

    The rank correlation is NaN where predictions are all equal: a constant does not rank.
    """
    mse = np.mean((predicted - truth) ** 2, axis=1)
    spearman = _rank_correlation(predicted, truth)
    return {
        "mse": float(mse.mean()),
        "mse_se": _standard_error(mse),
        "spearman": float(spearman.mean()),
        "spearman_se": _standard_error(spearman),
        "n": len(mse),
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    scale = np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1))
    return np.divide(np.sum(x * y, axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
