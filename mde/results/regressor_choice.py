"""Which regressor `mde fit` chooses, and what it says about the proxy runs on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mde.errors import UserError, reason
from mde.regression import cross_validation, estimators
from mde.regression.cross_validation import MEAN, CrossValidation, Method
from mde.regression.groups import mixture_groups, replicate_variance
from mde.regression.robust import Outlier

CLEARLY = 2  # standard errors by which a difference is clear
TWICE = 2  # times the error of the best at which a method is passed over, however uncertain the errors are
SHOWN = 10  # outlying runs, or names of domains, in a message
NOTHING = "nothing to learn: no regressor predicts better than the mean"
UNCLEAR = "not clear whether there is anything to learn: the best regressor is within two standard errors of the mean"


def choose(cross_validated: CrossValidation, methods: Sequence[Method], designs: Mapping[str, np.ndarray]) -> Method:
    """The method to use, of these and the mean; see `mde fit` for the rule.

    Args:
      cross_validated: scores of these methods and of the mean.
      methods: those that may be chosen; failed ones are not.
      designs: by feature set, for the number of features.
    """
    usable = [method for method in methods if method in cross_validated.rounds.columns and method != MEAN]
    against_mean = cross_validation.compare(cross_validated.rounds[[MEAN, *usable]], cross_validated.ratio)
    better = [method for method in usable if against_mean["mse"][method] < against_mean["mse"][MEAN]]
    if not better:
        return MEAN
    found = cross_validation.compare(cross_validated.rounds[better], cross_validated.ratio)
    error = found["error"].fillna(0)
    close = found["log_ratio"] < np.log(TWICE)
    blends = [method for method in found.index[close & (found["log_ratio"] <= CLEARLY * error)] if method[0] == "auto"]
    if blends:
        return blends[0]
    near = found.index[close & (found["log_ratio"] <= error)]
    return min(near, key=lambda method: designs[method[1]].shape[-1])


def fit_chosen(
    cross_validated: CrossValidation, methods: Sequence[Method], designs: Mapping[str, np.ndarray], losses: np.ndarray
) -> tuple[Method, Any, CrossValidation]:
    """The chosen method, the same fitted on all runs, and the scores, where methods that fail there are marked so.

    Raises:
      UserError: every method failed.
    """
    while True:
        left = [method for method in methods if method in cross_validated.rounds.columns]
        if methods and not left:
            first = cross_validated.objective[cross_validated.objective["failed"] != ""].iloc[0]
            raise UserError(f"every regressor failed; {first['regressor']} on {first['features']}: {first['failed']}")
        chosen = choose(cross_validated, left, designs)
        try:
            fitted = estimators.make(*chosen).fit(designs[chosen[1]], losses)
            if not np.isfinite(fitted.predict(designs[chosen[1]])).all():
                raise ArithmeticError("it predicts a loss that is not finite")
            return chosen, fitted, cross_validated
        except cross_validation.FAILURES as error:
            if chosen == MEAN:
                raise
            cross_validated = _with_failure(cross_validated, chosen, f"on all proxy runs: {reason(error)}")


def _with_failure(cross_validated: CrossValidation, method: Method, why: str) -> CrossValidation:
    """The scores without those of a method that failed."""
    tables = []
    for table in (cross_validated.objective, cross_validated.domains):
        numbers = [str(name) for name in table if name not in ("regressor", "features", "domain", "n", "failed")]
        tables.append(table.assign(**{name: table[name].mask(_of(table, method)) for name in numbers}))
    objective = tables[0].assign(failed=tables[0]["failed"].mask(_of(tables[0], method), why))
    predictions = {name: found for name, found in cross_validated.predictions.items() if name != method}
    rounds = cross_validated.rounds.drop(columns=[method])
    return replace(cross_validated, objective=objective, domains=tables[1], predictions=predictions, rounds=rounds)


def _of(table: pd.DataFrame, method: Method) -> pd.Series:
    """Which rows are of a method."""
    return (table["regressor"] == method[0]) & (table["features"] == method[1])


def told_of_mean(cross_validated: CrossValidation, chosen: Method) -> list[str]:
    """A line where the chosen method is the mean, or not clearly better than it."""
    if chosen == MEAN:
        return [NOTHING]
    found = cross_validation.compare(cross_validated.rounds[[MEAN, chosen]], cross_validated.ratio)
    return [] if found["log_ratio"][MEAN] > CLEARLY * found["error"].fillna(0)[MEAN] else [UNCLEAR]


def unresponsive(cross_validated: CrossValidation, chosen: Method, methods: Sequence[Method]) -> list[str]:
    """Evaluation domains whose loss the chosen method does not predict better than the mean does.

    Better is: by more than a standard error. Where the mean itself is chosen, the best of the other methods counts.
    """
    if chosen == MEAN:
        usable = [method for method in methods if method in cross_validated.rounds.columns and method != MEAN]
        if not usable:
            return []
        chosen = cross_validation.compare(cross_validated.rounds[usable], cross_validated.ratio).index[0]
    rows = cross_validated.domains[_of(cross_validated.domains, chosen)]
    return [str(name) for name in rows.loc[~(rows["gain"] > rows["gain_se"].fillna(0)), "domain"]]


def constant(losses: pd.DataFrame) -> list[str]:
    """Evaluation domains whose loss is the same in all runs."""
    values = losses.to_numpy()
    flat = np.ptp(values, axis=0) <= 1e-12 * np.maximum(1, np.abs(values).max(axis=0))
    return [str(name) for name in losses.columns[flat]]


def scored_weights(objective: np.ndarray, losses: pd.DataFrame) -> np.ndarray:
    """Weights of the objective [J] without the constant evaluation domains.

    Raises:
      UserError: all domains of the objective are constant.
    """
    weights = np.where(losses.columns.isin(constant(losses)), 0.0, objective)
    if not weights.any():
        raise UserError(
            f"all {np.count_nonzero(objective)} evaluation domains of the objective have the same loss in all "
            f"{len(losses)} proxy runs: nothing to learn"
        )
    return weights / weights.sum()


def without_outliers(outliers: Sequence[Outlier], rows: int) -> np.ndarray:
    """Mask of the runs [R] that have no outlying loss."""
    kept = np.ones(rows, bool)
    kept[[one.row for one in outliers]] = False
    return kept


def noise(mixtures: pd.DataFrame, losses: pd.DataFrame, objective: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Noise of a run from replicates: `freedom`, and standard deviations of the `objective` and by `domains`.

    Empty without replicates.

    Args:
      mixtures: [R, K].
      losses: [R, J].
      objective: weights, [J].
      kept: mask of the runs to use, [R].
    """
    groups, values = mixture_groups(mixtures.to_numpy())[kept], losses.to_numpy()[kept]
    if len(groups) == 0:
        return {}
    variance, freedom = replicate_variance(np.column_stack([values @ objective, values]), groups)
    if not freedom:
        return {}
    deviation, *domains = np.sqrt(variance).tolist()
    return {
        "freedom": freedom,
        "objective": deviation,
        "domains": dict(zip(map(str, losses.columns), domains, strict=True)),
    }


