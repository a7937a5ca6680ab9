"""The proxy runs of a study: their mixtures, losses and evaluated features, joined by run."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mde.errors import unknown
from mde.optimization import objectives
from mde.regression import features as feature_sets
from mde.regression import swarm
from mde.regression.groups import mixture_groups
from mde.study import Study


class ProxyRuns:
    """What regressors are fitted on: mixtures, observed losses and evaluated features of the proxy runs."""

    def __init__(self, mixtures: pd.DataFrame, losses: pd.DataFrame, evaluated: dict, objective: np.ndarray):
        self.mixtures = mixtures
        self.losses = losses
        self.evaluated = evaluated
        self.objective = objective

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """The label of each run's mixture, [R]; replicates have the same."""
        return mixture_groups(self.mixtures.to_numpy())

    @property
    def n_mixtures(self) -> int:
        """How many different mixtures there are."""
        return int(self.groups.max()) + 1

    @property
    def domains(self) -> list[str]:
        """Names of the J evaluation domains."""
        return list(self.losses.columns)

    def design(self, features: str) -> np.ndarray:
        """The design of a feature set for the proxy runs."""
        mixtures = self.mixtures.to_numpy()
        own = feature_sets.own_domain_weights(features, mixtures, list(map(str, self.mixtures)), self.domains)
        return feature_sets.assemble(features, mixtures, {**self.evaluated, **own})


def proxy_runs(study: Study, objective: str | Mapping[str, float], drop: Sequence[str] | None = None) -> ProxyRuns:
    """The study's proxy runs, joined by run.

    Args:
      study: the study.
      objective: what is predicted.
      drop: runs to leave out; by default those that `mde fit` left out.
    """
    if drop is None:
        chosen = (study.root / "fit/choice.json").exists()
        drop = study.read_json("fit/choice.json", "fit").get("dropped", ()) if chosen else ()
    domains = study.domains
    runs = study.mixtures()
    mixtures = runs.loc[runs["role"] == "proxy", list(domains.training)]
    mixtures = mixtures.loc[without(mixtures.index, drop)]
    losses = study.losses(runs=mixtures.index)
    tables = {} if study.is_swarm else study.features(mixtures.index)
    evaluated = {name: table.to_numpy() for name, table in tables.items()}
    weights = objectives.weights(objective, domains.evaluation, domains.training)
    return ProxyRuns(mixtures, losses, evaluated, weights)


def without(runs: pd.Index, drop: Sequence[str]) -> pd.Index:
    """The runs but for those that are dropped."""
    for name in drop:
        if name not in runs:
            raise unknown("run in drop", name, runs)
    return runs[~runs.isin(list(drop))]


def from_swarm(found: swarm.Swarm, objective: str | Mapping[str, float], drop: Sequence[str]) -> ProxyRuns:
    """The proxy runs of a swarm that was read from files, without those in `drop`."""
    weights = objectives.weights(objective, list(found.losses.columns), list(found.mixtures.columns))
    kept = without(found.mixtures.values.index, drop)
    return ProxyRuns(found.mixtures.values.loc[kept], found.losses.values.loc[kept], {}, weights)
