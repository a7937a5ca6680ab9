"""The chosen regressor, fitted on all proxy runs, as a function from mixtures to losses."""

from collections.abc import Callable

import numpy as np

from mde.regression import features as feature_sets
from mde.regression.designs import knows_deviation
from mde.study import Study


class Predictor:
    """The chosen regressor, fitted on all proxy runs, as a function from mixtures to losses."""

    def __init__(self, study: Study):
        self.features = study.read_json("fit/choice.json", "fit")["features"]
        self.regressor = study.read_object("fit/regressor.joblib", "fit")
        self._evaluated = evaluated(study, self.features)

    def design(self, mixtures: np.ndarray) -> np.ndarray:
        """Features of any mixtures [C, K]."""
        return feature_sets.assemble(self.features, mixtures, self._evaluated(mixtures))

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """Predicted losses [C, J] in the study's unit."""
        return self.regressor.predict(self.design(mixtures))

    def with_deviations(self, mixtures: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Predicted losses [C, J] and their standard deviations, None if the regressor has none."""
        if knows_deviation(self.regressor):
            return self.regressor.predict(self.design(mixtures), return_std=True)
        return self(mixtures), None


def evaluated(study: Study, features: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The evaluators of a feature set; functions of λ alone need neither models nor JAX.

    Returns:
      mixtures [C, K] -> losses [C, J] in nats per token, by evaluated feature, and own weights where they are a part.
    """
    domains = study.domains

    def own(mixtures: np.ndarray) -> dict[str, np.ndarray]:
        return feature_sets.own_domain_weights(features, mixtures, domains.training, domains.evaluation)

    if not (names := feature_sets.evaluated_parts(features)):
        return own
    from mde.results.evaluators import evaluators

    losses = evaluators(study, only=names)
    return lambda mixtures: {**losses(mixtures), **own(mixtures)}
