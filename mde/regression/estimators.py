"""Regressors from features of mixtures to losses, as scikit-learn estimators.

Every regressor takes a design X (`mde.regression.designs`) and observed losses y [R, J] (in any unit) and predicts
losses [C, J].
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from mde.errors import UserError, unknown
from mde.regression import designs
from mde.regression.auto import Auto
from mde.regression.designs import check_fit, check_predict, own
from mde.regression.features import evaluated_parts
from mde.regression.gaussian_process import GaussianProcess
from mde.regression.laws import BiMix, MixingLaw, PowerLaw
from mde.regression.mean import Mean
from mde.regression.ridge import Ridge

THREADS = 2  # that fit trees, each those of a target


class GradientBoosting(RegressorMixin, BaseEstimator):
    """LightGBM regression trees, one model per target; silent, one thread each, the same every time.

    The defaults are for a few dozen rows, where LightGBM's own (leaves of 20 rows) would not split at all.

    Args:
      n_estimators: number of trees.
      learning_rate: how much of each tree counts.
      num_leaves: leaves a tree at most.
      min_child_samples: rows a leaf at least.
      min_data_in_bin: rows a histogram bin at least; 1 lets a split fall between any two rows.
    """

    def __init__(
        self,
        n_estimators: int = 100,
        learning_rate: float = 0.05,
        num_leaves: int = 4,
        min_child_samples: int = 2,
        min_data_in_bin: int = 1,
    ):
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_child_samples = min_child_samples
        self.min_data_in_bin = min_data_in_bin

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `boosters_`, one a target."""
        import lightgbm  # half a second that only those who boost should pay

        design, losses = check_fit(X, y)
        settings = self.get_params() | {
            "objective": "regression",
            "verbosity": -1,
            "num_threads": 1,
            "seed": 0,
            "deterministic": True,
            "force_row_wise": True,
        }
        rounds = settings.pop("n_estimators")

        def booster(j: int) -> Any:
            return lightgbm.train(settings, lightgbm.Dataset(own(design, j), losses[:, j]), rounds)

        with ThreadPoolExecutor(THREADS) as pool:  # LightGBM's own threads gain nothing on small tables
            self.boosters_ = list(pool.map(booster, range(losses.shape[1])))
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        return np.stack([b.predict(own(design, j), num_threads=1) for j, b in enumerate(self.boosters_)], axis=1)


class Alone(RegressorMixin, BaseEstimator):
    """The evaluator's own losses as the prediction, nothing fitted: "MDE alone" of arXiv 2502.15950, table 1.

    Its design is a single evaluated feature, [R, J, 1].
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Learns nothing but the shape."""
        design, losses = check_fit(X, y)
        if design.shape[1:] != (losses.shape[1], 1):
            raise UserError(f"regressor 'alone' takes exactly one evaluated feature, not a design {design.shape}")
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        return check_predict(X, self.design_shape_)[:, :, 0].copy()


class Residual(RegressorMixin, BaseEstimator):
    """Learns what the evaluator got wrong: observed losses minus the first evaluated feature.

    The design is [R, J, F], whose first feature is the first evaluated one (nats per token) that was named.

    Args:
      regressor: what learns the difference, from all features of the design.
    """

    def __init__(self, regressor: BaseEstimator):
        self.regressor = regressor

    def work(self, rows: int, targets: int) -> float:
        """What a fit costs, as `regressor` counts it."""
        return designs.work(self.regressor, rows, targets)

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fits `regressor_`, a clone of `regressor`."""
        design, losses = check_fit(X, y)
        if design.ndim != 3:
            raise UserError("a residual regressor takes a feature set with an evaluated feature, a design [R, J, F]")
        self.regressor_ = clone(self.regressor).fit(design, losses - design[:, :, 0])
        self.design_shape_ = design.shape[1:]
        return self

    def predict(self, X: npt.ArrayLike) -> np.ndarray:
        """Losses [C, J], nats per token."""
        check_is_fitted(self)
        design = check_predict(X, self.design_shape_)
        return self.regressor_.predict(design) + design[:, :, 0]


REGRESSORS: dict[str, Callable[[], Any]] = {
    "mean": Mean,
    "alone": Alone,
    "ridge": Ridge,
    "ridge-residual": lambda: Residual(Ridge()),
    "gbm": GradientBoosting,
    "gbm-residual": lambda: Residual(GradientBoosting()),
    # RegMix (arXiv 2407.01492): 1000 trees, rate 0.01, LightGBM's defaults otherwise. It needs 40 rows for its first
    # split into two leaves of 20, and predicts a constant with fewer.
    "gbm-regmix": lambda: GradientBoosting(1000, 0.01, num_leaves=31, min_child_samples=20, min_data_in_bin=3),
    "gp": GaussianProcess,
    "gp-residual": lambda: Residual(GaussianProcess()),
    "mixing-law": MixingLaw,
    "log-linear": lambda: MixingLaw(huber=0.02),
    "bimix": BiMix,
    "power-law": PowerLaw,
    "auto": Auto,
}

# The only feature set that these make sense on; the others take any, residuals and `alone` with an evaluated part.
ONLY = {"mean": "lambda", "mixing-law": "lambda", "log-linear": "lambda", "bimix": "own", "power-law": "own"}


def corrects(name: str) -> bool:
    """Whether a regressor starts from evaluated losses, so that it needs a feature set which has some."""
    return name == "alone" or name.endswith("-residual")


def make(name: str, features: str = "") -> Any:
    """An unfitted regressor by its name in `REGRESSORS`.

    Args:
      name: of the regressor.
      features: the feature set it will be given; `auto` must know it, and takes evaluated features and then `lambda`.

    Raises:
      UserError: no such regressor; names the nearest. A feature set that `auto` cannot take.
    """
    if name not in REGRESSORS:
        raise unknown("regressor", name, REGRESSORS)
    if name != "auto":
        return REGRESSORS[name]()
    evaluated = evaluated_parts(features) if features else []
    if features and features != "+".join([*evaluated, "lambda"]):
        raise UserError(f"regressor 'auto' on {features!r}: expected evaluated features and then lambda")
    return Auto(evaluated)
