"""Mixtures by their names: uniform, proportional, recommended, those of other methods, or weights by domain."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from mde.errors import UserError, unknown
from mde.optimization import objectives, simplex
from mde.optimization.simple_mixtures import UNIMAX, simple_mixtures
from mde.regression import baselines
from mde.study import Study

Weights = Mapping[str, float]
RECOMMENDED, BEST_OBSERVED, GIVEN = "recommended", "best observed", "given"
OWN_DOMAINS = "own domains"  # the baseline "more of the target's own domain"
REWEIGHTED = ("doremi", "doge")  # that `mde reweight` finds
THIS = "study"  # stands before a name as another study's directory does: study:recommended is recommended
_SEED = 0  # of the searches of other methods: a name stands for one mixture


def tokens_of(study: Study) -> dict[str, float] | None:
    """Training tokens by domain, where the study has token stores."""
    if "stores" not in study.about:
        return None
    return {name: float(study.about["stores"][f"{name}/train"]["tokens"]) for name in study.domains.training}


def counted_tokens(study: Study) -> dict[str, float] | None:
    """Training tokens by domain: those that `mde optimize` was given, where it was, and else those of the study."""
    given = (
        study.read_json("optimum.json", "optimize").get("tokens") if (study.root / "optimum.json").exists() else None
    )
    return given or tokens_of(study)


def mixture(study: Study, value: Weights | str, where: str, more: Mapping[str, Weights] | None = None) -> np.ndarray:
    """The mixture [K] that a name or weights by domain stand for; a domain that is left out has no weight.

    Args:
      study: the study.
      value: uniform, proportional, a name in `SOURCES` or in `more`, one of another study (DIRECTORY:NAME), or weights.
      where: what the mixture is for, for messages.
      more: other mixtures that have a name.

    Raises:
      UserError: an unknown name or domain, weights that are no mixture, a name whose method has not been run.
    """
    names = study.domains.training
    return simplex.check_mixtures(_weights(study, value, where, more or {}), names, where=where)[0]


def mixtures(study: Study, given: Sequence[str | Mapping[str, Any]], where: str) -> pd.DataFrame:
    """Several mixtures [M, K], each in a row under its name.

    Args:
      study: the study.
      given: names, as `mixture` takes them; {NAME: weights by domain}; or weights by domain alone, which are `given`.
      where: what they are for, for messages.

    Raises:
      UserError: as `mixture`; no mixture, or a name that is given twice.
    """
    rows: dict[str, np.ndarray] = {}
    for one in given:
        if isinstance(one, str):
            named: Mapping[str, Any] = {one.removeprefix(f"{THIS}:"): one}
        else:
            named = {GIVEN: one} if all(isinstance(weight, Real) for weight in one.values()) else one
        for name, value in named.items():
            if name in rows:
                raise UserError(f"mixture {name!r} is given twice in {where}")
            if not isinstance(value, str | Mapping):
                raise UserError(f"mixture {name!r} in {where}: {value!r}, expected a name or weights by domain")
            rows[name] = _exact(study, value, where if isinstance(value, str) else f"{where}, mixture {name!r}")
    if not rows:
        raise UserError(f"no mixture in {where}: expected names such as {RECOMMENDED}, or weights by domain")
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(study.domains.training)).rename_axis("mixture")


def objective_of(study: Study) -> objectives.Objective:
    """What the study's recommendation minimises; raises UserError where there is none."""
    optimum = study.read_json("optimum.json", "optimize")
    return objectives.recorded(optimum, study.domains.evaluation, study.domains.training)


def _exact(study: Study, value: Weights | str, where: str) -> np.ndarray:
    """A mixture [K] that keeps its bits if it sums to one but for rounding: runs are named and resumed by them."""
    weights = _weights(study, value, where, {})
    checked = simplex.check_mixtures(weights, study.domains.training, where=where)[0]
    return np.array(weights) if abs(sum(weights) - 1) < 1e-12 else checked


def _weights(study: Study, value: Weights | str, where: str, more: Mapping[str, Weights]) -> list[float]:
    """The weights of the training domains, in their order, as they were given."""
    names = study.domains.training
    weights = _named(study, value, where, more) if isinstance(value, str) else value
    for name in weights:
        if name not in names:
            raise unknown(f"domain in {where}", name, names)
    return [weights.get(name, 0.0) for name in names]


def _named(study: Study, name: str, where: str, more: Mapping[str, Weights]) -> Weights:
    known = {**simple_mixtures(study.domains.training, counted_tokens(study)), **more}
    if name in known:
        return known[name]
    if name in SOURCES:
        return SOURCES[name](study)
    place, _, rest = name.rpartition(":")
    if not place:
        raise unknown(f"mixture in {where}", name, [*known, *SOURCES])
    if place == THIS:
        return _named(study, rest, where, more)
    other = Study(place)
    if not (other.root / "study.json").exists():
        raise UserError(f"mixture in {where} {name!r}: {place} is no study; expected a name, or DIRECTORY:NAME")
    return _named(other, rest, where, {})


