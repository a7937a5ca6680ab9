"""`mde prove`: train the recommended mixture and its rivals, and see who wins."""

import numpy as np
import pandas as pd

from mde.errors import check_positive
from mde.optimization import objectives
from mde.stages.score import score_choices, score_runs
from mde.stages.train import train_runs
from mde.study import Study, digest


def prove(study: Study, seeds: int = 3, first_seed: int = 1, checkpoint_every: int = 500) -> None:
    """Trains the recommended mixture, uniform, proportional and the best one observed, each with several data orders.

    The seeds are others than the observations', so that the best observed mixture has no luck left from being chosen.
    Runs are named by their mixture: another recommendation is trained anew, and rivals that stay are kept.

    Args:
      study: a study with an optimum.
      seeds: runs of each mixture.
      first_seed: seed of the first one.
      checkpoint_every: steps between states to resume from.
    """
    check_positive(seeds=seeds, checkpoint_every=checkpoint_every)
    optimum = study.read_json("optimum.json", "optimize")
    names = list(study.domains.training)
    rows, index = [], []
    for label, predicted in optimum["predictions"].items():
        for seed in range(first_seed, first_seed + seeds):
            index.append(f"proof-{label.replace(' ', '-')}-{digest(predicted['mixture'])[:6]}-{seed}")
            rows.append({"role": label, "seed": seed, **predicted["mixture"]})
    table = pd.DataFrame(rows, pd.Index(index, name="run"))[["role", "seed", *names]]
    train_runs(study, study.read_json("training.json", "train"), table, checkpoint_every)
    scoring = study.read_json("scoring.json", "score")
    losses = score_runs(study, scoring, list(table.index))
    if (accuracies := score_choices(study, scoring, list(table.index))) is not None:
        study.write_table("proof/accuracies.csv", accuracies)
    study.write_table("proof/mixtures.csv", table)
    study.write_table("proof/losses.csv", losses)
    study.write_table("proof/summary.csv", summary(study, table, losses, optimum))


def summary(study: Study, table: pd.DataFrame, losses: pd.DataFrame, optimum: dict) -> pd.DataFrame:
    """A row a mixture: predicted and measured objective, its spread over seeds, its rank among all that was trained.

    Columns: predicted, low and high (its interval), measured, noise (standard deviation over seeds), rank (1 is best,
    among these mixtures and the observations) and of (how many there are). Nats per token.
    """
    goal = objectives.recorded(optimum, study.domains.evaluation, study.domains.training)
    trained = study.mixtures()
    observed = goal(study.losses().loc[trained.index[trained["role"] == "observation"]].to_numpy())
    measured = pd.Series(goal(losses.to_numpy()), losses.index).groupby(table["role"], sort=False).agg(["mean", "std"])
    everything = np.concatenate([measured["mean"].to_numpy(), observed])
    rows = {}
    for label, predicted in optimum["predictions"].items():
        mean, noise = measured.loc[label, ["mean", "std"]]
        low, high = predicted["objective_interval"]
        rows[label] = {
            "predicted": predicted["objective"],
            "low": low,
            "high": high,
            "measured": mean,
            "noise": noise,
            "rank": int((everything < mean).sum()) + 1,
            "of": len(everything),
        }
    result = pd.DataFrame.from_dict(rows, orient="index")
    result.index.name = "mixture"
    return result
