"""The proof of `mde scale`: the predicted mixture and its rivals, trained at the target budget."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mde.regression import blocks
from mde.stages import scale_runs
from mde.study import Study

PREDICTED = "predicted"


def plan(
    names: Sequence[str], mixtures: Mapping[str, np.ndarray], steps: int, seeds: Sequence[int], per_step: int
) -> pd.DataFrame:
    """The runs: each mixture at the target with every seed, and with the first seed at half of the target."""
    rows, order = [], []
    for label, shares in mixtures.items():
        for length, seed in [(steps, seed) for seed in seeds] + [(round(steps / 2), seeds[0])]:
            rows.append((length, label, "", length, shares * length))
            order.append(seed)
    return scale_runs.table(names, rows, order, per_step)


def prove(study: Study, training: scale_runs.Training, runs: pd.DataFrame, goal: np.ndarray) -> None:
    """Trains the runs of `plan`, and writes them, their losses and the summary to the study."""
    losses = training.losses(runs)
    study.write_table("scale/proof_runs.csv", runs)
    study.write_table("scale/proof_losses.csv", losses)
    study.write_table("scale/proof.csv", summary(runs, losses, goal))


def summary(runs: pd.DataFrame, losses: pd.DataFrame, goal: np.ndarray) -> pd.DataFrame:
    """A row a mixture: how it compares at the target budget, and how many tokens it would need to be as good.

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
    target = int(table["steps"].max())
    labels = list(dict.fromkeys(table["role"]))
    at_SxM = table[table["steps"] == target].pivot(index="seed", columns="role", values="objective")[labels]
    half = table[table["steps"] < target].set_index("role").loc[labels]
    found = blocks.compare(at_SxM, PREDICTED).rename(columns={"measured": "objective"})
    found["slope"] = half["objective"].to_numpy() - at_SxM.loc[half["seed"].iloc[0]].to_numpy()
    growth = target / half["steps"].to_numpy()
    found["tokens_to_equal"] = blocks.tokens_to_equal(found["difference"], found["slope"], growth)
    return found[["objective", "difference", "error", "slope", "tokens_to_equal"]]
