"""`mde optimize`: the mixture of least predicted loss under constraints, what stops it, and how sure that is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.errors import check_positive, unknown
from mde.optimization import objectives, search, surface
from mde.optimization.constraints import Constraints
from mde.optimization.objectives import Objective
from mde.regression import uncertainty
from mde.reporting import tables
from mde.stages import problem
from mde.stages.fit import Observations, observations
from mde.stages.predict import Predictor
from mde.study import Study

LEVEL = 0.9  # of the intervals
REFITS = 200  # unless another number is asked for
DRAWS = 400  # mixtures that show which domains trade against each other


def optimize(
    study: Study,
    candidates: int = 2048,
    refits: int | None = None,
    method: str = "auto",
    objective: str | Mapping[str, float] | None = None,
    reference: str | None = None,
    beta: float = 0.0,
    lower: Mapping[str, float] | None = None,
    upper: Mapping[str, float] | None = None,
    fixed: Mapping[str, float] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    group_bounds: Mapping[str, Sequence[float]] | None = None,
    tokens: Mapping[str, float] | None = None,
    budget: float | None = None,
    max_epochs: float | None = None,
    prior: str | Mapping[str, float] | None = None,
    max_kl: float | None = None,
    kl_penalty: float = 0.0,
    seed: int = 0,
) -> None:
    """Searches the simplex with the chosen regressor, fitted on all observations.

    Args:
      study: a study with a chosen regressor.
      candidates: mixtures that the search starts from.
      refits: random halves of the observations; the spread of their optima says how sure the mixture is. There are 200
        by default; of an expensive regressor, such as auto, at most 50.
      method: of the search: auto, exact, gradient, simulation, refinement or vizier.
      objective: what is minimised, that of `mde fit` by default; avg-sp, avg-et, avg-all (or avg-et+sp), worst-sp,
        worst-et, worst-all, or weights by evaluation domain.
      reference: whose predicted losses a worst case is measured from: uniform, proportional or best observed.
      beta: standard deviations of the prediction that are added to the objective.
      lower: least shares, by training domain.
      upper: greatest shares.
      fixed: shares that are given.
      groups: training domains by a name of your own, to bound together.
      group_bounds: least and greatest sum of the shares, by group.
      tokens: tokens that there are, by domain, to which the proportional mixture is; those of the study by default.
      budget: tokens that the target model is trained on.
      max_epochs: how often a domain may be repeated at the budget.
      prior: a mixture to stay near: uniform, proportional or shares by domain.
      max_kl: greatest KL divergence from the prior, nats.
      kl_penalty: what a nat of this divergence costs, nats per token.
      seed: of the search and the halves.
    """
    check_positive(candidates=candidates, refits=REFITS if refits is None else refits)
    bounds = problem.constraints(
        study, lower, upper, fixed, groups, group_bounds, tokens, budget, max_epochs, prior, max_kl, kl_penalty
    )
    choice = study.read_json("fit/choice.json", "fit")
    name = problem.objective_or_chosen(study, objective)
    inputs = observations(study, choice["objective"])
    domains = study.domains
    goal = objectives.make(name, domains.evaluation, domains.training, None, beta)
    predictor = Predictor(study)
    known = problem.reference_mixtures(inputs.mixtures, inputs.losses.to_numpy() @ goal, bounds.tokens)
    if reference is not None:
        if reference not in known.index:
            raise unknown("reference", reference, known.index)
        losses = predictor(known.loc[[reference]].to_numpy())[0]
        goal = objectives.make(name, domains.evaluation, domains.training, losses, beta)
    best = _search(study, predictor, goal, bounds, known, method, candidates, seed)
    table = pd.concat([pd.DataFrame([best.mixture], ["recommended"], known.columns), known])
    resampled = _resampled(predictor, inputs, goal, bounds, table, candidates, refits, seed)
    shares = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    intervals = problem.intervals(predictor, inputs, goal, table.to_numpy(), LEVEL, seed)
    predictions = _predictions(predictor, inputs, goal, bounds, table, intervals)
    epochs, binding = bounds.epochs(best.mixture), bounds.binding(best.mixture)
    study.write_json(
        "optimum.json",
        {
            "objective": name,
            "reference": reference,
            "beta": beta,
            "regressor": choice["regressor"],
            "features": choice["features"],
            "shares": dict(zip(table.columns, best.mixture, strict=True)),
            "share_intervals": dict(zip(table.columns, shares.T, strict=True)),
            "refits": len(resampled),
            "interval_level": LEVEL,
            "search": {"method": best.method, "evaluations": best.evaluations, "gap": best.gap},
            "binding": binding,
            "epochs": epochs,
            "tokens": bounds.tokens,
            "predictions": predictions,
        },
    )
    study.write_arrays("surface.npz", _surface(predictor, bounds, best.mixture, seed))
    print("recommended: " + ", ".join(f"{k} {share:.1%}" for k, share in zip(table, best.mixture, strict=True)))
    print(tables.predicted(study))
    if refits is not None and len(resampled) < refits:
        print(f"the intervals of the shares are of {len(resampled)} refits, not {refits}: each of them is expensive")
    _say(binding, epochs, predictions)
    following = ("report", "shows more") if study.is_swarm else ("prove", "trains it and its rivals")
    print(f"`mde {following[0]} --study={study}` {following[1]}")


def _search(
    study: Study,
    predictor: Predictor,
    goal: Objective,
    bounds: Constraints,
    known: pd.DataFrame,
    method: str,
    candidates: int,
    seed: int,
) -> search.Optimum:
    """The search itself, with a bar where mixtures are evaluated one batch after another."""
    loss = problem.loss(study, predictor, goal, bounds, method)
    with tqdm(desc="optimize", unit="mixture", unit_scale=True) as bar:

        def counted(mixtures: np.ndarray) -> np.ndarray:
            bar.update(len(mixtures))
            return loss(mixtures)

        structured = hasattr(loss, "value_and_gradient")
        return search.minimize(
            loss if structured else counted,
            bounds.region,
            seed,
            method,
            n_candidates=candidates,
            start=known.to_numpy(),
        )


def _predictions(
    predictor: Predictor,
    inputs: Observations,
    goal: Objective,
    bounds: Constraints,
    table: pd.DataFrame,
    intervals: np.ndarray,
) -> dict[str, Any]:
    """By mixture: what is predicted of it, how far above the recommended one, and whether it obeys the constraints."""
    losses = predictor(table.to_numpy())
    objective = goal(losses)
    inside = bounds.region.contains(table.to_numpy(), 1e-6)
    return {
        str(name): {
            "mixture": dict(zip(table.columns, table.to_numpy()[i], strict=True)),
            "objective": float(objective[i]),
            "objective_interval": intervals[i],
            "above_recommended": float(objective[i] - objective[0]),
            "feasible": bool(inside[i]),
            "losses": dict(zip(inputs.domains, losses[i], strict=True)),
        }
        for i, name in enumerate(table.index)
    }


def _surface(predictor: Predictor, bounds: Constraints, mixture: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Predicted losses on ternary slices through the mixture, and of draws all over the region.

    Returns:
      triples [S, 3], the domains of each slice; points [P, 3], how they divide what they have together; losses
      [S, P, J]; draws [D, K] and draw_losses [D, J].
    """
    triples, points = surface.triples(mixture), surface.ternary_grid()
    slices = [surface.sliced(mixture, triple, points) for triple in triples]
    draws = bounds.region.sample(DRAWS, seed + 2)
    losses = predictor(np.concatenate([*slices, draws]))
    on_slices = losses[:-DRAWS].reshape(len(triples), len(points), losses.shape[1])
    return {"triples": triples, "points": points, "losses": on_slices, "draws": draws, "draw_losses": losses[-DRAWS:]}


