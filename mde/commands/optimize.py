"""`mde optimize`: the mixture with the lowest predicted loss under constraints, what binds, and how sure that is."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from tqdm import tqdm

from mde.arguments import FLAT
from mde.errors import check_positive, unknown
from mde.optimization import objectives, refinement, surface
from mde.optimization.constraints import Bounds, Constraints
from mde.optimization.losses import Loss
from mde.optimization.objectives import Objective
from mde.optimization.trust import Area
from mde.regression import uncertainty
from mde.reporting import support, tables
from mde.results import recommendation as recommend
from mde.results import search_setup as problem
from mde.results.mixtures import BEST_OBSERVED, RECOMMENDED, tokens_of
from mde.results.predictor import Predictor
from mde.results.proxy_runs import ProxyRuns, proxy_runs
from mde.results.recommendation import Search
from mde.results.support import Data, distance_limit
from mde.study import Study

LEVEL = 0.9  # of the intervals
REFITS = 200  # unless another number is asked for
ROUNDS = 16  # of the search for their optima
DRAWS = 400  # mixtures that show which domains trade against each other


def optimize(
    study: Study,
    objective: str | Mapping[str, float] | None = None,
    reference: str | None = None,
    beta: float = 0.0,
    kl_penalty: float = 0.0,
    constraints: Constraints = Constraints(),
    search: Annotated[Search, FLAT] = Search(),
) -> None:
    """Searches the simplex with the chosen regressor, fitted on all proxy runs.

    Args:
      study: a study with a chosen regressor.
      objective: what is minimised, that of `mde fit` by default; avg-sp, avg-et, avg-all (or avg-et+sp),
        avg-families, worst-sp, worst-et, worst-all, or weights by evaluation domain, family or pattern.
      reference: whose predicted losses a worst case is measured from: uniform, proportional, unimax or best observed.
      beta: standard deviations of the prediction that are added to the objective.
      kl_penalty: cost of one nat of KL divergence from the prior, in the unit of the losses.
      constraints: what the mixture must obey.
      search: how it is searched for.
    """
    check_positive(candidates=search.candidates, refits=REFITS if search.refits is None else search.refits)
    distance_limit(search.max_distance)  # is one, before anything is computed
    inputs = proxy_runs(study, study.read_json("fit/choice.json", "fit")["objective"])
    data = Data(inputs.mixtures)
    untrained = () if search.allow_untrained else data.untrained()
    bounds = constraints.on(study.domains.training, tokens_of(study), untrained, kl_penalty)
    question = _question(study, inputs, data, bounds, objective, reference, beta)
    found, fitted = _searched(question, search)
    optimum = _optimum(question, found, fitted, search)
    study.write_json("optimum.json", optimum)
    around = _surface(question.predictor, bounds, found.best.mixture, search.seed)
    study.write_arrays("surface.npz", {**around, "moves": _moves(question.predictor, found.best.mixture)})
    print("recommended: " + ", ".join(f"{name} {weight:.1%}" for name, weight in optimum["weights"].items()))
    print(tables.predicted(study))
    print(f"\n{support.compared(study)}\n")
    if search.refits is not None and fitted and len(fitted) < search.refits:
        print(f"the intervals of the weights are of {len(fitted)} refits, not {search.refits}: each is expensive")
    for line in support.cautions(study):
        print(line)
    _say(optimum, study.unit_of(question.goal.counted(study.domains.evaluation)))
    following = ("report", "shows more") if study.is_swarm else ("validate", "trains it and its baselines")
    print(f"`mde {following[0]} --study={study}` {following[1]}")


@dataclass(frozen=True)
class Question:
    """What is minimised over which mixtures, and what is known before the search.

    Attributes:
      study: the study.
      inputs: the proxy runs.
      predictor: the chosen regressor.
      data: the proxy runs as support of mixtures.
      bounds: the constraints.
      name: the objective, as it is recorded.
      reference: the mixture that a worst case is measured from; None for none.
      goal: the objective as a function of losses.
      known: mixtures to compare with, [M, K] by name.
    """

    study: Study
    inputs: ProxyRuns
    predictor: Predictor
    data: Data
    bounds: Bounds
    name: str | Mapping[str, float]
    reference: str | None
    goal: Objective
    known: pd.DataFrame

    @functools.cached_property
    def unresponsive(self) -> problem.Unresponsive:
        """The counted evaluation domains that do not respond to the mixture, and their part of the objective."""
        choice = self.study.read_json("fit/choice.json", "fit")
        return problem.unresponsive(choice, self.goal, self.study.domains.evaluation)


def _question(
    study: Study,
    inputs: ProxyRuns,
    data: Data,
    bounds: Bounds,
    objective: str | Mapping[str, float] | None,
    reference: str | None,
    beta: float,
) -> Question:
    domains, predictor = study.domains, Predictor(study)
    name = problem.objective_or_chosen(study, objective)
    goal = objectives.make(name, domains.evaluation, domains.training, None, beta)
    own = problem.own_weights(goal, domains.evaluation, domains.training)
    known = problem.reference_mixtures(inputs.mixtures, inputs.losses.to_numpy() @ goal, bounds, own)
    if reference is not None:
        if reference not in known.index:
            raise unknown("reference", reference, known.index)
        losses = predictor(known.loc[[reference]].to_numpy())[0]
        goal = objectives.make(name, domains.evaluation, domains.training, losses, beta)
        if reference != BEST_OBSERVED:  # which is then the best by what is minimised
            known = problem.reference_mixtures(inputs.mixtures, inputs.losses.to_numpy() @ goal, bounds, own)
    return Question(study, inputs, predictor, data, bounds, name, reference, goal, known)


def _searched(
    question: Question,
    search: Search,
) -> tuple[recommend.Found, list[Any]]:
    """The recommendation, and refits on halves of the proxy runs; none where nothing responds to the mixture."""
    if question.unresponsive.share == 1:
        return recommend.nothing(question.bounds, question.known), []
    loss = problem.loss(question.study, question.predictor, question.goal, question.bounds, search.method)
    start = problem.known_mixtures(question.study, question.bounds)
    found = _shown(recommend.search_for, loss, question.bounds, question.data, search, start)
    return found, _refits(question.predictor, question.inputs, search.refits, search.seed)


def _optimum(question: Question, found: recommend.Found, fitted: list[Any], search: Search) -> dict[str, Any]:
    """The content of `optimum.json`."""
    best, bounds, data, predictor, goal = (
        found.best, question.bounds, question.data, question.predictor, question.goal,
    )  # fmt: skip
    table = pd.concat([pd.DataFrame([best.mixture], [RECOMMENDED], question.known.columns), question.known])
    intervals = problem.intervals(predictor, question.inputs, goal, table.to_numpy(), LEVEL, search.seed)
    weights = None
    if fitted:
        optima = _optima(predictor, fitted, goal, bounds, found.region, table, search)
        low, high = np.quantile(optima, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        weights = dict(zip(table.columns, np.stack([low, high], axis=1), strict=True))
        design = predictor.design(table.to_numpy()[:1])
        chosen = np.array([goal(refitted.predict(design))[0] for refitted in fitted])
        predicted = goal(predictor(table.to_numpy()[:1]))[0]
        intervals[0] = uncertainty.selected_interval(intervals[0], predicted, chosen, LEVEL)
    predictions = _predictions(predictor, question.inputs, goal, bounds, table, intervals, data)
    choice = question.study.read_json("fit/choice.json", "fit")
    return {
        "objective": question.name,
        "reference": question.reference,
        "beta": goal.beta,
        "kl_penalty": bounds.kl_penalty,
        "regressor": choice["regressor"],
        "features": choice["features"],
        "weights": dict(zip(table.columns, best.mixture, strict=True)),
        "weight_intervals": weights,
        "refits": len(fitted),
        "interval_level": LEVEL,
        "search": {
            "method": best.method,
            "evaluations": best.evaluations,
            "gap": best.gap,
            "restarts": best.restarts,
            "loss_spread": best.loss_spread,
            "mixture_spread": best.mixture_spread,
        },
        "support": {
            **data.about(best.mixture),
            "spacing": data.spacing,
            "largest_weights": data.largest.to_dict(),
            "untrained": data.untrained(),
            "left_out": bounds.left_out,
            "max_distance": found.radius,
            "note": found.note,
            "unrestricted": None if found.unrestricted is None else _unrestricted(predictor, goal, data, found),
        },
        "unresponsive": question.unresponsive._asdict(),
        "gain": _gain(predictor, fitted, goal, table, predictions) if fitted else None,
        "binding": bounds.binding(best.mixture),
        "epochs": bounds.epochs(best.mixture),
        "tokens": bounds.tokens,
        "budget": bounds.budget,
        "max_epochs": bounds.max_epochs,
        "predictions": predictions,
    }


def _shown(search_for: Callable[..., recommend.Found], loss: Loss, *arguments: Any) -> recommend.Found:
    """The search itself, with a bar where mixtures are evaluated one batch after another."""
    if hasattr(loss, "value_and_gradient"):
        return search_for(loss, *arguments)
    with tqdm(desc="optimize", unit="mixture", unit_scale=True) as bar:

        def counted(mixtures: np.ndarray) -> np.ndarray:
            bar.update(len(mixtures))
            return loss(mixtures)

        return search_for(counted, *arguments)


def _predictions(
    predictor: Predictor,
    inputs: ProxyRuns,
    goal: Objective,
    bounds: Bounds,
    table: pd.DataFrame,
    intervals: np.ndarray,
    data: Data,
) -> dict[str, Any]:
    """By mixture: what is predicted of it, how far above the recommended one, whether it obeys the constraints, and how
    far it is from the proxy runs.
    """
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
            "support": data.about(table.to_numpy()[i]),
            "losses": dict(zip(inputs.domains, losses[i], strict=True)),
        }
        for i, name in enumerate(table.index)
    }


def _surface(predictor: Predictor, bounds: Bounds, mixture: np.ndarray, seed: int) -> dict[str, np.ndarray]:
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


def _say(optimum: Mapping[str, Any], unit: str) -> None:
    """What the constraints did, on the terminal."""
    for constraint in optimum["binding"]:
        print(f"binds: {constraint}")
    if epochs := optimum["epochs"]:
        print("epochs at the budget: " + ", ".join(f"{name} {count:.3g}" for name, count in epochs.items()))
    for name, baseline in optimum["predictions"].items():
        if not baseline["feasible"]:
            print(f"{name} breaks the constraints, {baseline['above_recommended']:+.4f} {unit}")


def _unrestricted(predictor: Predictor, goal: Objective, data: Data, found: recommend.Found) -> dict[str, Any]:
    """The optimum of the search without a limit on distance, which was not trusted."""
    assert found.unrestricted is not None
    mixture = found.unrestricted.mixture
    objective = goal(predictor(np.stack([mixture, found.best.mixture])))
    return {
        "weights": dict(zip(data.runs.columns, mixture, strict=True)),
        "objective": float(objective[0]),
        "below_recommended": float(objective[1] - objective[0]),
        **data.about(mixture),
    }


def _gain(
    predictor: Predictor, fitted: Sequence[Any], goal: Objective, table: pd.DataFrame, predictions: Mapping[str, Any]
) -> dict[str, Any] | None:
    """How far the recommendation is predicted to be below the best baseline that obeys the constraints.

    The standard error is the spread of that difference over the refits on half of the proxy runs.
    """
    allowed = [name for name, found in predictions.items() if name != RECOMMENDED and found["feasible"]]
    if not allowed:
        return None
    name = min(allowed, key=lambda baseline: predictions[baseline]["objective"])
    design = predictor.design(table.loc[[RECOMMENDED, name]].to_numpy())
    differences = [np.diff(goal(refitted.predict(design)))[0] for refitted in fitted]
    error, gain = float(np.std(differences)), predictions[name]["above_recommended"]
    return {
        "baseline": name,
        "gain": gain,
        "standard_error": error,
        "distinguishable": bool(gain > norm.ppf((1 + LEVEL) / 2) * error),
    }


def _refits(predictor: Predictor, inputs: ProxyRuns, refits: int | None, seed: int) -> list[Any]:
    """Regressors fitted on random halves of the proxy runs; of an expensive one there are fewer."""
    design, losses = inputs.design(predictor.features), inputs.losses.to_numpy()
    bar = functools.partial(tqdm, desc="refits", unit=f"{uncertainty.BATCH} refits")
    return uncertainty.half_sample_refits(design, losses, predictor.regressor, refits or REFITS, seed, bar)


def _optima(
    predictor: Predictor,
    fitted: Sequence[Any],
    goal: Objective,
    bounds: Bounds,
    region: Area,
    table: pd.DataFrame,
    search: Search,
) -> np.ndarray:
    """The optimum of each refit, [refits, K].

    All are searched for together, from the recommendation, its baselines and draws all over the region on.
    """
    pool = np.concatenate([table.to_numpy(), region.sample(search.candidates, search.seed + 1)])
    pool = pool[region.contains(pool, 1e-7)]

    with tqdm(desc="their optima", total=ROUNDS + 1, unit="round") as rounds:

        def values(mixtures: np.ndarray) -> np.ndarray:
            design, cost = predictor.design(mixtures), bounds.penalty(mixtures)
            found = np.stack([problem.values(refitted, design, goal) + cost for refitted in fitted])
            rounds.update()
            return found

        return refinement.refine_together(values, region, pool, ROUNDS, max(search.candidates // 4, 1), search.seed)
