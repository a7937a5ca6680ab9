"""What the runs of `mde scale` say: fits at each budget, optima, and where these lead."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde.errors import UserError, check_positive, unknown
from mde.optimization import objectives
from mde.scaling import Effects, Point, cross_effects, draw_laws, fit_path, measured_effects, not_known, solve
from mde.scaling.effects import FITS
from mde.scaling.prediction import cautions
from mde.study import Study

LEVEL = 0.9  # of the intervals
ROUNDED = 0.01  # by how much a base run may miss its budget


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is asked of the runs, whoever trained them.

    Attributes:
      target: tokens of the run that the mixture is wanted for; by default one step as large as the last one.
      objective: avg-sp, avg-et, avg-all, or weights by evaluation domain.
      fit: domain, each law through its own three losses, or joint, all laws at once.
      nearest: whether a domain whose losses no law fits, such as one that does not help the objective, gets the nearest
        law, which may be flat; it is not accepted otherwise.
      floor: min quantity of a domain at a budget, in base quantities; by default as little as was measured.
      tokens: available tokens per domain; those of the study by default.
      max_epochs: how often a domain may be read by a run and by the optima.
      noise: standard deviation of a run's objective where it is known from elsewhere, in the unit of the losses.
      resamples: draws of the power laws that the runs allow under this noise; the best mixtures at the target under
        them are the interval.
      seed: of the first data order, the noise and the search.
    """

    target: float | None = None
    objective: str | Mapping[str, float] = "avg-all"
    fit: str = "domain"
    nearest: bool = False
    floor: float | None = None
    tokens: Mapping[str, float] | None = None
    max_epochs: float = 1.0
    noise: float | None = None
    resamples: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(resamples=self.resamples, max_epochs=self.max_epochs)
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise UserError(f"noise={self.noise}, expected a standard deviation, zero or more")
        if self.fit not in FITS:
            raise unknown("fit", self.fit, FITS)

    def upper(self, names: Sequence[str]) -> np.ndarray:
        """Tokens that each domain may take at most, epochs included, [K]."""
        tokens = self.tokens or {}
        for name in tokens:
            if name not in names:
                raise unknown("domain in tokens", name, names)
        return self.max_epochs * np.array([tokens.get(name, np.inf) for name in names])

    def goal(self, evaluated: Sequence[str], names: Sequence[str]) -> np.ndarray:
        """Weight of each evaluation domain, [J]."""
        found = objectives.make(self.objective, evaluated, names)
        if found.worst:
            raise UserError(f"objective {self.objective!r}: power laws add up for averages only, not for a worst case")
        return found.weights

    def carried(self, names: Sequence[str], optima: np.ndarray) -> dict[str, Any]:
        """The optima [M, K] and where their line leads."""
        by_name = lambda values: dict(zip(names, values, strict=True))  # noqa: E731
        found: dict[str, Any] = {"budgets": optima.sum(axis=1), "optima": list(map(by_name, optima))}
        if len(optima) == 1 and self.target is None:
            return found
        path, upper = fit_path(names, optima), self.upper(names)
        target = self.target or path.budgets[-1] ** 2 / path.budgets[-2]
        found |= {"target": target, "tokens": by_name(path.at(target, upper)), "misfit": path.misfit}
        found["cautions"] = path.cautions(target, upper / self.max_epochs, max_epochs=self.max_epochs)
        return found

    def interval(
        self, measured: Sequence[Effects], goal: np.ndarray, noise: tuple[float, float], target: float
    ) -> dict[str, Any]:
        """Weights at the target under all laws that the runs allow: mean and interval by domain, or why not known.

        Args:
          measured: effects at each budget.
          goal: weight of each evaluation domain, [J].
          noise: of a run, and its degrees of freedom.
          target: tokens.
        """
        names = measured[0].names
        draws = draw_laws(measured, goal, noise, target, self.resamples, self.seed)
        if reason := not_known(measured, draws, target):
            return {"not_known": reason}
        weights_nxK = draws.optima(target, self.upper(names)) / target
        ends = np.quantile(weights_nxK, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
        return {
            "level": LEVEL,
            "mean": dict(zip(names, weights_nxK.mean(axis=0), strict=True)),
            "weights": dict(zip(names, ends, strict=True)),
        }


def answer(study: Study, terms: Terms, names: list[str], runs: pd.DataFrame, observed: pd.DataFrame) -> dict[str, Any]:
    """What the runs of all budgets say, as it stands in `scale.json`; writes the cross-effects.

    Raises:
      UserError: runs that do not make a design, losses that no law fits, bounds that no quantities obey.
    """
    evaluated = [str(name) for name in observed]
    goal = terms.goal(evaluated, names)
    measured = list(_measured(names, terms.fit, runs, observed))
    upper = terms.upper(names)
    points = [solve(each, goal, terms.fit, terms.floor, upper, terms.nearest) for each in measured]
    study.write_table("scale/effects.csv", _cross_effects(measured, evaluated))
    noise = (terms.noise, np.inf) if terms.noise is not None else _noise(measured, goal)
    carried = terms.carried(names, np.array([point.optimum for point in points]))
    if noise and "target" in carried:
        carried |= terms.interval(measured, goal, noise, carried["target"])
    return {
        "domains": names,
        "objective": terms.objective,
        "fit": terms.fit,
        "noise": noise[0] if noise else None,
        "seeds": measured[0].repeats,
        "tokens": terms.tokens,
        "points": [_described(point) for point in points],
        "ddo": carried,
        "cautions": cautions(points),
    }


def _measured(names: list[str], fit: str, runs: pd.DataFrame, observed: pd.DataFrame) -> Iterator[Effects]:
    """The effects at each budget, the smallest first."""
    roles = ("base", "less", "more", "mixture") if fit == "joint" else ("base", "less", "more")
    used = runs[runs["role"].isin(roles)] if "role" in runs else runs
    for budget in sorted(map(float, used["budget"].unique())):
        rows = used[used["budget"] == budget].sort_values("seed", kind="stable")
        found = measured_effects(
            names,
            list(map(str, rows.index)),
            rows[names].to_numpy(),
            observed.loc[rows.index].to_numpy(),
            list(rows["seed"]),
        )
        if abs(found.budget / budget - 1) > ROUNDED:
            raise UserError(f"budget of {budget:,.0f} tokens: its base run has {found.budget:,.0f}")
        if fit == "domain" and len(found.others):
            raise UserError(
                f"budget of {budget:,.0f} tokens: {len(found.others)} runs change several domains, of which only a "
                "joint fit learns: give --fit=joint, or leave them out"
            )
        yield found


def _noise(measured: Sequence[Effects], goal: np.ndarray) -> tuple[float, float] | None:
    """Standard deviation of a run's objective over seeds, pooled over the budgets, and its degrees of freedom.

    None for one seed each.
    """
    known = [(each.deviation(goal), 2 * len(each.names) * (each.repeats - 1)) for each in measured if each.repeats > 1]
    if not known:
        return None
    deviations, freedoms = np.array(known, float).T
    return float(np.sqrt(np.average(deviations**2, weights=freedoms))), float(freedoms.sum())


def _cross_effects(measured: Sequence[Effects], evaluated: list[str]) -> pd.DataFrame:
    """One row per budget and training domain: the fall of each evaluation domain's loss from less to more of it."""
    tables = [
        pd.DataFrame(cross_effects(each.less, each.more), pd.Index(each.names, name="domain"), evaluated)
        for each in measured
    ]
    return (
        pd.concat(tables, keys=[each.budget for each in measured], names=["budget"]).reset_index().set_index("domain")
    )


def _described(point: Point) -> dict[str, Any]:
    """A point as it stands in `scale.json`; tokens by domain, losses as they were measured."""
    laws = point.laws
    columns = {
        "base": point.effects.base,
        "optimum": point.optimum,
        "held": point.held,
        "offset": laws.offset,
        "exponent": laws.exponent,
        "floor": laws.floor,
        "misfit": laws.misfit,
    }
    return {
        "budget": point.effects.budget,
        "base_loss": laws.level,
        "predicted_loss": float(laws.loss(point.optimum)),
        "domains": {name: {key: column[k] for key, column in columns.items()} for k, name in enumerate(laws.names)},
    }
