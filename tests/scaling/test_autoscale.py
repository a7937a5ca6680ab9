"""Optima at small budgets, carried to larger ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mde.errors import UserError
from mde.scaling import fit_path
from mde.scaling.ddo import PowerLaws

NAMES = ("common_crawl", "github", "books", "wiki", "c4", "stackexchange", "arxiv")
# Best quantities at .3B and 1.2B tokens, in billions (AutoScale's published code).
N1 = np.array([1.55818971, 0.2, 1.1645966, 1.42333261, 1.49550525, 0.68184781, 0.47652801]) * 0.3 / 7
N2 = np.array([1.63121445, 0.2, 1.30180479, 1.21425702, 1.83266187, 0.62006189, 0.2]) * 1.2 / 7


def test_published_predictions_to_the_digits_given():
    path = fit_path(NAMES, [N1, N2])
    totals = [path.after(steps).sum() for steps in (1, 2, 3, 4)]
    np.testing.assert_allclose(totals, [5.000, 21.389, 93.228, 412.440], atol=6e-4)
    last = path.after(4)
    np.testing.assert_allclose(last / last.sum(), [0.2085, 0.0213, 0.2163, 0.0684, 0.4398, 0.0451, 0.0007], atol=5e-5)
    np.testing.assert_allclose(path.after(1), N2 * N2 / N1, rtol=1e-13)


def test_the_continuous_form_meets_the_steps():
    path = fit_path(NAMES, [N1, N2])
    for steps in (0, 1, 2, 3):
        stepped = path.after(steps)
        np.testing.assert_allclose(path.at(stepped.sum()), stepped, rtol=1e-11)


positive = st.floats(0.01, 10)


@given(st.lists(st.tuples(positive, st.floats(1.05, 8)), min_size=2, max_size=6), st.floats(1, 1000))
def test_any_budget_is_met_and_what_was_fitted_comes_back(domains, factor):
    first, growth = np.array(domains).T
    names = [str(k) for k in range(len(first))]
    path = fit_path(names, [first, first * growth])
    budget = (first * growth).sum() * factor
    tokens = path.at(budget)
    assert tokens.sum() == pytest.approx(budget, rel=1e-12)
    np.testing.assert_allclose(path.at(path.budgets[-1]), first * growth, rtol=1e-9)
    assert path.misfit < 1e-12


def test_optima_of_power_laws_without_an_offset_lie_on_the_line():
    """Theorem 1 of the paper: then the prediction is the optimum itself."""
    exponent = np.array([0.2, 0.5, 0.9])
    laws = PowerLaws(("a", "b", "c"), np.ones(3), 3.0, np.zeros(3), exponent, np.ones(3), np.zeros(3))
    optima = [laws.optimum(total, lower=1e-9)[0] for total in (10.0, 20.0, 40.0)]
    two, three = fit_path(laws.names, optima[:2]), fit_path(laws.names, optima)
    for path in (two, three):
        np.testing.assert_allclose(path.at(1e4), laws.optimum(1e4, lower=1e-9)[0], rtol=1e-6)
    assert three.misfit < 1e-9


def test_more_than_two_optima_average_their_noise():
    rng = np.random.default_rng(0)
    start, direction, positions = rng.normal(size=4), rng.uniform(0.5, 2, 4), np.linspace(0, 3, 30)
    truth = start + positions[:, None] * direction
    noisy = np.exp(truth + rng.normal(0, 0.02, truth.shape))
    names = list("abcd")
    wanted = np.exp(start + 6 * direction)
    errors = [np.abs(np.log(fit_path(names, rows).at(wanted.sum()) / wanted)).max() for rows in (noisy[[0, -1]], noisy)]
    assert errors[1] < errors[0]
    assert errors[1] < 0.03


def test_cautions_say_where_the_prediction_leaves_its_ground():
    path = fit_path(NAMES, [N1, N2])
    assert path.cautions(2.0) == []
    found = path.cautions(400.0, available=np.full(7, 100.0))
    assert any("span a factor of 4" in text for text in found)
    assert any("'arxiv'" in text and "vanishes" in text for text in found)
    assert any("'c4'" in text and "times what there is" in text for text in found)
    shrinking = fit_path(["a", "b"], [[1.0, 1.0], [0.8, 3.0]])
    assert any("'a'" in text and "does not grow" in text for text in shrinking.cautions(5.0))


def test_a_shortage_is_counted_in_what_there_is_and_told_beyond_the_epochs_that_are_allowed():
    path = fit_path(["a", "b"], [[1.0, 1.0], [4.0, 4.0]])  # to 20 of each
    assert path.cautions(40.0, available=[10.0, 100.0], max_epochs=2.1) == []
    (said,) = path.cautions(40.0, available=[10.0, 100.0], max_epochs=1.5)
    assert said == "domain 'a': 20 tokens are 2.00 times what there is"


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6), st.integers(0, 1000))
def test_a_budget_of_all_that_there_is_is_met(upper, seed):
    names = [str(k) for k in range(len(upper))]
    first = np.array(upper) * np.random.default_rng(seed).uniform(0.01, 0.1, len(upper))
    tokens = fit_path(names, [first, 2 * first]).at(sum(upper), upper)
    np.testing.assert_allclose(tokens, upper, rtol=1e-9)  # the sum is only right to rounding


@pytest.mark.parametrize(
    ("optima", "expected"),
    [
        ([[1.0, 2.0]], "at least two budgets"),
        ([[1.0, 2.0], [0.0, 9.0]], "optimum 1, domain 'a': 0 tokens"),
        ([[1.0, 2.0], [1.0, 2.0]], "expected them to increase"),
        ([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], "2 domains"),
    ],
)
def test_optima_that_fix_no_line(optima, expected):
    with pytest.raises(UserError, match=expected):
        fit_path(["a", "b"], optima)


def test_budgets_that_the_path_does_not_reach():
    with pytest.raises(UserError, match="starts from optima at up to 4"):
        fit_path(["a", "b"], [[1.0, 2.0], [1.5, 2.5]]).at(2.0)
