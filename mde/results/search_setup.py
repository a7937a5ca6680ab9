"""What `mde optimize` and `mde iterate` minimise, and under what: names out of a study become numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from mde.errors import UserError
from mde.optimization import losses, objectives
from mde.optimization.constraints import Bounds
from mde.optimization.objectives import Objective
from mde.optimization.simple_mixtures import simple_mixtures
from mde.regression import features as feature_sets
from mde.regression import formulas, uncertainty
from mde.regression.designs import knows_deviation
from mde.results.mixtures import BEST_OBSERVED, OWN_DOMAINS, Weights
from mde.results.predictor import Predictor
from mde.results.proxy_runs import ProxyRuns
from mde.study import Study


def reference_mixtures(mixtures: pd.DataFrame, observed: np.ndarray, bounds: Bounds, own: Weights) -> pd.DataFrame:
    """What a recommendation is compared with: the mixtures that need no training, most of the own domains, and the best
    proxy run.

    Args:
      mixtures: of the proxy runs, [R, K].
      observed: their objective, [R].
      bounds: with the tokens, budget and epochs that proportional and unimax are made of.
      own: weights in the objective of the evaluation domains that are trained on; empty for none.
    """
    known = simple_mixtures(bounds.domains, bounds.tokens, bounds.budget, bounds.max_epochs)
    rows = pd.DataFrame.from_dict(known, orient="index")[list(mixtures)]
    if (most := own_domains(mixtures, own)) is not None and not np.isclose(rows, most).all(axis=1).any():
        rows.loc[OWN_DOMAINS] = most
    best = mixtures.iloc[[int(np.argmin(observed))]].set_axis([BEST_OBSERVED])
    return pd.concat([rows, best])


def own_domains(mixtures: pd.DataFrame, own: Weights) -> np.ndarray | None:
    """The baseline "more of the target's own domain", [K]: uniform over several own domains that count equally and are
    all that counts, and otherwise the mixture of the proxy run with most weight on them. None without any.
    """
    weights = np.array([own.get(str(name), 0.0) for name in mixtures])
    counted = weights > 0
    if not counted.any():
        return None
    if counted.sum() > 1 and np.ptp(weights[counted]) < 1e-9 and weights.sum() > 1 - 1e-9:
        return counted / counted.sum()
    return mixtures.iloc[int(np.argmax(mixtures.to_numpy() @ weights))].to_numpy()


def own_weights(objective: Objective, evaluation: Sequence[str], training: Sequence[str]) -> dict[str, float]:
    """Weights in the objective of the evaluation domains that are trained on."""
    return {
        name: float(weight)
        for name, weight in zip(evaluation, objective.weights, strict=True)
        if name in training and weight > 0
    }


class Unresponsive(NamedTuple):
    """Evaluation domains of an objective that no regressor predicts better than their mean does.

    Attributes:
      domains: their names.
      share: of the objective's weight, 0 to 1; of a worst case, of the domains that it is over.
    """

    domains: list[str]
    share: float


def unresponsive(choice: Mapping[str, Any], objective: Objective, evaluation: Sequence[str]) -> Unresponsive:
    """What of an objective does not respond to the mixture; all of it where the chosen regressor is the mean."""
    names = evaluation if choice["regressor"] == "mean" else choice.get("unresponsive", [])
    dead = np.array([name in names for name in evaluation]) & (objective.weights > 0)
    if dead.sum() == (objective.weights > 0).sum():
        share = 1.0
    else:
        share = float(dead.sum() / (objective.weights > 0).sum() if objective.worst else objective.weights[dead].sum())
    return Unresponsive([name for name, one in zip(evaluation, dead, strict=True) if one], share)


def known_mixtures(study: Study, bounds: Bounds) -> np.ndarray:
    """What every search starts from beside its draws: the proxy runs and the mixtures that have a name, [C, K]."""
    runs = study.mixtures()
    observed = runs.loc[runs["role"] == "proxy", list(bounds.domains)]
    named = pd.DataFrame(
        list(simple_mixtures(bounds.domains, bounds.tokens, bounds.budget, bounds.max_epochs).values())
    )
    return np.vstack([named[list(bounds.domains)], observed])


def objective_or_chosen(study: Study, objective: str | Weights | None) -> str | Weights:
    """The objective that is asked for, by default that of `mde fit`, and the average where that has not been run.

    What it says of families is of those that `mde fit` was given.
    """
    chosen = (study.root / "fit/choice.json").exists()
    choice = study.read_json("fit/choice.json", "fit") if chosen else {}
    if objective is None:
        return choice.get("objective", "avg-all")
    domains = study.domains
    return objectives.expanded(objective, domains.evaluation, domains.training, choice.get("families", {}))


def loss(study: Study, predictor: Predictor, objective: Objective, bounds: Bounds, method: str = "auto") -> losses.Loss:
    """The predicted objective of mixtures, with what the search may know of it beside its values.

    Ridge on functions of λ alone and mixing laws are formulas, whoever trained the proxy runs: where they are convex,
    an average and a worst case are minimised exactly. Other regressors on λ alone are differentiated by JAX where they
    can be; swarms from elsewhere, which have not needed JAX so far, only if the method asks for a gradient.

    Args:
      study: the study.
      predictor: the regressor.
      objective: what is minimised.
      bounds: the constraints; a price of divergence is added to the objective.
      method: of the search.
    """
    traced = method in ("gradient", "exact") or not study.is_swarm
    found = _written(predictor, objective) or (_traced(predictor, objective) if traced else None)
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
    predictor: Predictor, inputs: ProxyRuns, objective: Objective, mixtures: np.ndarray, level: float, seed: int
) -> np.ndarray:
    """Low and high objective [C, 2] of a run of each mixture [C, K] with the proxy runs' seed, in their unit.

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


def _written(predictor: Predictor, objective: Objective) -> losses.Formula | None:
    """The objective as a formula, where it is one that a search can do more with than evaluate."""
    written = None if objective.beta else formulas.formula(predictor.regressor, predictor.features)
    if written is None:
        return None
    found = formulas.under(written, objective)
    # Of a worst case that is not convex, the largest function's gradient leads to a kink and no further.
    return found if found.convex or not objective.worst else None


def _traced(predictor: Predictor, objective: Objective) -> losses.Smooth | None:
    regressor, features = predictor.regressor, predictor.features
    average = not objective.worst and not objective.beta
    if not (average and hasattr(regressor, "jax_predict")) or feature_sets.evaluated_parts(features):
        return None
    try:
        predicted, design = regressor.jax_predict(), feature_sets.traceable(features)
    except UserError:  # a blend with a part that has no such form; it is searched by its values
        return None
    return losses.Smooth(lambda mixture: predicted(design(mixture)) @ objective.weights)
