"""The runs of `mde scale`: planned, trained and scored here, or read from somebody else's tables.

A table of runs has columns `budget` (tokens of the base run), `seed`, and one per training domain with its quantity of
tokens. A planned one has `role`, `domain` and `steps` beside them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde.data import epochs
from mde.errors import UserError
from mde.regression import swarm
from mde.study import Study, digest

ABOUT = ("budget", "role", "domain", "steps", "seed")  # columns that are no quantities
_MISSED = 0.5  # by how much of itself a factor may be missed where steps are whole


class Training:
    """How the runs are trained: as those of the study, or with other settings.

    Args:
      study: a study with scored runs, whose evaluation text is used.
      settings: what differs from the study's.
      from_seed_model: whether runs continue from the study's seed model.
      checkpoint_every: steps between states to resume from.

    Attributes:
      per_step: tokens of an optimizer step.

    Raises:
      UserError: the study has no seed model, or is one of proxy runs from elsewhere; another length of sequences.
    """

    def __init__(
        self, study: Study, settings: Mapping[str, Any] | None, from_seed_model: bool, checkpoint_every: int
    ) -> None:
        self._study, self._every = study, checkpoint_every
        self._scoring = study.read_json("scoring.json", "score")
        about = study.read_json("training.json", "train")
        if from_seed_model and about["seed_settings"] is None:
            raise UserError(f"study {study} has no seed model to continue from")
        if "seq_len" in (settings or {}):
            raise UserError("settings: runs are scored in sequences as long as the study's, seq_len cannot be another")
        self._about = {
            **about,
            "settings": {**about["settings"], **(settings or {})},
            "seed_settings": about["seed_settings"] if from_seed_model else None,
        }
        self.per_step = self._about["settings"]["batch_size"] * about["settings"]["seq_len"]

    def steps(self, budgets: Sequence[float], target: float | None, unit: str) -> tuple[list[int], int | None]:
        """Steps of the base runs and of the target.

        Raises:
          UserError: no budgets, budgets that do not increase, a target below them.
        """
        size = self.per_step if unit == "tokens" else 1
        steps = [round(budget / size) for budget in budgets]
        if not steps or steps[0] < 1 or not (np.diff(steps) > 0).all():
            given = ", ".join(f"{budget:g}" for budget in budgets) or "none"
            raise UserError(f"budgets of {given} {unit}: expected one or more that increase, of at least {size} tokens")
        if target is None:
            return steps, round(steps[-1] ** 2 / steps[-2]) if len(steps) > 1 else None
        if len(steps) < 2:
            raise UserError(f"target of {target:g} {unit}: one budget says nothing of others, give two or more")
        if round(target / size) < steps[-1]:
            raise UserError(f"target of {target:g} {unit}, expected at least the largest budget, {budgets[-1]:g}")
        return steps, round(target / size)

    def losses(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Trains and scores what is not done yet; losses [runs, J] in nats per token, in the order of the table."""
        from mde.results.scored_text import score_runs
        from mde.results.trained_runs import train_runs
        from mde.results.training_options import Running

        names = list(self._study.domains.training)
        once = runs[~runs.index.duplicated()]
        weights = once[names].div(once[names].sum(axis=1), axis=0)
        running = Running(checkpoint_every=self._every)
        train_runs(self._study, self._about, once[["role", "seed", "steps"]].join(weights), running)
        losses = score_runs(self._study, self._scoring, list(once.index))
        return losses.loc[runs.index, list(self._study.domains.evaluation)]


