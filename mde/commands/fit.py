"""`mde fit`: which regressor best predicts the losses of mixtures it has not seen, by cross-validation.

The proxy runs are the study's own, or somebody else's in two CSV files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd

from mde.arguments import FLAT
from mde.errors import UserError
from mde.optimization import objectives
from mde.regression import cross_validation, estimators
from mde.regression import features as feature_sets
from mde.regression.cross_validation import MEAN, Method, Round
from mde.regression.features import MERGED
from mde.results import accuracy, progress
from mde.results import regressor_choice as choice
from mde.results.fit_result import FitResult
from mde.results.proxy_runs import ProxyRuns, from_swarm, proxy_runs
from mde.results.swarm_files import Files
from mde.study import Domains, Study

BASELINES = ("lambda", "sqrt", "log")
LEAST = 5  # mixtures that cross-validation takes
CURVE_REPEATS = 10  # splits of each point of a learning curve


@dataclass(frozen=True)
class Splits:
    """Of the proxy runs, for cross-validation.

    Attributes:
      train_mixtures: mixtures whose runs each repeat is fitted on, four fifths of them by default; the rest,
        at least 3, are held out.
      repeats: random splits, or partitions into folds, the same for all; on many rows the expensive regressors get
        the first of them only.
      folds: parts of the mixtures, each held out once in every repeat, instead of a random part; as many as there
        are mixtures to leave one out.
      curve_sizes: numbers of training mixtures of the learning curves, which the best feature set of each regressor
        has; four around `train_mixtures` by default, none if empty.
      seed: of the splits.
    """

    train_mixtures: int | None = None
    repeats: int = 20
    folds: int | None = None
    curve_sizes: Sequence[int] | None = None
    seed: int = 0


def fit(
    study: Study,
    files: Annotated[Files, FLAT] = Files(),
    drop: Sequence[str] = (),
    objective: str | Mapping[str, float] = "avg-all",
    families: Mapping[str, Sequence[str]] | None = None,
    regressors: Sequence[str] = ("ridge", "gbm", "auto"),
    features: Sequence[str] = (),
    splits: Annotated[Splits, FLAT] = Splits(),
) -> None:
    """Compares regressors × feature sets by cross-validation on the proxy runs and chooses one.

    The choice is `auto`, unless another has less than half its error, or less by more than two standard errors of their
    difference, over the splits that all were given; else the fewest features among those within one (after the rule of
    Breiman et al., Classification and Regression Trees, 1984). Only what predicts better than the mean can be chosen;
    if nothing does, the mean is. Sets with merged features are compared and not chosen, unless `features` names them: a
    search would have to run a merged model for every candidate.

    Replicates, runs of the same mixture with other seeds, are never on both sides of a split. Standard errors are over
    new swarms (Nadeau and Bengio, Machine Learning, 2003). Losses that are far from what the other runs predict are
    named and fitted, and not scored.

    Args:
      study: a study with scored proxy runs and evaluated features, or a new one for proxy runs from elsewhere.
      files: of proxy runs that somebody else made.
      drop: runs to leave out, by name, here and in all later commands.
      objective: what is predicted: avg-sp, avg-et, avg-all, avg-families, or weights by evaluation domain, family or
        pattern.
      families: evaluation domains that count together, by a name of your own, such as
        {'math': ['minerva_*'], 'code': ['humaneval', 'mbpp*']}; optimize and iterate know them from then on.
      regressors: names of regressors: auto, ridge, gbm, gbm-regmix, gp, ridge-residual, gbm-residual, gp-residual,
        mixing-law, log-linear, bimix, power-law, alone, mean.
      features: feature sets to try, such as "mde[0]+log"; by default those of `default_features`. `auto` is given the
        evaluated features of each, and transforms the mixture itself.
      splits: of the proxy runs, for cross-validation.
    """
    found = files.read(study)
    domains = Domains(tuple(found.mixtures.columns), tuple(found.losses.columns)) if found else study.domains
    members = objectives.in_families(families, domains.evaluation)
    objective = objectives.expanded(objective, domains.evaluation, domains.training, members)
    inputs = from_swarm(found, objective, drop) if found else proxy_runs(study, objective, drop)
    for line in choice.told_of_swarm(inputs.mixtures, inputs.losses):
        print(line)
    train_mixtures, rounds = _rounds(inputs.groups, splits)
    about = {
        "objective": objective,
        "families": members,
        "train_mixtures": train_mixtures,
        "folds": splits.folds,
        "dropped": list(drop),
    }
    sizes = _curve_sizes(inputs.n_mixtures, train_mixtures) if splits.curve_sizes is None else splits.curve_sizes
    known = train_mixtures if splits.folds is None else None
    curves = Curves(sizes, min(splits.repeats, CURVE_REPEATS), splits.seed, known)
    result = _compared(inputs, regressors, features, rounds, curves, about)
    if found:
        files.adopt(study, found)
    result.save(study)
    for line in result.lines():
        print(line)
    if not found and study.tasks and (study.root / "answers.csv").exists():
        _cross_validate_accuracy(study, inputs.mixtures, regressors, rounds)
    print(f"see {study}; `mde optimize --study={study}` finds the best mixture")


@dataclass(frozen=True)
class Curves:
    """Which learning curves are made: numbers of training mixtures, splits of each, their seed, and the known number.

    Attributes:
      known: the number of training mixtures of the comparison itself, whose errors are not measured again; None if the
        comparison is by folds.
    """

    sizes: Sequence[int]
    repeats: int
    seed: int
    known: int | None


def _compared(
    inputs: ProxyRuns,
    regressors: Sequence[str],
    features: Sequence[str],
    rounds: Sequence[Round],
    curves: Curves,
    about: Mapping[str, Any],
) -> FitResult:
    """Cross-validates all methods, chooses one and fits it on all proxy runs."""
    methods = _methods(regressors, features, list(inputs.evaluated))
    designs = {name: inputs.design(name) for name in dict.fromkeys(name for _, name in methods)}
    losses_RJ, scored = inputs.losses.to_numpy(), choice.scored_weights(inputs.objective, inputs.losses)
    with progress.of_methods("fit", len(methods)) as advance:
        compared = cross_validation.cross_validate(
            losses_RJ, inputs.domains, designs, methods, scored, rounds, advance=advance
        )
    learnt = [method for method in methods if method[0] in regressors]
    if not features:
        learnt = [method for method in learnt if MERGED not in feature_sets.evaluated_parts(method[1])]
    best, fitted, compared = choice.fit_chosen(compared, learnt, designs, losses_RJ)
    kept = choice.without_outliers(compared.outliers, len(losses_RJ))
    usable = [method for method in learnt if method in compared.predictions]
    return FitResult(
        inputs=inputs,
        compared=compared,
        method=best,
        regressor=fitted,
        rounds=len(rounds),
        unresponsive=choice.unresponsive(compared, best, learnt),
        noise=choice.noise(inputs.mixtures, inputs.losses, scored, kept),
        learning=_learning(inputs, designs, usable, compared, scored, curves),
        about=about,
    )


def _methods(regressors: Sequence[str], features: Sequence[str], evaluated: list[str]) -> list[Method]:
    """The mean, the evaluators alone, and the regressors on their feature sets.

    Raises:
      UserError: an unknown name.
    """
    methods: list[Method] = [MEAN, *(("alone", name) for name in evaluated)]
    for regressor in regressors:
        sets = features or default_features(regressor, evaluated)
        methods += [(regressor, name) for name in (map(_for_auto, sets) if regressor == "auto" else sets)]
    methods = list(dict.fromkeys(methods))
    for method in methods:
        estimators.make(*method)  # an unknown name is an error before any work is done
    return methods


def _rounds(groups: np.ndarray, how: Splits) -> tuple[int, list[Round]]:
    """How many mixtures are fitted on at least, and the rounds of cross-validation."""
    train_mixtures, folds = how.train_mixtures, how.folds
    count = int(groups.max()) + 1
    if count == 1:
        raise UserError(f"all {len(groups)} proxy runs have the same mixture; expected at least {LEAST} mixtures")
    if folds is None:
        if train_mixtures is None:
            if count < LEAST:
                runs = f"{len(groups)} proxy runs" + (f" of {count} mixtures" if count < len(groups) else "")
                raise UserError(f"{runs}, expected at least {LEAST} mixtures: 2 to fit on, 3 held out")
            train_mixtures = min(count * 4 // 5, count - 3)
        return train_mixtures, cross_validation.splits(groups, train_mixtures, how.repeats, how.seed)
    if train_mixtures is not None:
        raise UserError(f"fit: folds={folds} says how many are held out; give it or train_mixtures={train_mixtures}")
    rounds = cross_validation.folds(groups, folds, how.repeats, how.seed)
    return count - -(-count // folds), rounds


def _cross_validate_accuracy(
    study: Study, mixtures: pd.DataFrame, regressors: Sequence[str], rounds: Sequence[Round]
) -> None:
    if usable := [name for name in regressors if accuracy.predicts(name)]:
        print(accuracy.told(accuracy.cross_validate(study, mixtures, usable, rounds)))
        return
    for name in ("accuracy.csv", *(f"{metric}.joblib" for metric in accuracy.METRICS)):
        (study.root / "fit" / name).unlink(missing_ok=True)
    print(f"accuracy is not predicted: {', '.join(regressors)} can predict losses only, 'ridge' or 'auto' both")


def default_features(regressor: str, evaluated: Sequence[str]) -> list[str]:
    """The mixture alone, each evaluated feature, all mixtures of experts together, and these beside log λ.

    Trees see λ, √λ and log λ alike, so they are given λ; `auto` makes its own sets of λ and all mixtures of experts.
    Laws are given what they are laws of, and those that correct an evaluator the sets that have one.

    Raises:
      UserError: a regressor that corrects an evaluator, and nothing is evaluated.
    """
    if regressor in estimators.ONLY:
        return [estimators.ONLY[regressor]]
    if estimators.corrects(regressor) and not evaluated:
        raise UserError(f"regressor {regressor!r} corrects evaluated losses, and these proxy runs have none")
    if regressor == "alone":
        return list(evaluated)
    together = "+".join(name for name in evaluated if name.startswith("mde"))
    if regressor == "auto":
        return list(dict.fromkeys(["lambda", _for_auto(together) if together else "lambda"]))
    sets = dict.fromkeys([*evaluated, *filter(None, [together])])
    alone, beside = (["lambda"], "lambda") if regressor.startswith("gbm") else (list(BASELINES), "log")
    return [*([] if estimators.corrects(regressor) else alone), *sets, *(f"{name}+{beside}" for name in sets)]


def _curve_sizes(mixtures: int, train_mixtures: int) -> list[int]:
    """Four numbers of training mixtures, from half of the usual number to a quarter more where enough are held out."""
    most = min(train_mixtures * 5 // 4, mixtures - max(3, -(-mixtures // 5)))
    least = min(max(4, train_mixtures // 2), most)
    return sorted(set(np.linspace(least, most, 4).astype(int).tolist()))


def _learning(
    inputs: ProxyRuns,
    designs: Mapping[str, np.ndarray],
    usable: Sequence[Method],
    compared: cross_validation.CrossValidation,
    objective: np.ndarray,
    curves: Curves,
) -> pd.DataFrame:
    """Errors by number of training mixtures: of each regressor on its best feature set, and of the best on λ alone."""
    table = compared.objective.set_index(["regressor", "features"]).loc[list(usable)].reset_index()
    on_weights = table[[not feature_sets.evaluated_parts(name) for name in table["features"]]]
    best = table.loc[table.groupby("regressor", sort=False)["mse"].idxmin()]
    rows = pd.concat([best, on_weights.nsmallest(1, "mse")])
    methods = list(dict.fromkeys(zip(rows["regressor"], rows["features"], strict=True)))
    columns = ["regressor", "features", "train", "mse", "mse_se"]
    if not curves.sizes or not methods:
        return pd.DataFrame(columns=columns)
    new = [size for size in curves.sizes if size != curves.known]
    parts = []
    if curves.known in curves.sizes:
        known = table.set_index(["regressor", "features"]).loc[methods].reset_index()
        parts.append(known.assign(train=curves.known))
    if new:
        with progress.of_methods("learning curves", len(new) * len(methods)) as advance:
            curve = cross_validation.learning_curve(
                inputs.losses.to_numpy(),
                inputs.domains,
                designs,
                methods,
                objective,
                new,
                curves.repeats,
                curves.seed,
                advance,
                inputs.groups,
                compared.outliers,
            )
        parts.append(curve[curve["failed"] == ""])
    return pd.concat(parts)[columns].sort_values("train", kind="stable", ignore_index=True).rename_axis("point")


def _for_auto(features: str) -> str:
    return "+".join([*feature_sets.evaluated_parts(features), "lambda"])
