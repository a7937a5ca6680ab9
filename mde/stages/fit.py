"""`mde fit`: which regressor predicts the losses of mixtures it has not seen, judged out of fold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.optimization import objectives
from mde.regression import features as feature_sets
from mde.regression import validation
from mde.regression.validation import Method
from mde.stages.evaluate import MERGED
from mde.study import Study

BASELINES = ("lambda", "sqrt", "log")


def fit(
    study: Study,
    objective: str = "avg-all",
    train_mixtures: int = 16,
    repeats: int = 50,
    regressors: Sequence[str] = ("ridge", "gbm"),
    features: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Judges regressors × feature sets on the observations and chooses one.

    The choice is the one with the fewest features whose error on the objective is not clearly more than the least: the
    gap is within the standard error of the two (after the rule of Breiman et al., Classification and Regression Trees,
    1984). Sets with merged features are judged and not chosen, unless `features` names them: a search over mixtures
    would have to run a merged model for every candidate.

    Args:
      study: a study with scored observations and evaluated features.
      objective: weighting of the evaluation domains: avg-sp, avg-et or avg-all.
      train_mixtures: observations that each repeat is fitted on; the rest are held out.
      repeats: random splits, the same for all.
      regressors: names of regressors.
      features: feature sets to try, such as "mde[0]+log"; by default those of `default_features`.
      seed: of the splits.
    """
    inputs = observations(study, objective)
    evaluated = list(inputs.evaluated)
    methods: list[Method] = [("mean", "lambda"), *(("alone", name) for name in evaluated)]
    methods += [(r, s) for r in regressors for s in features or default_features(r, evaluated)]
    designs = {name: inputs.design(name) for name in dict.fromkeys(name for _, name in methods)}
    judged = validation.judge(
        inputs.losses.to_numpy(),
        inputs.domains,
        designs,
        tqdm(methods, "fit", unit="method"),
        inputs.objective,
        train_mixtures,
        repeats,
        seed,
    )
    study.write_table("fit/objective.csv", judged.objective.rename_axis("method"))
    study.write_table("fit/domains.csv", judged.domains.rename_axis("method"))
    study.write_table("fit/predictions.csv", _predictions(inputs, judged))
    learnt = judged.objective[judged.objective["regressor"].isin(list(regressors))]
    if not features:
        learnt = learnt[[MERGED not in feature_sets.evaluated_parts(name) for name in learnt["features"]]]
    least = learnt.iloc[int(learnt["mse"].argmin())]
    near = learnt[learnt["mse"] - least["mse"] <= np.hypot(learnt["mse_se"], least["mse_se"])]
    best = near.iloc[int(np.argmin([designs[name].shape[-1] for name in near["features"]]))]
    study.write_json(
        "fit/choice.json",
        {
            "objective": objective,
            "regressor": best["regressor"],
            "features": best["features"],
            "mse": best["mse"],
            "spearman": best["spearman"],
        },
    )


class Observations:
    """What regressors are fitted on: mixtures, observed losses and evaluated features of the observations."""

    def __init__(self, mixtures: pd.DataFrame, losses: pd.DataFrame, evaluated: dict, objective: np.ndarray):
        self.mixtures = mixtures
        self.losses = losses
        self.evaluated = evaluated
        self.objective = objective

    @property
    def domains(self) -> list[str]:
        """Names of the J evaluation domains."""
        return list(self.losses.columns)

    def design(self, features: str) -> np.ndarray:
        """The design of a feature set for the observations."""
        return feature_sets.assemble(features, self.mixtures.to_numpy(), self.evaluated)


def observations(study: Study, objective: str) -> Observations:
    """The study's observations, joined by run."""
    domains = study.domains
    runs = study.mixtures()
    mixtures = runs.loc[runs["role"] == "observation", list(domains.training)]
    losses = study.losses().loc[mixtures.index]
    evaluated = {name: table.loc[mixtures.index].to_numpy() for name, table in study.features().items()}
    weights = objectives.weights(objective, domains.evaluation, domains.training)
    return Observations(mixtures, losses, evaluated, weights)


def default_features(regressor: str, evaluated: Sequence[str]) -> list[str]:
    """The mixture alone, each evaluated feature, all mixtures of experts together, and these beside log λ.

    Trees see λ, √λ and log λ alike, so they are given λ.
    """
    together = "+".join(name for name in evaluated if name.startswith("mde"))
    sets = dict.fromkeys([*evaluated, together])
    alone, beside = (["lambda"], "lambda") if regressor.startswith("gbm") else (list(BASELINES), "log")
    return [*alone, *sets, *(f"{name}+{beside}" for name in sets)]


def _predictions(inputs: Observations, judged: validation.Judgement) -> pd.DataFrame:
    """A row a method and observation: observed objective and its mean out-of-fold prediction."""
    observed = inputs.losses.to_numpy() @ inputs.objective
    parts = [
        pd.DataFrame(
            {
                "run": inputs.losses.index,
                "regressor": regressor,
                "features": features,
                "observed": observed,
                "predicted": predicted @ inputs.objective,
            }
        )
        for (regressor, features), predicted in judged.predictions.items()
    ]
    return pd.concat(parts).set_index("run")
