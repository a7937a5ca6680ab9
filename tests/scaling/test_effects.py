"""Runs put into their places, and the optima that they and their noise lead to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mde.errors import UserError
from mde.scaling import PowerLaws, fit_path, measured_effects, solve
from mde.scaling.prediction import cautions

NAMES = ("web", "code", "books")
BASE = np.array([3e6, 1e6, 2e6])
LAWS = PowerLaws(NAMES, BASE, 3.0, np.array([1.0, 2.0, 1.5]), np.array([1.2, 1.5, 2.0]), np.full(3, 0.5), np.zeros(3))


def design(less: float = 1 / 3, more: float = 3.0, base: np.ndarray = BASE) -> np.ndarray:
    """[7, 3] quantities: the base run, less of each domain, more of each."""
    changed = [1 + np.eye(3) * (factor - 1) for factor in (less, more)]
    return base * np.concatenate([np.ones((1, 3)), *changed])


def runs(count: int) -> list[str]:
    return [f"run-{i}" for i in range(count)]


def observed(tokens: np.ndarray) -> np.ndarray:
    """Two evaluation domains; the mean of both follows the laws."""
    loss = LAWS.loss(tokens)
    return np.stack([loss - 0.4, loss + 0.4], axis=-1)


HALF = np.array([0.5, 0.5])


@given(st.permutations(range(7)), st.floats(0.1, 0.8), st.floats(1.3, 6))
def test_runs_find_their_places_in_any_order(order, less, more):
    tokens = design(less, more)[list(order)]
    found = measured_effects(NAMES, runs(7), tokens, observed(tokens))
    np.testing.assert_allclose(found.base, BASE)
    np.testing.assert_allclose(found.factors, [[less, more]] * 3)
    np.testing.assert_allclose(found.losses, observed(BASE))
    np.testing.assert_allclose(found.less, observed(design(less, more)[1:4]))
    np.testing.assert_allclose(found.more, observed(design(less, more)[4:]))
    assert found.repeats == 1
    assert found.noise is None
    np.testing.assert_allclose(found.quantities(), design(less, more))


def test_noise_is_what_is_left_of_seeds_that_all_runs_share():
    rng = np.random.default_rng(0)
    tokens = np.repeat(design(), 40, axis=0)
    seeds = np.tile(rng.normal(0, 1, (40, 1)), (7, 1))  # large, and the same for every run of a seed
    own = rng.multivariate_normal([0, 0], [[4e-4, 1e-4], [1e-4, 9e-4]], len(tokens))
    found = measured_effects(NAMES, runs(len(tokens)), tokens, observed(tokens) + seeds + own)
    # 6 × 39 degrees of freedom: a variance is known to 9%.
    np.testing.assert_allclose(np.diag(found.noise), [4e-4, 9e-4], rtol=0.3)
    assert found.deviation([1, 0]) == pytest.approx(np.sqrt(found.noise[0, 0]))
    assert found.deviation(HALF) == pytest.approx(np.sqrt(HALF @ found.noise @ HALF))


def test_two_seeds_by_hand():
    """Five runs with two seeds: (5 − 1) × (2 − 1) = 4 degrees of freedom are noise."""
    tokens = np.repeat([[1.0, 1.0], [0.5, 1.0], [1.0, 0.5], [2.0, 1.0], [1.0, 2.0]], 2, axis=0)
    losses = np.array([3.0, 3.3, 4.0, 4.1, 3.9, 4.0, 2.0, 2.1, 2.5, 2.4])[:, None]
    found = measured_effects(["web", "code"], runs(10), tokens, losses)
    # From first to second seed the runs rise by .3 .1 .1 .1 −.1, .1 on average: of each, half of what exceeds that is
    # left, up and down: 2 × (.1² + .1²).
    assert found.noise[0, 0] == pytest.approx(0.04 / 4)
    assert found.repeats == 2
    np.testing.assert_allclose([found.losses[0], *found.less[:, 0], *found.more[:, 0]], [3.15, 4.05, 3.95, 2.05, 2.45])


def test_seeds_that_are_others_than_those_of_the_base_runs_are_refused():
    tokens = np.repeat(design(), 2, axis=0)
    seeds = np.tile([0, 1], 7)
    assert measured_effects(NAMES, runs(14), tokens, observed(tokens), seeds).repeats == 2
    seeds[2:4] = 5, 6
    with pytest.raises(UserError, match="less of domain 'web' alone have seeds 5, 6, and the base runs 0, 1"):
        measured_effects(NAMES, runs(14), tokens, observed(tokens), seeds)


def test_a_joint_fit_without_other_runs_is_the_fits_of_the_domains():
    found = measured_effects(NAMES, runs(7), design(), observed(design()))
    apart, together = found.power_laws(HALF), found.power_laws(HALF, "joint")
    for field in ("offset", "exponent", "floor"):
        np.testing.assert_allclose(getattr(together, field), getattr(apart, field), rtol=1e-6)


def test_other_runs_serve_a_joint_fit():
    others = BASE * np.random.default_rng(1).uniform(0.3, 3, (5, 3))
    tokens = np.concatenate([design(), others])
    losses = observed(tokens)
    losses[-5:] += 0.01  # as if effects did not quite add up
    found = measured_effects(NAMES, runs(12), tokens, losses)
    np.testing.assert_allclose(found.others, others)
    together = found.power_laws(HALF, "joint")
    worst = np.abs(together.loss(tokens) - losses @ HALF).max()
    assert worst < np.abs(found.power_laws(HALF).loss(tokens) - losses @ HALF).max()


def test_the_optimum_stays_within_what_was_measured_unless_it_is_told():
    found = measured_effects(NAMES, runs(7), design(0.9), observed(design(0.9)))
    free = solve(found, HALF, floor=0.1)
    bounded = solve(found, HALF)
    assert free.optimum.sum() == pytest.approx(BASE.sum())
    assert (bounded.optimum >= 0.9 * BASE * (1 - 1e-12)).all()
    assert (free.optimum < 0.9 * BASE).any()
    capped = solve(found, HALF, floor=0.1, upper=[np.inf, np.inf, 1.5e6])
    assert capped.optimum[2] == 1.5e6
    assert capped.held[2] == 1
    said = [*cautions([bounded]), *cautions([capped])]
    assert not any("early in training" in text for text in said)
    assert any("min that is allowed" in text and text.endswith("books 0.9") for text in said)
    assert any("max that is allowed" in text and text.endswith("books 0.75") for text in said)


def test_base_runs_that_fall_ever_faster_are_too_short():
    points = []
    for budget, level in ((1.0, 3.0), (2.0, 2.9), (4.0, 2.5), (8.0, 2.2)):
        tokens = design(base=BASE * budget)
        losses = observed(design()) + level - 3.0
        points.append(solve(measured_effects(NAMES, runs(7), tokens, losses), HALF))
    early = [text for text in cautions(points) if "early in training" in text]
    assert len(early) == 1
    assert "beyond 12,000,000 tokens" in early[0]
    assert not any("early in training" in text for text in cautions(points[1:]))


def test_losses_that_fall_too_evenly_for_a_law_are_told():
    # With less of web the loss rises by .3 for a base quantity of it, with more it falls by .299.
    losses = np.repeat([[3.0], [3.2], [3.2], [3.1], [2.402], [2.7], [2.8]], 2, axis=1)
    said = cautions([solve(measured_effects(NAMES, runs(7), design(), losses), HALF, floor=0.01)])
    (even,) = [text for text in said if "falls as evenly" in text]
    assert "at 6,000,000 tokens" in even
    assert ": web " in even


def test_a_domain_that_runs_out_leaves_the_rest_to_the_others():
    path = fit_path(["a", "b", "c"], [[1.0, 2.0, 3.0], [2.0, 5.0, 5.0]])
    tokens = path.at(40.0, upper=[np.inf, 6.0, np.inf])
    assert tokens.sum() == pytest.approx(40)
    assert tokens[1] == pytest.approx(6)
    # The others are where they would be at a larger budget: on the same line.
    s = (np.log(tokens) - path.start) / path.direction
    assert s[0] == pytest.approx(s[2])
    with pytest.raises(UserError, match="no domain's best quantity grows that far"):
        path.at(40.0, upper=10.0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([0, 1, 2, 4, 5, 6], "no run with less of domain 'books' alone"),
        ([1, 2, 3, 4, 5, 6], "no run with the base quantities"),
        ([0, 1, 2, 3, 4, 5, 6, 1], "2 runs with less of domain 'web' alone, and 1 base runs"),
    ],
)
def test_runs_that_do_not_make_a_design(rows, expected):
    tokens = design()[rows]
    with pytest.raises(UserError, match=expected):
        measured_effects(NAMES, runs(len(rows)), tokens, observed(tokens))


def test_what_is_refused_names_the_budget_and_the_noise():
    tokens = np.repeat(design(), 2, axis=0)
    losses = observed(tokens)
    losses[2:4] = 2.0  # the run with less of web is best
    losses += np.random.default_rng(0).normal(0, 0.01, losses.shape)
    with pytest.raises(UserError, match=r"budget of 6,000,000 tokens: domain 'web'.*noise of a run: .*2 seeds each"):
        measured_effects(NAMES, runs(14), tokens, losses).power_laws(HALF)
    with pytest.raises(UserError, match="one seed each"):
        measured_effects(NAMES, runs(7), tokens[::2], losses[::2]).power_laws(HALF)
    bad = design()
    bad[3, 1] = -1
    with pytest.raises(UserError, match=r"run 'run-3', domain 'code': -1 tokens"):
        measured_effects(NAMES, runs(7), bad, losses[::2])
    with pytest.raises(UserError, match="domain 'code': the base run has none"):
        measured_effects(NAMES, runs(7), design(base=BASE * [1, 0, 1]), losses[::2])
