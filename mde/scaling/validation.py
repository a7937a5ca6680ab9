"""The validation of `mde scale`: the predicted mixture and its baselines, trained at the target budget."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde.errors import UserError
from mde.regression import blocks
from mde.scaling import runs as scale_runs
from mde.study import Study

PREDICTED = "predicted"
LARGEST, SMALLEST = "optimum at the largest budget", "optimum at the smallest budget"  # as they are, not carried on


def candidates(names: Sequence[str], carried: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The predicted mixture [K], and those optima at small budgets that it has to beat to be worth the carrying.

    Args:
      names: the K domains.
      carried: the optima and where they lead, as `scale.json` has them.
    """
    found = {PREDICTED: carried["tokens"], LARGEST: carried["optima"][-1], SMALLEST: carried["optima"][0]}
    return {label: scale_runs.weights_of(names, quantities) for label, quantities in found.items()}


def affordable(
    mixtures: Mapping[str, np.ndarray],
    planned: Callable[[Mapping[str, np.ndarray]], pd.DataFrame],
    available: Mapping[str, float],
    max_epochs: float,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The mixtures whose runs at the target read no domain too often, and of the others why not.

    Optima of smaller budgets may ask for more of a domain than there is at the target; the prediction heeds it.

    Args:
      mixtures: the predicted one and its baselines.
      planned: the runs of mixtures.
      available: tokens by domain.
      max_epochs: how often a domain may be read.

    Raises:
      UserError: it is the predicted one.
    """
    kept, left_out = {}, {}
    for label, weights in mixtures.items():
        try:
            scale_runs.check_epochs(planned({label: weights}), available, max_epochs)
            kept[label] = weights
        except UserError as reason:
            if label == PREDICTED:
                raise
            left_out[label] = str(reason)
    return kept, left_out


def plan(
    names: Sequence[str], mixtures: Mapping[str, np.ndarray], steps: int, seeds: Sequence[int], per_step: int
) -> pd.DataFrame:
    """The runs: each mixture at the target with every seed, and with the first seed at half of the target."""
    rows, order = [], []
    for label, weights in mixtures.items():
        for length, seed in [(steps, seed) for seed in seeds] + [(round(steps / 2), seeds[0])]:
            rows.append((length, label, "", length, weights * length))
            order.append(seed)
    return scale_runs.table(names, rows, order, per_step)


def validate(study: Study, training: scale_runs.Training, runs: pd.DataFrame, goal: np.ndarray) -> None:
    """Trains the runs of `plan`, and writes them, their losses and the summary to the study."""
    losses = training.losses(runs)
    study.write_table("scale/validation_runs.csv", runs)
    study.write_table("scale/validation_losses.csv", losses)
    study.write_table("scale/validation.csv", summary(runs, losses, goal))


def summary(runs: pd.DataFrame, losses: pd.DataFrame, goal: np.ndarray) -> pd.DataFrame:
    """One row per mixture: how it compares at the target budget, and how many tokens it would need to be as good.

    Runs share their seeds, and with them their data orders, so seeds are blocks: the error of a difference is that of
    what is left when each mixture's and each seed's mean is taken away. Tokens to equal loss: the mixture's own
    objective falls from half of the target to the target by so much (runs of the first seed); on a straight line in the
    logarithm of the tokens, it comes to the predicted mixture's objective at `tokens_to_equal` times the target.

    Columns: objective (mean over seeds), difference (to the predicted mixture), error (of a difference; NaN for one
    seed), slope (fall of the objective for the last doubling of tokens) and tokens_to_equal.

    Args:
      runs: those of `plan`.
      losses: of these, [runs, J], in their order.
      goal: weight of each evaluation domain, [J].
    """
    table = runs[["role", "steps", "seed"]].assign(objective=losses.to_numpy() @ goal)
    found = blocks.compare_runs(table, PREDICTED).rename(columns={"measured": "objective"})
    return found[["objective", "difference", "error", "slope", "tokens_to_equal"]]
