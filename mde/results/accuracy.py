"""Accuracy on end tasks: what the experts' answers say of any mixture's, and which regressor predicts it best.

Beside the losses of `mde.commands.evaluate` a mixture has, by task, `accuracy[τ]`, `expected[τ]` and `margin[τ]` (see
`mde.evaluation.answers.Summaries`) for τ = 0, the mixture of data experts, and τ = 1, the Bayes mixture of sequences;
`accuracy_norm[τ]` and so on are the same of log-probs per UTF-8 byte.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mde.regression import cross_validation, estimators
from mde.regression import features as feature_sets
from mde.regression.cross_validation import Method, Round
from mde.results import progress
from mde.study import Study

METRICS = {"acc": "", "acc_norm": "_norm"}  # what is measured, and how the features that go with it end
TAUS = (0, 1)
LAMBDA = ("lambda", "sqrt", "log")
_CORRECTED = "expected"
_STEPS, _HELPFUL = ("accuracy",), (_CORRECTED, "margin")  # the first goes in steps of one example


def answer_features(study: Study) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from mixtures [C, K] to features [C, tasks] by name, for a study whose choices are scored."""
    from mde.results.scored_text import choice_tasks, choices_of

    about = study.read_json("scoring.json", "score")
    experts = [f"expert-{name}" for name in study.domains.training]
    tasks = [choices_of(study, about, experts, task) for task in choice_tasks(study)]

    def features(mixtures: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {}
        for choices in tasks:
            for tau in TAUS:
                scores = choices.mixed(mixtures, tau)
                for ending, values in (("", scores), ("_norm", scores / choices.bytes)):
                    for name, column in choices.summaries(values)._asdict().items():
                        found.setdefault(f"{name}{ending}[{tau}]", []).append(column)
        return {name: np.stack(columns, axis=1) for name, columns in found.items()}

    return features


def answers(study: Study, mixtures: pd.DataFrame) -> pd.DataFrame:
    """The features of a table of mixtures, columns FEATURE/TASK."""
    from mde.results.scored_text import choice_tasks

    columns = {
        f"{name}/{task}": values[:, j]
        for name, values in answer_features(study)(mixtures.to_numpy()).items()
        for j, task in enumerate(choice_tasks(study))
    }
    return pd.DataFrame(columns, pd.Index(mixtures.index, name="mixture"))


def names_of(metric: str, parts: Sequence[str]) -> list[str]:
    """The features that go with a metric."""
    return [f"{part}{METRICS[metric]}[{tau}]" for tau in TAUS for part in parts]


def predicts(regressor: str) -> bool:
    """Whether a regressor can be one of accuracies: not the laws, which are of losses, nor what fits nothing."""
    return regressor not in (*estimators.ONLY, "alone")


def cross_validate(
    study: Study, mixtures: pd.DataFrame, regressors: Sequence[str], rounds: Sequence[Round]
) -> pd.DataFrame:
    """Compares regressors of accuracy by cross-validation, as `mde fit` does those of losses, and keeps the best.

    The objective is the mean over the tasks. Writes `fit/accuracy.csv`, one row per metric, regressor and feature set,
    and for each metric the method of lowest error, fitted on all proxy runs: the mean if none is better.

    Returns:
      The table.
    """
    accuracies = study.read_table("accuracies.csv", "score", rows=mixtures.index)
    table = study.read_table("answers.csv", "evaluate", rows=mixtures.index)
    tasks = [name.removeprefix("acc/") for name in map(str, accuracies) if name.startswith("acc/")]
    parts = []
    for metric in METRICS:
        observed = accuracies[[f"{metric}/{task}" for task in tasks]].to_numpy()
        evaluated = {
            name: table[[f"{name}/{task}" for task in tasks]].to_numpy()
            for name in names_of(metric, (*_STEPS, *_HELPFUL))
        }
        methods = _methods(metric, regressors)
        designs = {
            name: feature_sets.assemble(name, mixtures.to_numpy(), evaluated)
            for name in dict.fromkeys(name for _, name in methods)
        }
        weights = np.full(len(tasks), 1 / len(tasks))
        with progress.of_methods(f"fit {metric}", len(methods)) as advance:
            cross_validated = cross_validation.cross_validate(
                observed, tasks, designs, methods, weights, rounds, advance=advance
            )
        parts.append(cross_validated.objective.assign(metric=metric, measured=observed.mean()))
        learnt = [method for method in cross_validated.predictions if method[0] in (*regressors, "mean")]
        regressor, features = cross_validation.compare(cross_validated.rounds[learnt], cross_validated.ratio).index[0]
        fitted = estimators.make(regressor, features).fit(designs[features], observed)
        study.write_object(f"fit/{metric}.joblib", {"features": features, "tasks": tasks, "regressor": fitted})
    found = pd.concat(parts, ignore_index=True)
    study.write_table("fit/accuracy.csv", found.rename_axis("method"))
    return found


def told(table: pd.DataFrame) -> str:
    """The best regressor with the experts' answers and the best on λ alone, where there are any, for each metric."""
    lines = []
    for metric, rows in table[~table["regressor"].isin(["mean", "alone"]) & table["mse"].notna()].groupby("metric"):
        answers = rows["features"].str.contains("[", regex=False)
        best = {
            kind: part.iloc[int(part["mse"].argmin())]
            for kind, part in (("from the experts' answers", rows[answers]), ("from λ", rows[~answers]))
            if len(part)
        }
        errors = [f"{row['mse']:.3g} {kind} ({row['regressor']} on {row['features']})" for kind, row in best.items()]
        lines.append(f"{metric}, {rows['measured'].iloc[0]:.1%} on average: MSE {', '.join(errors)}")
    return "\n".join(lines)


class AccuracyPredictor:
    """The regressors that `cross_validate` kept: mixtures to accuracies by `acc/TASK` and `acc_norm/TASK`."""

    def __init__(self, study: Study):
        self._kept: Mapping[str, Any] = {name: study.read_object(f"fit/{name}.joblib", "fit") for name in METRICS}
        self._features = answer_features(study)

    def __call__(self, mixtures: np.ndarray) -> dict[str, np.ndarray]:
        """Predicted accuracies [C] of mixtures [C, K]."""
        evaluated = self._features(mixtures)
        found: dict[str, np.ndarray] = {}
        for metric, kept in self._kept.items():
            predicted = kept["regressor"].predict(feature_sets.assemble(kept["features"], mixtures, evaluated))
            found |= {f"{metric}/{task}": predicted[:, j] for j, task in enumerate(kept["tasks"])}
        return found


def _methods(metric: str, regressors: Sequence[str]) -> list[Method]:
    """On λ alone, on each of the features that help, on those of each τ, and on all, with and without the logarithm.

    What corrects an evaluator is given the sets that begin with an expected accuracy.
    """
    sets = [[name] for name in names_of(metric, _HELPFUL)]
    sets += [[f"{part}{METRICS[metric]}[{tau}]" for part in _HELPFUL] for tau in TAUS]
    together = "+".join(names_of(metric, _HELPFUL))
    joined = [*("+".join(names) for names in sets), together]
    methods: list[Method] = [
        ("mean", "lambda"),
        *(("alone", name) for name in names_of(metric, ("accuracy", "expected"))),
    ]
    for regressor in regressors:
        if regressor == "auto":
            methods += [("auto", "lambda"), ("auto", f"{together}+lambda")]
            continue
        trees = regressor.startswith("gbm")
        names = ["lambda", *joined] if trees else [*LAMBDA, *joined, *(f"{name}+log" for name in joined)]
        if estimators.corrects(regressor):
            names = [name for name in names if name.startswith(_CORRECTED)]
        methods += [(regressor, name) for name in names]
    return methods
