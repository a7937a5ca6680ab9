"""The optimum at a budget by mixtures of data experts, from experts and a few mixtures trained at that budget."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde.optimization import search, simplex
from mde.optimization.constraints import Bounds
from mde.regression import estimators
from mde.regression import features as feature_sets
from mde.scaling import runs as scale_runs
from mde.study import Study

FEATURES = "mde[0]+log"


def plan(names: Sequence[str], steps: Sequence[int], mixtures: int, seed: int, per_step: int) -> pd.DataFrame:
    """The runs: at each budget one expert per domain, and mixtures spread over the simplex (the same for all)."""
    drawn = simplex.space_filling(mixtures, len(names), seed)
    rows = [(n, "expert", names[k], n, n * corner) for n in steps for k, corner in enumerate(np.eye(len(names)))]
    rows += [(n, "mixture", "", n, n * weights) for n in steps for weights in drawn]
    return scale_runs.table(names, rows, [seed] * len(rows), per_step)


def optima(
    study: Study,
    runs: pd.DataFrame,
    losses: pd.DataFrame,
    goal: np.ndarray,
    lower: Mapping[str, float],
    upper: np.ndarray,
    seed: int,
) -> np.ndarray:
    """The mixture of lowest predicted objective at each budget, as tokens [M, K].

    Args:
      study: a study in which the runs were scored.
      runs: those of `plan`, and base runs, which are mixtures too.
      losses: of these, [runs, J].
      goal: weight of each evaluation domain, [J].
      lower: min weights, by domain.
      upper: tokens that each domain may take at most, epochs included, [K].
      seed: of the search.
    """
    found = []
    for budget in sorted(map(float, runs["budget"].unique())):
        here = runs[runs["budget"] == budget]
        names = study.domains.training
        most = dict(zip(names, np.minimum(upper / budget, 1.0), strict=True))
        region = Bounds(names, lower, most).region
        found.append(_optimum(study, here, losses.loc[here.index], goal, region, seed) * budget)
    return np.array(found)


def _optimum(
    study: Study, runs: pd.DataFrame, losses: pd.DataFrame, goal: np.ndarray, region: Any, seed: int
) -> np.ndarray:
    """The best mixture [K] at one budget: ridge on the mixture of this budget's experts and log λ."""
    from mde.evaluation import MixtureLosses
    from mde.results.scored_text import evaluation_data, log_probs_of

    scoring, names = study.read_json("scoring.json", "score"), list(study.domains.training)
    experts = list(runs.index[runs["role"] == "expert"])
    data = evaluation_data(study, scoring)
    mixed = MixtureLosses(
        log_probs_of(study, scoring, experts),
        data.segment_ids,
        data.sequence_ids,
        domains=data.domains,
        experts=experts,
    )

    def design(mixtures: np.ndarray) -> np.ndarray:
        return feature_sets.assemble(FEATURES, mixtures, {"mde[0]": mixed(mixtures)})

    observed = runs[runs["role"].isin(["mixture", "base"])]
    mixtures = observed[names].div(observed[names].sum(axis=1), axis=0).to_numpy()
    fitted = estimators.make("ridge").fit(design(mixtures), losses.loc[observed.index].to_numpy())
    best = search.minimize(lambda candidates: fitted.predict(design(candidates)) @ goal, region, seed)
    return best.mixture
