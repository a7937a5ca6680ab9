"""`mde optimize`: the mixture of least predicted loss under constraints, what stops it, and how sure that is."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.errors import check_positive, unknown
from mde.optimization import objectives, refinement, search, surface
from mde.optimization.constraints import Constraints
from mde.optimization.objectives import Objective
from mde.regression import uncertainty
from mde.reporting import tables
from mde.stages import problem
from mde.stages.fit import Observations, observations
from mde.stages.mixtures import BEST_OBSERVED, tokens_of
from mde.stages.predict import Predictor
from mde.study import Study

LEVEL = 0.9  # of the intervals
REFITS = 200  # unless another number is asked for
ROUNDS = 16  # of the search for their optima
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
    frozen: Mapping[str, Mapping[str, float]] | None = None,
    tokens: Mapping[str, float] | None = None,
    budget: float | None = None,
    max_epochs: float | Mapping[str, float] | None = None,
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
      objective: what is minimised, that of `mde fit` by default; avg-sp, avg-et, avg-all (or avg-et+sp),
        avg-families, worst-sp, worst-et, worst-all, or weights by evaluation domain, family or pattern.
      reference: whose predicted losses a worst case is measured from: uniform, proportional, unimax or best observed.
      beta: standard deviations of the prediction that are added to the objective.
      lower: least shares, by training domain.
      upper: greatest shares.
      fixed: shares that are given.
      groups: training domains by a name of your own, to bound together.
      group_bounds: least and greatest sum of the shares, by group.
      frozen: training domains that keep their ratios, by a name of your own; only their sum varies.
      tokens: tokens that there are, by domain, to which the proportional mixture is; those of the study by default.
      budget: tokens that the target model is trained on.
      max_epochs: how often a domain may be repeated at the budget, one number or by domain.
      prior: a mixture to stay near: uniform, proportional, unimax or shares by domain.
      max_kl: greatest KL divergence from the prior, nats.
      kl_penalty: what a nat of this divergence costs, in the unit of the losses.
      seed: of the search and the halves.
    """
    check_positive(candidates=candidates, refits=REFITS if refits is None else refits)
    names, counts = study.domains.training, tokens or tokens_of(study)
    bounds = problem.constraints(
        names, counts, lower, upper, fixed, groups, group_bounds, budget, max_epochs, prior, max_kl, kl_penalty, frozen
    )
    choice = study.read_json("fit/choice.json", "fit")
    name = problem.objective_or_chosen(study, objective)
    inputs = observations(study, choice["objective"])
    domains = study.domains
    goal = objectives.make(name, domains.evaluation, domains.training, None, beta)
    predictor = Predictor(study)
    known = problem.reference_mixtures(inputs.mixtures, inputs.losses.to_numpy() @ goal, bounds)
    if reference is not None:
        if reference not in known.index:
            raise unknown("reference", reference, known.index)
        losses = predictor(known.loc[[reference]].to_numpy())[0]
        goal = objectives.make(name, domains.evaluation, domains.training, losses, beta)
        if reference != BEST_OBSERVED:  # which is then the best by what is minimised
            known = problem.reference_mixtures(inputs.mixtures, inputs.losses.to_numpy() @ goal, bounds)
    best = _search(study, predictor, goal, bounds, method, candidates, seed)
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
            "kl_penalty": kl_penalty,
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
            "budget": bounds.budget,
            "max_epochs": bounds.max_epochs,
            "predictions": predictions,
        },
    )
    around = _surface(predictor, bounds, best.mixture, seed)
    study.write_arrays("surface.npz", {**around, "moves": _moves(predictor, best.mixture)})
    print("recommended: " + ", ".join(f"{k} {share:.1%}" for k, share in zip(table, best.mixture, strict=True)))
    print(tables.predicted(study))
    if refits is not None and len(resampled) < refits:
        print(f"the intervals of the shares are of {len(resampled)} refits, not {refits}: each of them is expensive")
    _say(binding, epochs, predictions, study.unit_of(goal.counted(domains.evaluation)))
    following = ("report", "shows more") if study.is_swarm else ("prove", "trains it and its rivals")
    print(f"`mde {following[0]} --study={study}` {following[1]}")


def _search(
    study: Study,
    predictor: Predictor,
    goal: Objective,
    bounds: Constraints,
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
            start=problem.known_mixtures(study, bounds),
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


def _moves(predictor: Predictor, mixture: np.ndarray) -> np.ndarray:
    """What more of each domain changes in the predicted losses, [K, J]; NaN where there is no more to give."""
    moved = surface.moved(mixture)
    possible = np.isfinite(moved).all(axis=1)
    losses = predictor(np.concatenate([mixture[None], moved[possible]]))
    found = np.full((len(mixture), losses.shape[1]), np.nan)
    found[possible] = losses[1:] - losses[0]
    return found


def _say(binding: Sequence[str], epochs: Mapping[str, float] | None, predictions: Mapping[str, Any], unit: str) -> None:
    """What the constraints did, on the terminal."""
    for constraint in binding:
        print(f"binds: {constraint}")
    if epochs:
        print("epochs at the budget: " + ", ".join(f"{name} {count:.3g}" for name, count in epochs.items()))
    for name, rival in predictions.items():
        if not rival["feasible"]:
            print(f"{name} breaks the constraints, {rival['above_recommended']:+.4f} {unit}")


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

    All are searched for together, from the recommendation, its rivals and draws all over the region on.
    """
    pool = np.concatenate([table.to_numpy(), bounds.region.sample(candidates, seed + 1)])
    pool = pool[bounds.region.contains(pool)]
    design, losses = inputs.design(predictor.features), inputs.losses.to_numpy()
    bar = functools.partial(tqdm, desc="refits", unit=f"{uncertainty.BATCH} refits")
    fitted = uncertainty.half_sample_refits(design, losses, predictor.regressor, refits or REFITS, seed, bar)

    with tqdm(desc="their optima", total=ROUNDS + 1, unit="round") as rounds:

        def values(mixtures: np.ndarray) -> np.ndarray:
            design, cost = predictor.design(mixtures), bounds.penalty(mixtures)
            found = np.stack([problem.values(refitted, design, goal) + cost for refitted in fitted])
            rounds.update()
            return found

        return refinement.refine_together(values, bounds.region, pool, ROUNDS, max(candidates // 4, 1), seed)