def plan(
    names: Sequence[str], base: np.ndarray, steps: Sequence[int], factor: float, seeds: Sequence[int], per_step: int
) -> pd.DataFrame:
    """The runs of DDO at each budget: the base mixture, and each domain divided and multiplied by a factor.

    Other domains keep their quantities to the token; what rounding to whole steps moves goes to the changed domain.

    Args:
      names: the K domains.
      base: weights of the base run, [K].
      steps: of the base run at each budget.
      factor: above 1.
      seeds: of every run.
      per_step: tokens of an optimizer step.

    Raises:
      UserError: a weight that is zero, or so small a budget that whole steps miss the factor.
    """
    if not factor > 1:
        raise UserError(f"factor={factor!r}, expected a number above 1")
    if not (base > 0).all():
        raise UserError(
            f"base mixture: domain {names[int(np.argmin(base))]!r} has no weight, so it cannot be multiplied"
        )
    rows = []
    for n in steps:
        rows.append((n, "base", "", n, base * n))
        for k, name in enumerate(names):
            for role, times in (("less", 1 / factor), ("more", factor)):
                length = round(n * (1 + (times - 1) * base[k]))
                quantity = length - n * (1 - base[k])
                if abs(quantity / (n * base[k] * times) - 1) > _MISSED:
                    raise UserError(
                        f"budget of {n} steps: whole steps cannot give {times:.3g} times as much of domain {name!r}, "
                        f"{n * base[k]:.3g} steps; take a larger budget"
                    )
                rows.append((n, role, name, length, np.where(np.arange(len(names)) == k, quantity, base * n)))
    return table(names, [row for row in rows for _ in seeds], list(seeds) * len(rows), per_step)


def table(
    names: Sequence[str], rows: Sequence[tuple[int, str, str, int, np.ndarray]], seeds: Sequence[int], per_step: int
) -> pd.DataFrame:
    """A table of runs; a run is named by what is trained, so that what two tables have in common is trained once.

    Args:
      names: the K domains.
      rows: a run each: steps of its budget's base run, role, domain, its own steps, quantities [K] in steps.
      seeds: of the runs.
      per_step: tokens of an optimizer step.
    """
    records, index = [], []
    for (n, role, domain, length, quantities), seed in zip(rows, seeds, strict=True):
        index.append(f"scale-{length}-{digest(np.round(quantities / length, 9))[:6]}-{seed}")
        tokens = dict(zip(names, quantities * per_step, strict=True))
        about = {"budget": n * per_step, "role": role, "domain": domain, "steps": length, "seed": seed}
        records.append({**about, **tokens})
    return pd.DataFrame(records, pd.Index(index, name="run"))


def check_epochs(runs: pd.DataFrame, available: Mapping[str, float], max_epochs: float) -> None:
    """Raises UserError at the domain that some run repeats most, if that is more often than allowed."""
    names = list(available)
    tokens_RxK = runs[names].to_numpy(float)
    repeats = tokens_RxK / np.array([available[name] for name in names])
    r, k = map(int, np.unravel_index(int(repeats.argmax()), repeats.shape))
    if repeats[r, k] > max_epochs * (1 + 1e-9):
        raise UserError(
            f"run {runs.index[r]!r}: {tokens_RxK[r, k]:,.0f} tokens of domain {names[k]!r}, which has "
            f"{available[names[k]]:,.0f}: {repeats[r, k]:.2f} epochs; take smaller budgets or a smaller factor, or "
            f"allow them with max_epochs (now {max_epochs:g}; up to {epochs.LIMIT:g} cost little)"
        )


def read_runs(quantities: str, losses: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Somebody else's runs: a table of runs, and their losses [runs, J].

    Args:
      quantities: a CSV file: columns `run`, `budget` in tokens, `seed` where runs are repeated, and the domains.
      losses: a CSV file: a column `run`, and one an evaluation domain.

    Raises:
      UserError: what is wrong with a file, or a run that only one of them has.
    """
    runs, observed = swarm.read_numbers(quantities).values, swarm.read_losses(losses).values
    if "budget" not in runs:
        raise UserError(f"{quantities}: no column 'budget' (tokens of the base run); found {', '.join(map(str, runs))}")
    for here, there, file, other in ((runs, observed, losses, quantities), (observed, runs, quantities, losses)):
        if len(missing := here.index.difference(there.index, sort=False)):
            raise UserError(f"{file}: no row for run {missing[0]!r} of {other}; {len(missing)} such runs in all")
    if "seed" not in runs:
        runs.insert(1, "seed", 0)
    return runs, observed.loc[runs.index]


def weights_of(names: Sequence[str], quantities: Mapping[str, float]) -> np.ndarray:
    """Weights [K] of quantities by domain."""
    tokens = np.array([quantities[name] for name in names])
    return tokens / tokens.sum()
