"""Power laws through three runs per domain, and the exact optimum of their sum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from mde.errors import UserError
from mde.scaling import PowerLaws, fit_jointly, fit_power_laws

# GPT-2 Large at 1.2B tokens (AutoScale, arXiv 2407.20177, and its code): average validation perplexity of the base run,
# and with less and more of each domain.
NAMES = ("common_crawl", "github", "books", "wiki", "c4", "stackexchange", "arxiv")
BASE = 28.11373645
LESS = (30.11152249, 28.37687875, 29.85955983, 29.90195668, 30.37704005, 29.23766591, 28.92552215)
MORE = (25.78619752, 27.68033216, 26.25833879, 26.47376351, 25.49797272, 27.01485416, 27.24200395)


def published(less_factor: float) -> PowerLaws:
    return fit_power_laws(NAMES, np.ones(7), BASE, (less_factor, 3), LESS, MORE)


def made_up(offset, exponent, floor=None, base=None, level=3.0) -> PowerLaws:
    k = len(offset)
    names = tuple("abcdefghijklmnopq"[:k])
    floor = 1 - (1 + np.asarray(offset)) ** -np.asarray(exponent) if floor is None else floor
    base = np.ones(k) if base is None else np.asarray(base, float)
    return PowerLaws(names, base, level, np.asarray(offset), np.asarray(exponent), np.asarray(floor), np.zeros(k))


def test_published_fits_to_the_digits_given():
    laws = published(1 / 5)
    np.testing.assert_allclose(laws.offset, [2.6659, 6.6162, 2.6736, 2.4631, 2.5184, 2.8900, 3.3192], atol=5e-5)
    np.testing.assert_allclose(laws.exponent, [1.2492, 1.4360, 1.5363, 1.8287, 1.1859, 1.9536, 1.9267], atol=5e-5)
    np.testing.assert_allclose(laws.floor, [0.8027, 0.9458, 0.8645, 0.8969, 0.7750, 0.9296, 0.9403], atol=5e-5)
    assert laws.misfit.max() < 1e-14


@pytest.mark.parametrize(
    ("factor", "expected", "digits"),
    [
        (1 / 5, [1.62475, 0.2, 1.27415, 1.17980, 1.85190, 0.63716, 0.23224], 5e-6),
        (1 / 3, [1.501, 0.2, 1.247, 1.177, 1.666, 0.758, 0.452], 5e-4),
    ],
)
def test_published_optima_to_the_digits_given(factor, expected, digits):
    tokens, bound = published(factor).optimum(7, lower=0.2)
    np.testing.assert_allclose(tokens, expected, atol=digits)
    np.testing.assert_array_equal(bound, [0, -1, 0, 0, 0, 0, 0])


@given(st.floats(0.3, 8), st.floats(0.3, 3))
def test_the_steep_law_is_found_again(offset, exponent):
    """A law that is the steeper of the two through its points comes back, to the rounding of its small differences."""
    truth = made_up([offset], [exponent], base=[5e6])
    less, more = truth([5e6 / 3]), truth([15e6])
    found = fit_power_laws(truth.names, truth.base, truth.level, (1 / 3, 3), less, more)
    np.testing.assert_allclose(found([5e6 / 3, 5e6, 15e6]).ravel(), [less[0], truth.level, more[0]], rtol=1e-9)
    assert found.floor[0] >= truth.floor[0] - 1e-6
    if found.floor[0] < truth.floor[0] + 1e-6:
        np.testing.assert_allclose(found.exponent, truth.exponent, rtol=1e-3)


laws_and_totals = st.integers(2, 6).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0.05, 8), min_size=k, max_size=k),
        st.lists(st.floats(0.05, 3), min_size=k, max_size=k),
        st.lists(st.floats(0.2, 5), min_size=k, max_size=k),
        st.floats(0.5, 50),
    )
)


@given(laws_and_totals)
def test_no_transfer_between_two_domains_lowers_the_loss(case):
    offset, exponent, base, total = case
    laws = made_up(offset, exponent, base=base)
    tokens, _ = laws.optimum(total)
    assert tokens.sum() == pytest.approx(total, rel=1e-12)
    assert tokens.min() >= 0
    best = laws.loss(tokens)
    k = len(offset)
    for giver in range(k):
        for taker in range(k):
            step = 0.01 * tokens[giver] * (np.eye(k)[taker] - np.eye(k)[giver])
            # The loss itself is rounded at about 1e-15 of its size, 3.
            assert laws.loss(tokens + step) >= best - 1e-14 * max(1, abs(best))


def test_the_optimum_is_that_of_a_general_solver():
    laws = made_up([0.5, 2.0, 4.0], [1.2, 0.8, 2.0], base=[1.0, 2.0, 0.5])
    bounds = [(0.4, 9), (0.1, 2.5), (0.3, 0.9)]
    low, high = np.array(bounds).T
    tokens, held = laws.optimum(6.0, low, high)
    found = optimize.minimize(
        laws.loss,
        np.clip(np.full(3, 2.0), low, high),
        bounds=bounds,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 6},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(tokens, found.x, atol=1e-5)  # SLSQP's own precision
    assert laws.loss(tokens) <= found.fun + 1e-12
    np.testing.assert_array_equal(held == 1, np.isclose(tokens, high))


def test_equal_laws_share_equally_and_a_tight_box_is_met():
    laws = made_up([1.0] * 4, [0.7] * 4)
    np.testing.assert_allclose(laws.optimum(8)[0], 2, rtol=1e-14)
    tokens, held = laws.optimum(4, lower=1, upper=1)
    np.testing.assert_array_equal(tokens, 1)
    assert (held != 0).all()


def test_the_joint_fit_recovers_what_made_the_runs():
    truth = made_up([0.8, 2.0, 3.0], [1.0, 1.5, 0.6], base=[1e6, 2e6, 3e6])
    rng = np.random.default_rng(0)
    tokens = truth.base * rng.uniform(0.1, 5, (20, 3))
    level = truth.loss(tokens)
    start = made_up([1.5, 1.5, 1.5], [1.0, 1.0, 1.0], base=truth.base)
    found = fit_jointly(start, tokens, level)
    np.testing.assert_allclose(found.offset, truth.offset, rtol=1e-5)
    np.testing.assert_allclose(found.exponent, truth.exponent, rtol=1e-5)
    np.testing.assert_allclose(found(tokens), truth(tokens), rtol=1e-8)
    assert found.misfit.max() < 1e-9


@pytest.mark.parametrize(
    ("less", "more", "expected"),
    [
        ((3.2, 2.9), (2.9, 2.8), ["'b'", "do not fall"]),
        ((3.2, 3.1), (2.9, 3.05), ["'b'", "do not fall"]),
        ((3.2, 3.1), (2.9, float("nan")), ["'b'", "nan"]),
        ((3.1, 3.01), (2.9, 2.0), ["'b'", "faster the more"]),
        ((3.1,), (2.9,), ["2 domains"]),
    ],
)
def test_runs_that_no_law_fits(less, more, expected):
    with pytest.raises(UserError) as error:
        fit_power_laws(("a", "b"), np.ones(2), 3.0, (1 / 3, 3), less, more)
    for text in expected:
        assert text in str(error.value)


def test_the_nearest_law_is_flat_where_more_does_not_help():
    laws = fit_power_laws(("a", "b"), np.ones(2), 3.0, (1 / 3, 3), (2.98, 3.2), (3.01, 2.8), nearest=True)
    assert np.ptp(laws([[1 / 3, 1], [1, 1], [3, 1]])[:, 0]) < 1e-3
    assert laws.misfit[0] == pytest.approx(0.02 / 3, rel=0.01)  # the larger of the two rises, in base losses
    assert laws.misfit[1] < 1e-9
    np.testing.assert_allclose(laws.optimum(2, lower=0.3)[0], [0.3, 1.7])


def test_what_cannot_be_met_or_fitted():
    laws = made_up([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(UserError, match="bounds allow 3 to 4"):
        laws.optimum(2, lower=1.5, upper=2)
    with pytest.raises(UserError, match="domain 'b': bounds 2 and 1 tokens"):
        laws.optimum(2, lower=[0, 2], upper=[1, 1])
    with pytest.raises(UserError, match=r"4 runs .* 5 parameters"):
        fit_jointly(laws, np.ones((4, 2)), np.ones(4))
    with pytest.raises(UserError, match="a factor below and one above 1"):
        fit_power_laws(("a",), [1.0], 3.0, (1.5, 3), [3.1], [2.9])
