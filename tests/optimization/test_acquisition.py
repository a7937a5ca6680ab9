from typing import ClassVar

import numpy as np
import pytest
from regions import BOX
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import Ridge

from mde.errors import UserError
from mde.optimization import acquisition, search, simplex
from mde.optimization.acquisition import Belief
from mde.optimization.region import Region
from mde.regression import estimators


def process():
    kernel = ConstantKernel() * Matern(0.5, nu=2.5) + WhiteKernel(1e-4, (1e-8, 1e-1))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)


class Known:
    """A model whose mean is the first share and whose deviation is the second."""

    def predict(self, mixtures, return_std):
        return mixtures[:, :1], mixtures[:, 1:2]


def test_expected_improvement_is_the_integral_it_stands_for():
    points = np.array([[0.1, 0.3, 0.6], [0.5, 0.2, 0.3], [0.4, 0.01, 0.59], [0.2, 0.05, 0.75]])
    belief = Belief(Known(), np.array, noise=0.0, best=points[3], least=0.3, known=points)
    expected = [
        integrate.quad(lambda y, m=m, s=s: (0.3 - y) * stats.norm(m, s).pdf(y), m - 12 * s, 0.3, limit=200)[0]
        for m, s in points[:, :2]
    ]
    # The third is ten deviations away: its improvement is 7e-27 and its quadrature is not exact there.
    found = np.exp(belief.log_improvement(points))
    np.testing.assert_allclose(found[[0, 1, 3]], np.array(expected)[[0, 1, 3]], rtol=1e-7)


@pytest.mark.parametrize("z", [-1e-9, -5.0, -30.0, -1000.0])
def test_log_improvement_tells_mixtures_apart_where_improvement_underflows(z):
    """Against the asymptotic series of the normal tail: φ(z) / z² (1 - 3/z² + 15/z⁴), and against SciPy near zero."""
    points = np.array([[0.5 - 0.01 * z, 0.01, 0.5]])
    found = Belief(Known(), np.array, 0.0, points[0], 0.5, points).log_improvement(points)[0]
    if z > -10:
        expected = np.log(0.01 * (stats.norm.pdf(z) + z * stats.norm.cdf(z)))
    else:
        expected = np.log(0.01) + stats.norm.logpdf(z) - 2 * np.log(-z) + np.log1p(-3 / z**2 + 15 / z**4)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_noise_of_a_run_is_not_uncertainty():
    points = np.array([[0.2, 0.5, 0.3], [0.2, 0.3, 0.5]])
    _, std = Belief(Known(), np.array, noise=0.3, best=points[0], least=0.1, known=points)(points)
    np.testing.assert_allclose(std, [0.4, 0.0], atol=1e-15)


def differing(mixtures, known=None):
    """The share of the tokens in which each pair of mixtures differs."""
    if known is None:
        i, j = np.triu_indices(len(mixtures), 1)
        return np.abs(mixtures[i] - mixtures[j]).sum(axis=1) / 2
    return np.abs(mixtures[:, None] - known).sum(axis=2) / 2


def truth(mixtures):
    target = np.array([0.35, 0.3, 0.2, 0.1, 0.05])[: mixtures.shape[1]]
    return np.sum((mixtures - target) ** 2, axis=1) - 0.05 * np.log(mixtures[:, 0] + 0.02)


def rounds(seed, region, n=3):
    mixtures = region.sample(8, seed)
    for number in range(n):
        found = acquisition.propose(process(), np.sqrt, mixtures, truth(mixtures), region, 2, number, n_candidates=128)
        mixtures = np.vstack([mixtures, found.mixtures])
    return mixtures, found


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rounds_find_better_mixtures_than_as_many_random_ones():
    region = Region.simplex(5)
    least = search.minimize(truth, region, 0).loss
    for seed in range(3):
        found = truth(rounds(seed, region)[0]).min() - least
        random = truth(simplex.space_filling(14, 5, seed)).min() - least
        assert found < random / 2


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_batch_is_feasible_diverse_and_the_same_for_the_same_seed():
    region = BOX.region
    first, again = (rounds(0, region, 1)[1] for _ in range(2))
    np.testing.assert_array_equal(first.mixtures, again.mixtures)
    assert region.contains(first.mixtures).all()
    assert differing(first.mixtures).min() >= acquisition.LEAST_APART
    assert first.improvement > 0
    assert not first.settled(0.0)
    assert first.settled(1e9)


