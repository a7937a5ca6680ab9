"""`mde fit`: which regressor predicts the losses of mixtures it has not seen, judged out of fold.

The observations are the study's own, or somebody else's in two CSV files.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mde.errors import UserError
from mde.optimization import objectives
from mde.regression import estimators, swarm, validation
from mde.regression import features as feature_sets
from mde.regression.features import MERGED
from mde.regression.validation import Method, Round
from mde.stages import accuracy, progress
from mde.stages.elsewhere import Files
from mde.study import Domains, Study

BASELINES = ("lambda", "sqrt", "log")
LEAST = 5  # observations that can be judged out of fold
CURVE_REPEATS = 10  # splits of each point of a learning curve
CLEARLY = 2  # standard errors by which another must beat `auto`: the least of two dozen is partly luck


def fit(
    study: Study,
    mixtures: str | None = None,
    losses: str | None = None,
    unit: str | None = None,
    higher: Sequence[str] = (),
    incomplete: str = "refuse",
    ignore: Sequence[str] = (),
    objective: str | Mapping[str, float] = "avg-all",
    families: Mapping[str, Sequence[str]] | None = None,
    train_mixtures: int | None = None,
    repeats: int = 50,
    folds: int | None = None,
    regressors: Sequence[str] = ("ridge", "gbm", "auto"),
    features: Sequence[str] = (),
    curve_sizes: Sequence[int] | None = None,
    seed: int = 0,
) -> None:
    """Judges regressors × feature sets on the observations and chooses one.

    The choice is `auto`, unless the least error on the objective is below its own by more than two standard errors of
    their difference, over the splits that all were judged on; else the fewest features among those within one (after
    the rule of Breiman et al., Classification and Regression Trees, 1984). Sets with merged features are judged and not
    chosen, unless `features` names them: a search would have to run a merged model for every candidate.

    Args:
      study: a study with scored observations and evaluated features, or a new one for observations from elsewhere.
      mixtures: a CSV file of the mixtures that somebody trained: a column `run`, and one a training domain.
      losses: a CSV file of the losses they had: a column `run`, and one an evaluation domain.
      unit: of the losses in the file, such as "bits per byte"; nats per token by default.
      higher: columns in the file of losses of which more is better, such as accuracies, between 0 and 1, by names or
        patterns ("*_acc"); 1 − value, an error, is what is fitted.
      incomplete: refuse or drop a run that only one of the files has, or that has no number in some column.
      ignore: columns of either file that are no domains, such as State, by names or patterns.
      objective: what is judged: avg-sp, avg-et, avg-all, avg-families, or weights by evaluation domain, family or
        pattern.
      families: evaluation domains that count together, by a name of your own, such as
        {'math': ['minerva_*'], 'code': ['humaneval', 'mbpp*']}; optimize and iterate know them from then on.
      train_mixtures: observations that each repeat is fitted on, four fifths of them by default; the rest,
        at least 3, are held out.
      repeats: random splits, or partitions into folds, the same for all; on many rows the expensive regressors get
        the first of them only.
      folds: parts of the observations, each held out once in every repeat, instead of a random part; as many as there
        are observations to leave one out.
      regressors: names of regressors: auto, ridge, gbm, gbm-regmix, gp, ridge-residual, gbm-residual, gp-residual,
        mixing-law, log-linear, bimix, power-law, alone, mean.
      features: feature sets to try, such as "mde[0]+log"; by default those of `default_features`. `auto` is given the
        evaluated features of each, and transforms the mixture itself.
      curve_sizes: numbers of training mixtures of the learning curves, which the best feature set of each regressor
        has; four around `train_mixtures` by default, none if empty.
      seed: of the splits.
    """
    files = Files(mixtures, losses, unit, higher, incomplete, ignore)
    found = files.read(study)
    domains = Domains(tuple(found.mixtures.columns), tuple(found.losses.columns)) if found else study.domains
    members = objectives.in_families(families, domains.evaluation)
    objective = objectives.expanded(objective, domains.evaluation, domains.training, members)
    inputs = _from_elsewhere(found, objective) if found else observations(study, objective)
    train_mixtures, rounds = _rounds(len(inputs.losses), train_mixtures, repeats, folds, seed)
    evaluated = list(inputs.evaluated)
    methods: list[Method] = [("mean", "lambda"), *(("alone", name) for name in evaluated)]
    for regressor in regressors:
        sets = features or default_features(regressor, evaluated)
        methods += [(regressor, name) for name in (map(_for_auto, sets) if regressor == "auto" else sets)]
    methods = list(dict.fromkeys(methods))
    for method in methods:
        estimators.make(*method)  # an unknown name is refused before any work is done
    designs = {name: inputs.design(name) for name in dict.fromkeys(name for _, name in methods)}
    with progress.of_methods("fit", len(methods)) as advance:
        judged = validation.judge(
            inputs.losses.to_numpy(), inputs.domains, designs, methods, inputs.objective, rounds, advance=advance
        )
    _say_rounds(judged, len(rounds))
    if found:
        files.adopt(study, found)
    study.write_table("fit/objective.csv", judged.objective.rename_axis("method"))
    study.write_table("fit/domains.csv", judged.domains.rename_axis("method"))
    study.write_table("fit/rounds.csv", validation.in_rows(judged.rounds))
    study.write_table("fit/predictions.csv", _predictions(inputs, judged))
    learnt = judged.objective[judged.objective["regressor"].isin(list(regressors))]
    if not features:
        learnt = learnt[[MERGED not in feature_sets.evaluated_parts(name) for name in learnt["features"]]]
    best = _choose(learnt, judged.rounds, designs)
    sizes = _curve_sizes(len(inputs.losses), train_mixtures) if curve_sizes is None else curve_sizes
    known = train_mixtures if folds is None else None
    study.write_table("fit/learning.csv", _learning(inputs, designs, learnt, sizes, known, repeats, seed))
    fitted = estimators.make(best["regressor"], best["features"]).fit(
        designs[best["features"]], inputs.losses.to_numpy()
    )
    study.write_object("fit/regressor.joblib", fitted)
    study.write_json(
        "fit/choice.json",
        {
            "objective": objective,
            "families": members,
            "observations": len(inputs.losses),
            "train_mixtures": train_mixtures,
            "folds": folds,
            "regressor": best["regressor"],
            "features": best["features"],
            "mse": best["mse"],
            "spearman": best["spearman"],
            **({"blend": fitted.describe()} if best["regressor"] == "auto" else {}),
        },
    )
    print(f"chosen: {best['regressor']} on {best['features']}, MSE {best['mse']:.3g}, Spearman {best['spearman']:.3f}")
    if best["regressor"] == "auto":
        print(fitted.describe())
    if not found and study.tasks and (study.root / "answers.csv").exists():
        _judge_accuracy(study, regressors, rounds)
    print(f"see {study}; `mde optimize --study={study}` finds the best mixture")


def _rounds(
    observations: int, train_mixtures: int | None, repeats: int, folds: int | None, seed: int
) -> tuple[int, list[Round]]:
    """How many observations are fitted on at least, and the rounds that methods are judged on."""
    if folds is None:
        if train_mixtures is None:
            if observations < LEAST:
                raise UserError(f"{observations} observations, expected at least {LEAST}: 2 to fit on, 3 held out")
            train_mixtures = min(observations * 4 // 5, observations - 3)
        return train_mixtures, validation.splits(observations, train_mixtures, repeats, seed)
    if train_mixtures is not None:
        raise UserError(f"fit: folds={folds} says how many are held out; give it or train_mixtures={train_mixtures}")
    rounds = validation.folds(observations, folds, repeats, seed)
    return min(len(train) for train, _ in rounds[0]), rounds


def _say_rounds(judged: validation.Judgement, rounds: int) -> None:
    """Which methods were judged on fewer rounds than there are, on the terminal."""
    for _, row in judged.objective[judged.objective["n"] < rounds].iterrows():
        print(f"{row['regressor']} on {row['features']}: judged on the first {row['n']} of {rounds} rounds, for cost")


def _judge_accuracy(study: Study, regressors: Sequence[str], rounds: Sequence[Round]) -> None:
    if usable := [name for name in regressors if accuracy.predicts(name)]:
        print(accuracy.told(accuracy.judge(study, usable, rounds)))
        return
    for name in ("accuracy.csv", *(f"{metric}.joblib" for metric in accuracy.METRICS)):
        (study.root / "fit" / name).unlink(missing_ok=True)
    print(f"accuracy is not predicted: {', '.join(regressors)} can predict losses only, 'ridge' or 'auto' both")


def _from_elsewhere(found: swarm.Swarm, objective: str | Mapping[str, float]) -> "Observations":
    weights = objectives.weights(objective, list(found.losses.columns), list(found.mixtures.columns))
    return Observations(found.mixtures.values, found.losses.values, {}, weights)


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
        mixtures = self.mixtures.to_numpy()
        own = feature_sets.own_shares(features, mixtures, list(map(str, self.mixtures)), self.domains)
        return feature_sets.assemble(features, mixtures, {**self.evaluated, **own})


def observations(study: Study, objective: str | Mapping[str, float]) -> Observations:
    """The study's observations, joined by run."""
    domains = study.domains
    runs = study.mixtures()
    mixtures = runs.loc[runs["role"] == "observation", list(domains.training)]
    losses = study.losses(runs=mixtures.index)
    tables = {} if study.is_swarm else study.features(mixtures.index)
    evaluated = {name: table.to_numpy() for name, table in tables.items()}
    weights = objectives.weights(objective, domains.evaluation, domains.training)
    return Observations(mixtures, losses, evaluated, weights)


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
        raise UserError(f"regressor {regressor!r} corrects evaluated losses, and these observations have none")
    if regressor == "alone":
        return list(evaluated)
    together = "+".join(name for name in evaluated if name.startswith("mde"))
    if regressor == "auto":
        return list(dict.fromkeys(["lambda", _for_auto(together) if together else "lambda"]))
    sets = dict.fromkeys([*evaluated, *filter(None, [together])])
    alone, beside = (["lambda"], "lambda") if regressor.startswith("gbm") else (list(BASELINES), "log")
    return [*([] if estimators.corrects(regressor) else alone), *sets, *(f"{name}+{beside}" for name in sets)]


