"""What `mde optimize` and `mde iterate` minimise, and under what: names out of a study become numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from mde.errors import UserError, unknown
from mde.optimization import losses, objectives
from mde.optimization.constraints import Constraints, Group
from mde.optimization.objectives import Objective
from mde.regression import estimators, uncertainty
from mde.regression import features as feature_sets
from mde.regression.designs import knows_deviation
from mde.regression.laws import MixingLaw
from mde.stages.fit import Observations
from mde.stages.mixtures import BEST_OBSERVED, Shares, natural
from mde.stages.predict import Predictor
from mde.study import Study


def reference_mixtures(mixtures: pd.DataFrame, observed: np.ndarray, bounds: Constraints) -> pd.DataFrame:
    """What a recommendation is compared with: uniform, proportional and unimax where they are known, the best observed.

    Args:
      mixtures: of the observations, [R, K].
      observed: their objective, [R].
      bounds: with the tokens, budget and epochs that proportional and unimax are made of.
    """
    known = natural(bounds.domains, bounds.tokens, bounds.budget, bounds.max_epochs)
    rows = pd.DataFrame.from_dict(known, orient="index")
    best = mixtures.iloc[[int(np.argmin(observed))]].set_axis([BEST_OBSERVED])
    return pd.concat([rows[list(mixtures)], best])


def known_mixtures(study: Study, bounds: Constraints) -> np.ndarray:
    """What every search starts from beside its draws: the observations and the mixtures that have a name, [C, K]."""
    runs = study.mixtures()
    observed = runs.loc[runs["role"] == "observation", list(bounds.domains)]
    named = pd.DataFrame(list(natural(bounds.domains, bounds.tokens, bounds.budget, bounds.max_epochs).values()))
    return np.vstack([named[list(bounds.domains)], observed])


def objective_or_chosen(study: Study, objective: str | Shares | None) -> str | Shares:
    """The objective that is asked for, by default that of `mde fit`, and the average where that has not been run.

    What it says of families is of those that `mde fit` was given.
    """
    chosen = (study.root / "fit/choice.json").exists()
    choice = study.read_json("fit/choice.json", "fit") if chosen else {}
    if objective is None:
        return choice.get("objective", "avg-all")
    domains = study.domains
    return objectives.expanded(objective, domains.evaluation, domains.training, choice.get("families", {}))


def constraints(
    names: tuple[str, ...],
    tokens: Shares | None,
    lower: Shares | None = None,
    upper: Shares | None = None,
    fixed: Shares | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    group_bounds: Mapping[str, Sequence[float]] | None = None,
    budget: float | None = None,
    max_epochs: float | Shares | None = None,
    prior: str | Shares | None = None,
    max_kl: float | None = None,
    kl_penalty: float = 0.0,
    frozen: Mapping[str, Shares] | None = None,
) -> Constraints:
    """The constraints on mixtures of these domains, as the arguments of commands say.

    Args:
      names: the domains.
      tokens: that there are of each, if that is known.
      lower: this and the others are those of `mde optimize`.

    Raises:
      UserError: as `Constraints`; bounds of a group that is not there, or that are not two; an unknown prior.
    """
    groups, group_bounds = groups or {}, group_bounds or {}
    for name, bounds in group_bounds.items():
        if name not in groups:
            raise unknown("group in group_bounds", name, groups)
        if len(bounds) != 2:
            raise UserError(f"group_bounds of {name!r}: {list(bounds)}, expected the least and the greatest sum")
    if isinstance(prior, str):
        Constraints(names, tokens=tokens)  # refuses tokens that nothing can be proportional to
        priors = natural(names, tokens, budget, max_epochs)
        if prior not in priors:
            raise unknown("prior", prior, priors)
        prior = priors[prior]
    return Constraints(
        names,
        lower or {},
        upper or {},
        fixed or {},
        {name: Group(tuple(domains), *group_bounds.get(name, (0.0, 1.0))) for name, domains in groups.items()},
        tokens,
        budget,
        max_epochs,
        prior,
        max_kl,
        kl_penalty,
        frozen or {},
    )


def loss(
    study: Study, predictor: Predictor, objective: Objective, bounds: Constraints, method: str = "auto"
) -> losses.Loss:
    """The predicted objective of mixtures, with what the search may know of it beside its values.

    Ridge on functions of λ alone is linear in them: an average of its losses has a gradient, and on λ itself a linear
    program is exact, for a worst case too. Other regressors on λ alone are differentiated by JAX where they can be.

    Observations from elsewhere are searched without JAX, which they have not needed so far, unless the method asks for
    a gradient.

    Args:
      study: the study.
      predictor: the regressor.
      objective: what is minimised.
      bounds: the constraints; a price of divergence is added to the objective.
      method: of the search.
    """
    traced = method in ("gradient", "exact") or not study.is_swarm
    found = _structured(predictor, objective) or (_traced(predictor, objective) if traced else None)
    if found is None:
        return lambda mixtures: (
            values(predictor.regressor, predictor.design(mixtures), objective) + bounds.penalty(mixtures)
        )
    return losses.Penalised(found, bounds.region, bounds.kl_penalty) if bounds.kl_penalty else found


def values(regressor: Any, design: np.ndarray, objective: Objective) -> np.ndarray:
    """Predicted objective [C] of mixtures of these features, with its standard deviations where β asks for them."""
    if objective.beta == 0 or not knows_deviation(regressor):
        return objective.of_prediction(regressor.predict(design))
    mean, deviations = regressor.predict(design, return_std=True)
    return objective.of_prediction(mean, deviations, getattr(regressor, "correlation_", None))


def intervals(
    predictor: Predictor, inputs: Observations, objective: Objective, mixtures: np.ndarray, level: float, seed: int
) -> np.ndarray:
    """Low and high objective [C, 2] of a run of each mixture [C, K] with the observations' seed, in their unit.

    Args:
      predictor: the regressor.
      inputs: what it was fitted on.
      objective: whose intervals.
      mixtures: [C, K], chosen beforehand.
      level: of the intervals.
      seed: of the folds, where a regressor needs some.
    """
    if objective.worst and getattr(predictor.regressor, "calibrated", False):
        mean, deviations = predictor.with_deviations(mixtures)
        reach = norm.ppf((1 + level) / 2) * deviations
        return np.stack([objective(mean - reach), objective(mean + reach)], axis=1)
    weights: Any = objective if objective.worst else objective.weights
    return uncertainty.objective_intervals(
        inputs.design(predictor.features),
        inputs.losses.to_numpy(),
        predictor.design(mixtures),
        predictor.regressor,
        weights,
        level,
        seed,
    )


def _structured(predictor: Predictor, objective: Objective) -> losses.Linear | losses.Separable | None:
    regressor = predictor.regressor
    parts = predictor.features.split("+")
    if not isinstance(regressor, estimators.Ridge) or objective.beta or set(parts) - {"lambda", "sqrt", "log"}:
        return None
    slopes = dict(zip(parts, np.split(regressor.coef_, len(parts)), strict=True))  # [K, J] each
    if objective.worst:
        counted = objective.weights > 0
        reference = 0.0 if objective.reference is None else objective.reference
        offsets = (regressor.intercept_ - reference)[counted]
        return losses.Linear(slopes["lambda"].T[counted], offsets) if parts == ["lambda"] else None
    linear, root, log = (
        slopes.get(part, 0 * slopes[parts[0]]) @ objective.weights for part in ("lambda", "sqrt", "log")
    )
    offset = float(regressor.intercept_ @ objective.weights)
    return losses.Linear(linear, offset) if parts == ["lambda"] else losses.Separable(linear, root, log, 0.01, offset)


def _traced(predictor: Predictor, objective: Objective) -> losses.Smooth | None:
    regressor, features = predictor.regressor, predictor.features
    average = not objective.worst and not objective.beta
    if not (average and hasattr(regressor, "jax_predict")) or feature_sets.evaluated_parts(features):
        return None
    try:
        predicted, design = regressor.jax_predict(), feature_sets.traceable(features)
    except UserError:  # a blend with a part that has no such form; it is searched by its values
        return None
    return losses.Smooth(
        lambda mixture: predicted(design(mixture)) @ objective.weights, isinstance(regressor, MixingLaw)
    )
