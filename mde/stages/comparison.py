"""Mixtures that have a name, trained with several seeds and scored: what `mde prove` and `mde final` have in common."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde import hosts
from mde.stages import problem
from mde.stages.fit import observations
from mde.stages.mixtures import objective_of
from mde.stages.predict import Predictor
from mde.stages.score import score_choices, score_runs
from mde.study import Study, digest

SEED = 0  # of the folds of intervals, where a regressor has no deviations of its own


def runs(mixtures: pd.DataFrame, seeds: Sequence[int], prefix: str) -> pd.DataFrame:
    """The table of runs: each mixture [M, K] with each seed, columns role (its name), seed and one a domain.

    A run is named by its mixture, what it is called and what it is, so another mixture of the same name is another run.
    """
    rows, index = [], []
    for label, shares in mixtures.iterrows():
        called, what = re.sub(r"[^\w.-]+", "-", str(label)).strip("-"), digest(shares.to_dict())[:6]
        for seed in seeds:
            index.append(f"{prefix}-{called}-{what}-{seed}")
            rows.append({"role": label, "seed": seed, **shares})
    return pd.DataFrame(rows, pd.Index(index, name="run"))[["role", "seed", *mixtures]]


def scored(study: Study, about: Mapping[str, Any], table: pd.DataFrame, folder: str = "") -> pd.DataFrame:
    """Scores the trained runs of a table and leaves it, their losses and accuracies in a folder of the study.

    Args:
      study: the study that holds the runs.
      about: how they are scored: the content of `scoring.json`.
      table: of the runs.
      folder: where the tables go; its name ends with a slash.

    Returns:
      Losses [runs, J] in nats per token.
    """
    losses = score_runs(study, about, list(table.index))
    if (accuracies := score_choices(study, about, list(table.index))) is not None:
        study.write_table(f"{folder}accuracies.csv", accuracies)
    study.write_table(f"{folder}mixtures.csv", table)
    study.write_table(f"{folder}losses.csv", losses)
    hosts.wait("the tables of the runs are written")
    return losses


def predictions(study: Study, mixtures: pd.DataFrame) -> pd.DataFrame:
    """What the chosen regressor says of mixtures [M, K]: columns predicted, low and high of the objective.

    Those that `mde optimize` has predicted keep their prediction.
    """
    optimum = study.read_json("optimum.json", "optimize")
    known = {
        label: [found["objective"], *found["objective_interval"]]
        for label, found in optimum["predictions"].items()
        if label in mixtures.index and np.allclose([found["mixture"][name] for name in mixtures], mixtures.loc[label])
    }
    new = mixtures.drop(index=list(known))
    if len(new):
        goal, predictor = objective_of(study), Predictor(study)
        inputs = observations(study, study.read_json("fit/choice.json", "fit")["objective"])
        level = optimum["interval_level"]
        bounds = problem.intervals(predictor, inputs, goal, new.to_numpy(), level, SEED)
        predicted = goal(predictor(new.to_numpy()))
        known |= {label: [value, *row] for label, value, row in zip(new.index, predicted, bounds, strict=True)}
    found = pd.DataFrame.from_dict(known, orient="index", columns=["predicted", "low", "high"])
    return found.loc[mixtures.index].rename_axis("mixture")