def _choose(learnt: pd.DataFrame, rounds: pd.DataFrame, designs: Mapping[str, np.ndarray]) -> pd.Series:
    by_method = learnt.set_index(["regressor", "features"], drop=False)
    found = validation.compare(rounds[list(by_method.index)])
    blends = [method for method in found.index[found["excess"] <= CLEARLY * found["error"]] if method[0] == "auto"]
    if blends:
        return by_method.loc[blends[0]]
    near = found.index[found["excess"] <= found["error"]]
    return by_method.loc[min(near, key=lambda method: designs[method[1]].shape[-1])]


def _curve_sizes(observations: int, train_mixtures: int) -> list[int]:
    """Four numbers of training mixtures, from half of the usual number to a quarter more where enough are held out."""
    most = min(train_mixtures * 5 // 4, observations - max(3, -(-observations // 5)))
    least = min(max(4, train_mixtures // 2), most)
    return sorted(set(np.linspace(least, most, 4).astype(int).tolist()))


def _learning(
    inputs: Observations,
    designs: Mapping[str, np.ndarray],
    learnt: pd.DataFrame,
    sizes: Sequence[int],
    known: int | None,
    repeats: int,
    seed: int,
) -> pd.DataFrame:
    """Errors by number of training mixtures: of each regressor on its best feature set, and of the best on λ alone.

    Those with `known` training mixtures stand in `learnt` already.
    """
    on_weights = learnt[[not feature_sets.evaluated_parts(name) for name in learnt["features"]]]
    best = learnt.loc[learnt.groupby("regressor", sort=False)["mse"].idxmin()]
    rows = pd.concat([best, on_weights.nsmallest(1, "mse")])
    methods = list(dict.fromkeys(zip(rows["regressor"], rows["features"], strict=True)))
    columns = ["regressor", "features", "train", "mse", "mse_se"]
    if not sizes:
        return pd.DataFrame(columns=columns)
    new = [size for size in sizes if size != known]
    parts = []
    if known in sizes:
        parts.append(learnt.set_index(["regressor", "features"]).loc[methods].reset_index().assign(train=known))
    if new:
        with progress.of_methods("learning curves", len(new) * len(methods)) as advance:
            curve = validation.learning_curve(
                inputs.losses.to_numpy(),
                inputs.domains,
                designs,
                methods,
                inputs.objective,
                new,
                min(repeats, CURVE_REPEATS),
                seed,
                advance,
            )
        parts.append(curve)
    return pd.concat(parts)[columns].sort_values("train", kind="stable", ignore_index=True).rename_axis("point")


def _for_auto(features: str) -> str:
    return "+".join([*feature_sets.evaluated_parts(features), "lambda"])


def _predictions(inputs: Observations, judged: validation.Judgement) -> pd.DataFrame:
    """A row a method and observation: the observed objective, the mean of its predictions out of fold, how many splits
    held the observation out, and the standard deviation of the prediction over them.
    """
    observed = inputs.losses.to_numpy() @ inputs.objective
    parts = [
        pd.DataFrame(
            {
                "run": inputs.losses.index,
                "regressor": regressor,
                "features": features,
                "observed": observed,
                "predicted": held.mean @ inputs.objective,
                "splits": held.rounds,
                "spread": held.spread,
            }
        )
        for (regressor, features), held in judged.predictions.items()
    ]
    return pd.concat(parts).set_index("run")
