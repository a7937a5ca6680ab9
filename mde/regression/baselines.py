"""What others would recommend on the same proxy runs: RegMix's way, and that of the data mixing laws.

Shapes: R proxy runs, K training domains, J evaluation domains.
"""

import numpy as np

from mde.optimization import search
from mde.optimization.objectives import Objective
from mde.optimization.region import Region
from mde.regression.estimators import GradientBoosting, make
from mde.regression.formulas import formula, under
from mde.regression.laws import MixingLaw

ROWS = 40  # proxy runs with which LightGBM's leaves of 20 rows can split for the first time
DRAWS, BEST = 100_000, 128  # as in RegMix's own notebook


def regmix(mixtures: np.ndarray, losses: np.ndarray, objective: Objective, prior: np.ndarray, seed: int) -> np.ndarray:
    """RegMix's mixture [K]: the mean of the 128 best of 100,000 draws of Dirichlet(prior), by trees fitted on λ.

    Source: arXiv 2407.01492 and `regression_fitting/regression.ipynb` of its repository: LightGBM with 1,000 trees at
    rate 0.01 on the target itself. It stops early on test rows there; here no rows are left for that. With fewer than
    `ROWS` proxy runs its leaves of 20 rows could not split and the trees would be a constant, so leaves may have two.

    Args:
      mixtures: of the proxy runs, [R, K].
      losses: of these, [R, J], nats per token.
      objective: the target.
      prior: what draws are centred on, the domains' weights of the text, [K].
      seed: of the draws.
    """
    few = GradientBoosting(1000, 0.01, num_leaves=31, min_child_samples=2, min_data_in_bin=1)
    trees = (make("gbm-regmix") if len(mixtures) >= ROWS else few).fit(mixtures, objective(losses)[:, None])
    found = search.minimize(
        lambda candidates: trees.predict(candidates)[:, 0],
        Region.simplex(mixtures.shape[1]),
        seed,
        "simulation",
        n_candidates=DRAWS,
        top=BEST,
        concentration=prior,
    )
    return found.mixture


def mixing_law(mixtures: np.ndarray, losses: np.ndarray, objective: Objective) -> np.ndarray:
    """The mixture [K] of min objective under exponential laws, one per evaluation domain.

    Source: Data Mixing Laws, arXiv 2403.16952, equation 7. The laws are convex, so this is their optimum over the whole
    simplex, of an average or a worst case.

    Args:
      mixtures: of the proxy runs, [R, K].
      losses: of these, [R, J], nats per token.
      objective: what is minimised.
    """
    laws = formula(MixingLaw().fit(mixtures, losses), "lambda")
    assert laws is not None
    return search.minimize(under(laws, objective), Region.simplex(mixtures.shape[1]), 0, "exact").mixture
