"""OSS Vizier (arXiv 2207.13676) as a way to search: `pip install mde[vizier]`.

Its Eagle strategy, a firefly algorithm, needs no more than the package, `jax` and `chex`, and works without a server or
a network. Its default, a Gaussian-process bandit, needs tfp-nightly and a version of equinox that JAX has left behind.
"""

import numpy as np

from mde.errors import UserError
from mde.optimization.losses import Loss
from mde.optimization.refinement import evaluate
from mde.optimization.trust import Area

BATCH = 16  # trials between updates
METRIC = "loss"


def search(loss: Loss, region: Area, seed: int, trials: int) -> tuple[np.ndarray, float]:
    """The best mixture [K] of so many trials, and its loss.

    Vizier knows boxes, not simplices: each share has a parameter u of [0, 1], and -log u, divided by their sum, are the
    shares (uniform on the simplex for uniform u), moved into the region.

    Raises:
      UserError: Vizier is not installed.
    """
    try:
        from vizier import algorithms, pyvizier

        # The public `vizier.algorithms.designers` imports every designer: TensorFlow Probability, cvxpy and more.
        from vizier._src.algorithms.designers.eagle_strategy import eagle_strategy
    except ImportError as error:
        raise UserError(
            f"search method 'vizier' needs OSS Vizier: pip install 'mde[vizier]' (no module {error.name!r})"
        ) from error
    problem = pyvizier.ProblemStatement()
    names = [f"share-{i}" for i in range(region.k)]
    for name in names:
        problem.search_space.root.add_float_param(name, 0.0, 1.0)
    problem.metric_information.append(pyvizier.MetricInformation(METRIC, goal=pyvizier.ObjectiveMetricGoal.MINIMIZE))
    designer = eagle_strategy.EagleStrategyDesigner(problem, seed=seed)
    best, least, trial_id = np.empty(region.k), np.inf, 0
    while trial_id < trials:
        suggested = designer.suggest(min(BATCH, trials - trial_id))
        u = np.array([[trial.parameters.get_value(name) for name in names] for trial in suggested])
        mixtures = _mixtures(u, region)
        values = evaluate(loss, mixtures)
        completed = []
        for suggestion, value in zip(suggested, values.tolist(), strict=True):
            trial_id += 1
            trial = suggestion.to_trial(trial_id)
            completed.append(trial.complete(pyvizier.Measurement({METRIC: value})))
        designer.update(algorithms.CompletedTrials(completed), algorithms.ActiveTrials([]))
        if values.min() < least:
            best, least = mixtures[np.argmin(values)], float(values.min())
    return best, least


def _mixtures(u: np.ndarray, region: Area) -> np.ndarray:
    exponential = -np.log(np.clip(u.astype(np.float64), 1e-12, 1 - 1e-12))
    shares = exponential / exponential.sum(axis=1, keepdims=True)
    return region.nearby(region.low + (1 - region.low.sum()) * shares)
