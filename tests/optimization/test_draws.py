import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import constrained
from scipy import stats

from mde.errors import UserError
from mde.optimization import draws, simplex
from mde.optimization.constraints import Bounds, Group
from mde.optimization.draws import Law
from mde.optimization.region import Region

PRIOR = np.array([0.4, 0.3, 0.2, 0.08, 0.02])
GROUPS = (np.array([0, 3]), np.array([1, 2]))


def random_law(seed: int, k: int, floor: float) -> Law:
    """Domains shared out over groups at random, some in none."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(-1, 3, k)
    groups = tuple(np.flatnonzero(owner == g) for g in range(3) if (owner == g).any())
    least = float(np.exp(rng.uniform(np.log(0.3), np.log(20))))
    return Law(rng.dirichlet(np.ones(k)), (least, least * rng.choice([1.0, 10.0])), groups, floor)


def around(law: Law, seed: int) -> Region:
    """Constraints of all kinds that the prior obeys; the sum of the first group may be given."""
    rng = np.random.default_rng(seed)
    names = tuple(map(str, range(len(law.prior))))
    weights = dict(zip(names, law.prior, strict=True))
    groups = {}
    for i, group in enumerate(law.groups):
        total, width = law.prior[group].sum(), rng.choice([0.15, 0.4] if i else [0.0, 0.3])
        groups[str(i)] = Group([names[k] for k in group], max(total - width, 0), min(total + width, 1))
    first, second, *_, last = names
    fixed = {first: weights[first]} if rng.random() < 0.5 else {}
    lower, upper = {second: weights[second] * 0.3}, {last: min(1, 2 * weights[last] + 0.1)}
    return Bounds(names, lower, upper, fixed, groups, prior=weights, max_kl=2.0).region


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(5, 9), floor=st.sampled_from([0.0, 0.002, 0.01]))
def test_every_mixture_is_in_the_region_and_none_is_twice(seed, k, floor):
    law = random_law(seed, k, floor)
    region = around(law, seed)
    mixtures = draws.draw(12, law, seed, region, distinct=True)
    fewer = draws.draw(5, law, seed, region, distinct=True)
    assert mixtures.shape == (12, region.k)
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures.sum(axis=1), 1, atol=1e-12)
    assert region.contains(mixtures).all()
    given_ones = region.low == region.high
    assert ((mixtures == 0) | (mixtures >= floor * (1 - 1e-12)) | given_ones).all()
    assert draws.distances(mixtures).min() > floor
    np.testing.assert_array_equal(fewer, mixtures[:5])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 9))
def test_the_mean_is_the_prior(seed, k):
    law = random_law(seed, k, 0.0)
    # a share has a deviation of at most .5, so that of the mean of 4096 independent draws is .008
    np.testing.assert_allclose(draws.draw(4096, law, seed).mean(axis=0), law.prior, atol=0.02)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), k=st.integers(1, 9), n=st.integers(1, 70), strength=st.sampled_from([0.02, 1.0, 9.0])
)
def test_one_strength_without_more_is_the_space_filling_dirichlet(seed, k, n, strength):
    expected = simplex.space_filling(n, k, seed, strength)
    np.testing.assert_array_equal(draws.draw(n, Law(np.ones(k), (strength, strength)), seed), expected)


def test_draws_under_constraints_have_the_law_given_these():
    """The same as independent draws of which those outside are thrown away."""
    region = constrained(min={"books": 0.1}, max={"web": 0.5}, groups={"a": Group(("web", "code"), 0.2, 0.7)}).region
    drawn = draws.draw(2048, Law(PRIOR, (4.0, 4.0)), 0, region)
    independent = np.random.default_rng(0).dirichlet(4 * PRIOR, 400_000)
    independent = independent[region.contains(independent)]
    for ours, theirs in zip(drawn.T, independent.T, strict=True):
        # independent draws would stay below 1.63 / sqrt(2048) = .036 in 99 of 100 cases
        assert stats.ks_2samp(ours, theirs).statistic < 0.036


def test_given_shares_leave_the_others_their_law():
    """A Dirichlet distribution given one share is one of the others with the same concentrations."""
    region = constrained(fixed={"web": 0.3}, max={"news": 0.0}).region
    drawn = draws.draw(1024, Law(PRIOR, (6.0, 6.0)), 0, region)
    np.testing.assert_array_equal(drawn[:, [0, 4]], np.tile([0.3, 0.0], (1024, 1)))
    others = 6 * PRIOR[1:4]
    for column, a in zip((drawn[:, 1:4] / 0.7).T, others, strict=True):
        assert stats.kstest(column, stats.beta(a, others.sum() - a).cdf).statistic < 0.05


def test_levels_are_drawn_by_themselves():
    """Sums of groups, and weights inside a group, have the same strength."""
    drawn = draws.draw(1024, Law(PRIOR, (6.0, 6.0), GROUPS), 0)
    for group, total in zip(GROUPS, (0.48, 0.5), strict=True):
        sums = drawn[:, group].sum(axis=1)
        inside = drawn[:, group[0]] / sums
        part = PRIOR[group[0]] / total
        assert stats.kstest(sums, stats.beta(6 * total, 6 * (1 - total)).cdf).statistic < 0.05
        assert stats.kstest(inside, stats.beta(6 * part, 6 * (1 - part)).cdf).statistic < 0.05


def test_a_group_of_a_given_sum_has_it():
    region = constrained(
        groups={"a": Group(("web", "wiki"), 0.25, 0.25), "b": Group(("code", "books"), 0.0, 0.7)}
    ).region
    drawn = draws.draw(200, Law(PRIOR, (1.0, 8.0), GROUPS, floor=0.01), 0, region)
    np.testing.assert_allclose(drawn[:, [0, 3]].sum(axis=1), 0.25, atol=1e-12)
    assert (drawn[:, 3] == 0).any()  # of which the floor took something, and web grew


def test_the_floor_by_hand():
    plan = draws._Plan(Law(PRIOR, (1.0, 1.0), GROUPS, floor=0.1), Region.simplex(5))
    weights = np.array([[0.35, 0.3, 0.2, 0.1, 0.05], [0.08, 0.4, 0.44, 0.04, 0.04], [0.05, 0.09, 0.09, 0.05, 0.72]])
    sums = np.array([[0.45, 0.5, 0.05], [0.12, 0.84, 0.04], [0.1, 0.18, 0.72]])
    # news goes, and the groups grow in proportion; a whole group goes, and news; both groups go
    expected = [
        [0.35 / 0.95, 0.3 / 0.95, 0.2 / 0.95, 0.1 / 0.95, 0],
        [0, 0.4 / 0.84, 0.44 / 0.84, 0, 0],
        [0, 0, 0, 0, 1],
    ]
    np.testing.assert_allclose(plan._floored(weights, sums), expected, atol=1e-15)


def test_strengths_are_log_uniform():
    """Two domains alike: the variance of a share is 1 / (4 (s + 1)), here averaged over s."""
    weights = draws.draw(8192, Law(np.array([0.5, 0.5]), (0.1, 10.0)), 0)[:, 0]
    s = np.exp(np.linspace(np.log(0.1), np.log(10), 100_001))
    assert weights.var() == pytest.approx(np.mean(1 / (4 * (s + 1))), rel=0.02)  # error of 8192 draws: about 1%


def test_one_domain_and_two():
    np.testing.assert_array_equal(draws.draw(3, Law(np.ones(1), (1.0, 1.0)), 0), np.ones((3, 1)))
    with pytest.raises(UserError, match="3 mixtures are wanted, and the constraints leave only one"):
        draws.draw(3, Law(np.ones(1), (0.1, 5.0)), 0, distinct=True)
    two = draws.draw(64, Law(np.array([0.5, 0.5]), (2.0, 2.0)), 0)
    np.testing.assert_allclose(two.sum(axis=1), 1, atol=1e-15)
    assert stats.kstest(two[:, 0], "uniform").statistic < 0.1  # independent draws stay below .2 in 99 of 100 cases


def test_fewer_distinct_mixtures_than_wanted_are_told_in_one_line(monkeypatch):
    monkeypatch.setattr(draws, "TRIES", 2**10)
    with pytest.raises(
        UserError, match=r"9 mixtures are wanted, and of 1,024 draws [\d,]+ obey .*, \d of them distinct"
    ):
        draws.draw(9, Law(np.ones(3) / 3, (0.01, 0.01), floor=0.4), 0, distinct=True)  # next to nothing but corners


def test_a_domain_that_the_prior_has_not_never_has_a_share():
    drawn = draws.draw(20, Law(np.array([0.5, 0.0, 0.5]), (0.1, 5.0)), 0)
    assert (drawn[:, 1] == 0).all()
    region = constrained(fixed={"code": 0.1}).region
    drawn = draws.draw(4, Law(np.array([0.5, 0, 0.3, 0.1, 0.1]), (1.0, 1.0)), 0, region)
    assert (drawn[:, 1] == 0.1).all()  # but for one that is given


@pytest.mark.parametrize(
    ("lower", "strengths", "says"),
    [
        ({"news": 0.7, "wiki": 0.29}, (5.0, 5.0), "the prior does not: give one that does"),
        ({"web": 0.395, "code": 0.295, "books": 0.195}, (5.0, 5.0), "the prior does: greater strengths"),
    ],
)
def test_constraints_that_next_to_no_draw_obeys_are_given_up_in_one_line(monkeypatch, lower, strengths, says):
    monkeypatch.setattr(draws, "TRIES", 2**10)
    with pytest.raises(UserError, match=f"32 mixtures are wanted, and of 1,024 draws \\d+ obey.*{says}"):
        draws.draw(32, Law(PRIOR, strengths), 0, constrained(min=lower).region)


def test_greater_strengths_help_as_the_message_says():
    region = constrained(min={"web": 0.395, "code": 0.295, "books": 0.195}).region
    assert region.contains(draws.draw(32, Law(PRIOR, (1e3, 1e5)), 0, region)).all()


def test_tempering_by_hand():
    np.testing.assert_allclose(draws.temper(PRIOR, 1.0), PRIOR, atol=1e-15)
    np.testing.assert_allclose(draws.temper(np.array([0.8, 0.2, 0.0]), 0.5), [2 / 3, 1 / 3, 0], atol=1e-15)
    np.testing.assert_allclose(draws.temper(np.array([0.8, 0.2, 0.0]), 0.0), [0.5, 0.5, 0], atol=1e-15)
    # a group of .64 and .16, in it four to one, beside .2: two to one between them, two to one inside
    tempered = draws.temper(np.array([0.64, 0.2, 0.16]), 0.5, (np.array([0, 2]),))
    np.testing.assert_allclose(tempered, [4 / 9, 1 / 3, 2 / 9], atol=1e-15)


@pytest.mark.parametrize(
    ("strengths", "floor", "says"),
    [
        ((5.0, 0.1), 0.0, "strengths from 5 to 0.1, expected positive numbers, the smaller first"),
        ((0.0, 1.0), 0.0, "strengths from 0 to 1"),
        ((np.nan, 1.0), 0.0, "strengths from nan to 1"),
        ((1.0, 1.0), 1.0, "floor=1, expected a weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(strengths, floor, says):
    with pytest.raises(UserError, match=says):
        Law(PRIOR, strengths, (), floor)
    with pytest.raises(UserError, match="temperature=-1, expected zero or more"):
        draws.temper(PRIOR, -1.0)


def test_distances_by_hand():
    mixtures = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0.9, 0.1, 0]])
    np.testing.assert_allclose(draws.distances(mixtures), [0.1, 0.4, 1.0, 0.1], atol=1e-15)