def _observed(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Mixtures [R, K] and losses [R, J] of the proxy runs."""
    runs = study.mixtures()
    found = runs.loc[runs["role"] == "proxy", list(study.domains.training)]
    return found.to_numpy(), study.losses(runs=found.index).to_numpy()


def _unimax(study: Study) -> Weights:
    """By the tokens, budget and epochs that `mde optimize` was given, as its table of references has it."""
    optimum = study.read_json("optimum.json", "optimize")
    lacking = [f"--{name}" for name in ("tokens", "budget", "max_epochs") if optimum.get(name) is None]
    if lacking:
        why = "needs to know how often a domain may be read"
        raise UserError(f"mixture {UNIMAX!r} {why}: give `mde optimize` {' and '.join(lacking)}")
    tokens, budget, most = optimum["tokens"], optimum["budget"], optimum["max_epochs"]
    found = simple_mixtures(study.domains.training, tokens, budget, most)
    if UNIMAX not in found:
        epochs = most if isinstance(most, Mapping) else f"{most:g}"
        there = f"{sum(tokens.values()):,.0f} tokens × {epochs} epochs"
        raise UserError(f"mixture {UNIMAX!r}: {there} are less than the budget of {budget:,.0f}")
    return found[UNIMAX]


def _regmix(study: Study) -> Weights:
    known = simple_mixtures(study.domains.training, counted_tokens(study))
    prior = known.get("proportional", known["uniform"])
    weights = np.array([prior[name] for name in study.domains.training])
    return _by_domain(study, baselines.regmix(*_observed(study), objective_of(study), weights, _SEED))


def _mixing_law(study: Study) -> Weights:
    return _by_domain(study, baselines.mixing_law(*_observed(study), objective_of(study)))


def _of_experts(tau: float) -> Callable[[Study], Weights]:
    """The best mixture of the study's experts themselves, with exponent τ of the prefix posterior."""

    def found(study: Study) -> Weights:
        from mde.evaluation import optimum
        from mde.results.scored_text import evaluation_data, log_probs_of

        goal = objective_of(study)
        if goal.worst:
            raise UserError(
                "mixtures mde and mixmin minimise averages, and the recommendation a worst case; name others, or give "
                "`mde optimize` an average"
            )
        scoring, names = study.read_json("scoring.json", "score"), study.domains.training
        data = evaluation_data(study, scoring)
        log_probs = log_probs_of(study, scoring, [f"expert-{name}" for name in names])[:]
        sequences = data.sequence_ids if tau else None
        best = optimum(log_probs, data.segment_ids, goal.weights, tau=tau, sequence_ids=sequences, names=names)
        return _by_domain(study, best.weights[0])

    return found


def _by_domain(study: Study, weights: np.ndarray) -> Weights:
    return dict(zip(study.domains.training, weights.tolist(), strict=True))


def _predicted(study: Study, name: str) -> Weights:
    """A mixture that `mde optimize` compared its recommendation with."""
    predictions = study.read_json("optimum.json", "optimize")["predictions"]
    if name not in predictions:
        raise UserError(
            f"mixture {name!r}: `mde optimize` has none for this objective; known are {', '.join(predictions)}"
        )
    return predictions[name]["mixture"]


def _scaled(study: Study) -> Weights:
    found = study.read_json("scale.json", "scale")["ddo"]
    if "tokens" not in found:
        raise UserError(f"{study.root / 'scale.json'}: a mixture at one budget only; give `mde scale` two, or a target")
    return {name: count / sum(found["tokens"].values()) for name, count in found["tokens"].items()}


def _reweighted(method: str) -> Callable[[Study], Weights]:
    return lambda study: study.read_json(f"reweighting/{method}.json", f"reweight --method={method}")["weights"]


# Where the mixtures come from that some command has found.
SOURCES: Mapping[str, Callable[[Study], Weights]] = {
    RECOMMENDED: lambda study: study.read_json("optimum.json", "optimize")["weights"],
    BEST_OBSERVED: lambda study: _predicted(study, BEST_OBSERVED),
    OWN_DOMAINS: lambda study: _predicted(study, OWN_DOMAINS),
    UNIMAX: _unimax,
    "regmix": _regmix,
    "mixing-law": _mixing_law,
    "mde": _of_experts(tau=0.0),
    "mixmin": _of_experts(tau=1.0),
    "scale": _scaled,
    **{method: _reweighted(method) for method in REWEIGHTED},
}
