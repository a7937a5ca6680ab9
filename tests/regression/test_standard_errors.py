"""The printed standard errors against how much scores really differ between independent swarms of one truth."""

from itertools import combinations

import numpy as np
import pytest

from mde.regression import cross_validation
from mde.regression.features import assemble

SWARMS = 50
METHODS = [("mean", "lambda"), ("ridge", "lambda"), ("ridge", "sqrt"), ("ridge", "log")]
SLOPES = np.random.default_rng(1).normal(size=(5, 2)) - 2 * np.eye(5, 2)


def cross_validated(seed, rows, folds, noise=0.03):
    """Cross-validation on a swarm of a mixing law (exponentials of weights) with noise."""
    rng = np.random.default_rng(1000 + seed)
    mixtures = rng.dirichlet(np.ones(5), rows)
    losses = 1.5 + np.exp(mixtures @ SLOPES) + noise * rng.normal(size=(rows, 2))
    designs = {name: assemble(name, mixtures, {}) for _, name in METHODS}
    rounds = cross_validation.folds(rows, 5, 2, 0) if folds else cross_validation.splits(rows, rows * 4 // 5, 12, 0)
    return cross_validation.cross_validate(
        losses, ["a", "b"], designs, METHODS, np.array([0.5, 0.5]), rounds, outliers=[]
    )


@pytest.mark.slow
@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("rows", [24, 64])
def test_standard_errors_are_those_of_new_swarms(rows, folds):
    """Within a factor of 1.5 on average over methods and pairs, and never twice as small as they should be."""
    found = [cross_validated(seed, rows, folds) for seed in range(SWARMS)]
    scores = np.stack([one.objective[["mse", "mse_se"]].to_numpy(float) for one in found])
    real = [scores[:, :, 0].std(axis=0, ddof=1)]
    printed = [np.sqrt((scores[:, :, 1] ** 2).mean(axis=0))]
    for pair in combinations(METHODS, 2):
        compared = [cross_validation.compare(one.rounds[list(pair)], one.ratio) for one in found]
        # `compare` measures from the better of the two, so the sign is that of the first
        signed = [table["log_ratio"][pair[0]] - table["log_ratio"][pair[1]] for table in compared]
        printed.append(np.sqrt([np.mean([table["error"].max() ** 2 for table in compared])]))
        real.append(np.std(signed, ddof=1, keepdims=True))
    ratio = np.concatenate(real) / np.concatenate(printed)
    print(f"{rows} rows, folds {folds}: real / printed {np.round(ratio, 2)}")
    assert 1 / 1.5 < np.exp(np.log(ratio[: len(METHODS)]).mean()) < 1.5
    assert 1 / 1.5 < np.exp(np.log(ratio[len(METHODS) :]).mean()) < 1.5
    assert ratio.max() < 2
    if folds:
        return
    # The spread of the splits alone is several times too small.
    naive = np.array([one.rounds[METHODS].sem().to_numpy() for one in found])
    assert (real[0] / np.sqrt((naive**2).mean(axis=0)) > 1.5).all()