@pytest.mark.parametrize("name", ["root", "linear"])
@pytest.mark.parametrize("k", [3, 7])
def test_a_batch_holds_no_near_copies_of_each_other_or_of_what_is_trained(name, k):
    """At the defaults of `mde iterate`; on a linear truth all improvement is at one corner."""
    rng = np.random.default_rng(k)
    slope = rng.dirichlet(np.ones(k))
    mixtures = simplex.space_filling(12, k, 0)
    objective = -np.sqrt(mixtures) @ slope if name == "root" else mixtures @ slope
    objective += 0.004 * rng.normal(size=12)
    found = acquisition.propose(
        estimators.make("gp"), np.sqrt, mixtures, objective, Region.simplex(k), 4, 0, n_candidates=256
    )
    assert differing(found.mixtures).min() >= acquisition.LEAST_APART
    assert differing(found.mixtures, mixtures).min() >= acquisition.LEAST_APART


def test_a_region_too_small_for_differences_promises_nothing_and_is_spread_over():
    low, high = np.array([0.5, 0.2, 0.28]), np.array([0.51, 0.21, 0.3])
    region = Region(low, high, np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    mixtures = np.vstack([simplex.space_filling(8, 3, 0), region.centre])
    found = acquisition.propose(process(), np.sqrt, mixtures, truth(mixtures), region, 2, 0, n_candidates=128)
    assert found.improvement == 0
    assert found.settled(0.1)
    assert region.contains(found.mixtures).all()
    assert differing(found.mixtures, mixtures).min() > 0.004  # the region is .01 wide


class Remembers:
    """A regressor of one length scale that keeps what it was last fitted on."""

    fits: ClassVar[list] = []

    def get_params(self, deep=False):
        return {}

    def fit(self, X, y):
        self.fits.append((X, y[:, 0]))
        self.inner = process().fit(X, y[:, 0])
        return self

    def predict(self, X, return_std=False):
        return self.inner.predict(X, return_std=return_std)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_batch_believes_that_what_it_has_chosen_comes_out_as_predicted():
    Remembers.fits.clear()
    mixtures = simplex.space_filling(10, 3, 0)
    region = Region.simplex(3)
    found = acquisition.propose(Remembers(), np.array, mixtures, truth(mixtures), region, 2, 0, n_candidates=64)
    (first, seen), (second, believed) = Remembers.fits
    np.testing.assert_array_equal(second, np.vstack([first, found.mixtures[:1]]))
    predicted = process().fit(first, seen).predict(found.mixtures[:1])
    np.testing.assert_allclose(believed, np.append(seen, predicted), rtol=1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_believed_best_obeys_the_constraints_whatever_was_trained():
    region = BOX.region
    outside = simplex.corners(5)
    found = acquisition.propose(process(), np.sqrt, outside, truth(outside), region, 1, 0, n_candidates=64)
    assert region.contains(found.mixtures).all()
    assert region.contains(found.believed[None]).all()


def test_a_regressor_that_is_never_unsure_is_refused():
    mixtures = simplex.space_filling(8, 3, 0)
    with pytest.raises(UserError, match="regressor Ridge does not say how sure it is"):
        acquisition.propose(Ridge(), np.sqrt, mixtures, mixtures[:, 0], Region.simplex(3), 1, 0)
    with pytest.raises(UserError, match="0 mixtures to propose"):
        acquisition.propose(process(), np.sqrt, mixtures, mixtures[:, 0], Region.simplex(3), 0, 0)