def told_of_noise(found: Mapping[str, Any], mse: float) -> str:
    """The noise of a run, in a sentence."""
    share = found["objective"] ** 2 / mse if mse > 0 else np.inf
    part = f"{share:.0%} of the MSE" if share < 1 else "all of the MSE"
    return (
        f"noise of a run: a standard deviation of {found['objective']:.2g} on the objective, from "
        f"{found['freedom']} degrees of freedom of replicates; it explains {part}"
    )


def outlier_table(outliers: Sequence[Outlier], losses: pd.DataFrame) -> pd.DataFrame:
    """One row per outlying loss: run, domain, loss and deviations."""
    rows = [
        (losses.index[one.row], losses.columns[one.target], losses.iat[one.row, one.target], one.deviations)
        for one in outliers
    ]
    return pd.DataFrame(rows, columns=["run", "domain", "loss", "deviations"]).set_index("run")


def told_of_outliers(table: pd.DataFrame) -> list[str]:
    """A line per outlying run: by how much, where, and how to leave it out."""
    lines = []
    for run, rows in table.groupby(level=0, sort=False):
        worst = rows.iloc[0]
        side = "above" if worst["deviations"] > 0 else "below"
        more = f" and on {len(rows) - 1} more" if len(rows) > 1 else ""
        lines.append(
            f"run {run} is {abs(worst['deviations']):.0f} deviations {side} what its neighbours say on "
            f"{worst['domain']}{more}; --drop={run} leaves it out"
        )
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more runs: see fit/outliers.csv"]
    return lines


def told_of_swarm(mixtures: pd.DataFrame, losses: pd.DataFrame) -> list[str]:
    """What is unusual about the runs: few of them, domains that cannot be told apart, losses that never change."""
    weights, runs = mixtures.to_numpy(), len(mixtures)
    groups = int(mixture_groups(weights).max()) + 1
    lines = []
    if groups < runs:
        lines.append(f"{runs} proxy runs of {groups} mixtures: replicates stay together in every split")
    if groups < weights.shape[1]:
        lines.append(
            f"{groups} mixtures of {weights.shape[1]} domains: fewer than one per domain, so little can be said"
        )
    never = untrained(mixtures)
    if never:
        lines.append(f"no proxy run has trained on {listed(never)}: nothing is known about it, so give it no weight")
    once = (weights > 0).sum(axis=0) == 1
    for name, column in zip(mixtures.columns[once], weights[:, once].T, strict=True):
        lines.append(f"only run {mixtures.index[column.argmax()]} has trained on {name}: its effect cannot be checked")
    same = (np.ptp(weights, axis=0) < 1e-8) & (weights.max(axis=0) > 0)
    if fixed := list(mixtures.columns[same]):
        lines.append(
            f"the same weight in all proxy runs: {listed(fixed)}; the effect is unknown, and the "
            "weight is dropped from the features"
        )
    if flat := constant(losses):
        lines.append(f"the same loss in all proxy runs: {listed(flat)}; left out of the choice of the regressor")
    return lines


def untrained(mixtures: pd.DataFrame) -> list[str]:
    """Training domains that no run has a weight of."""
    return [str(name) for name in mixtures if not (mixtures[name] > 0).any()]


def listed(names: Sequence[Any]) -> str:
    """Names in a line, the first few of many."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