def _say(binding: Sequence[str], epochs: Mapping[str, float] | None, predictions: Mapping[str, Any]) -> None:
    """What the constraints did, on the terminal."""
    for constraint in binding:
        print(f"binds: {constraint}")
    if epochs:
        print("epochs at the budget: " + ", ".join(f"{name} {count:.3g}" for name, count in epochs.items()))
    for name, rival in predictions.items():
        if not rival["feasible"]:
            print(f"{name} breaks the constraints, {rival['above_recommended']:+.4f} nats per token")


def _resampled(
    predictor: Predictor,
    inputs: Observations,
    goal: Objective,
    bounds: Constraints,
    table: pd.DataFrame,
    candidates: int,
    refits: int | None,
    seed: int,
) -> np.ndarray:
    """The optimum of each refit on half of the observations, [refits, K]; of an expensive regressor there are fewer.

    The refits choose among draws all over the region and ever closer to the recommendation.
    """
    drawn = bounds.region.sample(candidates, seed + 1)
    near = [table.to_numpy()[:1] * (1 - far) + drawn * far for far in (0.05, 0.1, 0.2, 0.4)]
    pool = np.concatenate([table.to_numpy(), drawn, *near])
    pool = pool[bounds.region.contains(pool)]
    design, losses = inputs.design(predictor.features), inputs.losses.to_numpy()
    cost = bounds.penalty(pool)

    def value(refitted: Any, candidates: np.ndarray) -> np.ndarray:
        return problem.values(refitted, candidates, goal) + cost

    best = uncertainty.half_sample_optima(
        design,
        losses,
        predictor.design(pool),
        predictor.regressor,
        value,
        refits or REFITS,
        seed,
        lambda batches: tqdm(batches, "refits", unit=f"{uncertainty.BATCH} refits"),
    )
    return pool[best]
