"""What `mde fit` found: the comparison of regressors, the one chosen, and what the proxy runs say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mde.regression import cross_validation
from mde.regression.cross_validation import CrossValidation, Method
from mde.results import regressor_choice
from mde.results.proxy_runs import ProxyRuns
from mde.study import Study


@dataclass(frozen=True)
class FitResult:
    """The result of `mde fit`.

    Attributes:
      inputs: the proxy runs, R of them.
      compared: the cross-validation of all methods.
      method: the one chosen, a regressor and its feature set.
      regressor: the chosen one, fitted on all proxy runs.
      rounds: rounds of cross-validation that were asked for.
      unresponsive: evaluation domains on which nothing predicts better than the mean.
      noise: of a run, from replicates; empty where there are none.
      learning: errors by number of training mixtures, one row per method and number.
      about: the arguments that later commands need: objective, families, train_mixtures, folds, dropped.
    """

    inputs: ProxyRuns
    compared: CrossValidation
    method: Method
    regressor: Any
    rounds: int
    unresponsive: list[str]
    noise: dict[str, Any]
    learning: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def outliers(self) -> pd.DataFrame:
        """Losses that are far from what the other proxy runs predict, one row each."""
        return regressor_choice.outlier_table(self.compared.outliers, self.inputs.losses)

    @property
    def scores(self) -> tuple[float, float]:
        """Mean squared error and Spearman correlation of the chosen method, cross-validated."""
        table = self.compared.objective.set_index(["regressor", "features"])
        mse, spearman = (float(table[name].to_dict()[self.method]) for name in ("mse", "spearman"))
        return mse, spearman

    def save(self, study: Study) -> None:
        """Writes the folder `fit/` of a study."""
        study.write_table("fit/objective.csv", self.compared.objective.rename_axis("method"))
        study.write_table("fit/domains.csv", self.compared.domains.rename_axis("method"))
        study.write_table("fit/rounds.csv", cross_validation.in_rows(self.compared.rounds))
        study.write_table("fit/predictions.csv", self._predictions())
        study.write_table("fit/outliers.csv", self.outliers)
        study.write_table("fit/learning.csv", self.learning)
        study.write_object("fit/regressor.joblib", self.regressor)
        mse, spearman = self.scores
        choice = {
            **self.about,
            "proxy_runs": len(self.inputs.losses),
            "mixtures": self.inputs.n_mixtures,
            "regressor": self.method[0],
            "features": self.method[1],
            "mse": mse,
            "spearman": spearman,
            "unresponsive": self.unresponsive,
            "untrained": regressor_choice.untrained(self.inputs.mixtures),
            "noise": self.noise,
        }
        blend = {"blend": self.regressor.describe()} if self.method[0] == "auto" else {}
        study.write_json("fit/choice.json", choice | blend)

    def lines(self) -> list[str]:
        """What there is to say on the terminal."""
        mse, spearman = self.scores
        said = [*self._failures(), *regressor_choice.told_of_outliers(self.outliers)]
        if self.unresponsive:
            said.append(
                f"{len(self.unresponsive)} of {len(self.inputs.domains)} evaluation domains do not respond to the "
                f"mixture: no better than the mean on {regressor_choice.listed(self.unresponsive)}"
            )
        said += regressor_choice.told_of_mean(self.compared, self.method)
        ranks = f", Spearman {spearman:.3f}" if np.isfinite(spearman) else ""
        said.append(f"chosen: {self.method[0]} on {self.method[1]}, MSE {mse:.3g}{ranks}")
        if self.noise:
            said.append(regressor_choice.told_of_noise(self.noise, mse))
        if self.method[0] == "auto":
            said.append(self.regressor.describe())
        return said

    def _failures(self) -> list[str]:
        """Which methods failed, and which were given fewer rounds than there are."""
        said = []
        for _, row in self.compared.objective.iterrows():
            name = f"{row['regressor']} on {row['features']}"
            if row["failed"]:
                said.append(f"{name} failed: {row['failed']}")
            elif row["n"] < self.rounds:
                said.append(f"{name}: scored on the first {row['n']} of {self.rounds} rounds, for cost")
        return said

    def _predictions(self) -> pd.DataFrame:
        """One row per method and proxy run: the observed objective, the mean cross-validated prediction, how many
        splits held the run out, and the standard deviation of the prediction over them.
        """
        observed = self.inputs.losses.to_numpy() @ self.inputs.objective
        parts = [
            pd.DataFrame(
                {
                    "run": self.inputs.losses.index,
                    "regressor": regressor,
                    "features": features,
                    "observed": observed,
                    "predicted": held.mean @ self.inputs.objective,
                    "splits": held.rounds,
                    "spread": held.spread,
                }
            )
            for (regressor, features), held in self.compared.predictions.items()
        ]
        return pd.concat(parts).set_index("run")
