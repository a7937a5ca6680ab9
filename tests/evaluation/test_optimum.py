import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import logsumexp

from mde.errors import UserError
from mde.evaluation import bootstrap, mixture_nll, optimum, second_order

stiffness = optimum.__globals__["_stiffness"]  # the module has the name of its function
TOLERANCE = 1e-8  # the gap that is asked for by default


def losses(log_probs, segment_ids, weights):
    """[J] in float64, one log-sum-exp a token."""
    with np.errstate(divide="ignore"):
        terms = logsumexp(np.float64(log_probs) + np.log(weights), axis=1)
    return np.array([-terms[segment_ids == j].mean() for j in range(segment_ids.max() + 1)])


def problem(seed, tokens=400, k=4, domains=3, spread=4.0):
    rng = np.random.default_rng(seed)
    segment_ids = np.arange(tokens) % domains
    favoured = rng.integers(0, k, (domains, 1))
    log_probs = -rng.gamma(1.0, spread, (tokens, k)) - 1.0 * (favoured != np.arange(k))[segment_ids]
    return np.float32(log_probs), segment_ids


def slsqp(log_probs, segment_ids, objective, lower, upper, caps=None):
    """What a general solver finds, float64."""
    k = log_probs.shape[1]
    constraints = [{"type": "eq", "fun": lambda w: w.sum() - 1}]
    if caps is not None:
        constraints.append({"type": "ineq", "fun": lambda w: caps[1] - caps[0] @ w})
    found = minimize(
        lambda w: objective @ losses(log_probs, segment_ids, np.maximum(w, 1e-300)),
        np.full(k, 1 / k),
        bounds=list(zip(lower, upper, strict=True)),
        constraints=constraints,
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x, found.fun


def test_two_experts_by_hand():
    """Expert 0 gives the first kind of token 3/4 and the second 1/4, expert 1 the reverse; 60% are of the first kind.

    0.6 log(1/4 + λ/2) + 0.4 log(3/4 − λ/2) is largest where the mixture's probability is the share: 1/4 + λ/2 = 0.6.
    """
    kinds = np.repeat([0, 1], [6, 4])
    log_probs = np.log(np.where(kinds[:, None] == [0, 1], 0.75, 0.25))
    found = optimum(log_probs, np.zeros(10, int), np.ones((1, 1)))
    assert_allclose(found.weights, [[0.7, 0.3]], atol=1e-7)
    assert_allclose(found.objective, [-(0.6 * np.log(0.6) + 0.4 * np.log(0.4))], rtol=1e-12)
    assert found.gap[0] <= TOLERANCE
    bound = optimum(log_probs, np.zeros(10, int), np.ones((1, 1)), upper=np.array([0.5, 1]))
    assert bound.weights[0, 0] == 0.5  # on its bound exactly
    assert_allclose(bound.weights[0, 1], 0.5, rtol=1e-15)
    slope = 0.6 * 0.5 / 0.5 - 0.4 * 0.5 / 0.5  # of the log-likelihood in λ at λ = 1/2
    assert_allclose(bound.upper_price, [[slope, 0]], atol=1e-7)


def test_an_expert_that_dominates_everywhere_gets_everything():
    log_probs = np.log([[0.5, 0.4, 0.1], [0.9, 0.8, 0.9]])
    found = optimum(log_probs, np.array([0, 1]), np.array([[1, 0], [0.5, 0.5]]))
    assert_array_equal(found.weights, [[1, 0, 0], [1, 0, 0]])
    assert (found.lower_price[:, 1] > 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bounded", [False, True])
def test_agrees_with_a_general_solver(seed, bounded):
    log_probs, segment_ids = problem(seed)
    rng = np.random.default_rng(seed)
    objectives = np.vstack([np.eye(3), rng.dirichlet(np.ones(3), 2)])
    lower = np.full(4, 0.1) if bounded else np.zeros(4)
    upper = np.array([0.3, 0.6, 1, 1]) if bounded else np.ones(4)
    caps = (np.array([[1.0, 0, 1, 0], [0, 2, 1, 0]]), np.array([0.5, 0.8])) if bounded else None
    found = optimum(log_probs, segment_ids, objectives, lower=lower, upper=upper, caps=caps)
    assert (found.gap <= TOLERANCE).all()
    assert_allclose(found.weights.sum(axis=1), 1, atol=1e-15)
    assert (found.weights >= lower).all()
    assert (found.weights <= upper).all()
    for n, objective in enumerate(objectives):
        value = objective @ losses(log_probs, segment_ids, found.weights[n])
        assert_allclose(found.objective[n], value, rtol=1e-14, atol=found.gap[n] / 2)
        if bounded:
            assert (caps[0] @ found.weights[n] <= caps[1] + 1e-12).all()
        expected, least = slsqp(log_probs, segment_ids, objective, lower, upper, caps)
        assert value <= least + TOLERANCE  # never worse than the other solver by more than the gap
        assert_allclose(found.weights[n], expected, atol=2e-3)  # SLSQP's own accuracy where the loss is flat


def test_prices_are_what_the_objective_gains_when_a_limit_is_moved():
    log_probs, segment_ids = problem(1)
    objective, step = np.array([[0.2, 0.3, 0.5]]), 1e-4
    caps = np.array([[1.0, 1, 0, 0]])

    def solve(low=0.3, high=0.2, cap=0.35):
        lower, upper = np.array([0, 0, 0, low]), np.array([1, 1, high, 1])
        return optimum(log_probs, segment_ids, objective, lower=lower, upper=upper, caps=(caps, np.array([cap])))

    found = solve()
    for moved, price, sign in (
        ({"low": 0.3}, found.lower_price[0, 3], 1),
        ({"high": 0.2}, found.upper_price[0, 2], -1),
        ({"cap": 0.35}, found.cap_price[0, 0], -1),
    ):
        ((name, value),) = moved.items()
        change = solve(**{name: value + step}).objective - solve(**{name: value - step}).objective
        assert_allclose(price, sign * change[0] / (2 * step), atol=1e-5)
    assert (found.cap_price > 0).any() or (found.upper_price > 0).any()


def test_the_pull_leads_from_the_optimum_to_the_prior():
    log_probs, segment_ids = problem(2)
    prior, objective = np.array([0.1, 0.2, 0.3, 0.4]), np.ones((1, 3)) / 3
    free, weak, strong = (optimum(log_probs, segment_ids, objective, prior=prior, kl=kl) for kl in (0, 0.1, 1e4))
    assert_allclose(strong.weights, [prior], atol=1e-4)
    assert free.objective < weak.objective
    value = objective[0] @ losses(log_probs, segment_ids, weak.weights[0])
    pull = 0.1 * (prior * np.log(prior / weak.weights[0])).sum()
    assert_allclose(weak.objective, value + pull, rtol=1e-14, atol=weak.gap[0] / 2)
    for nudge in np.random.default_rng(0).normal(0, 1e-3, (20, 4)):
        other = np.abs(weak.weights[0] + nudge - nudge.mean())
        other /= other.sum()
        moved = objective[0] @ losses(log_probs, segment_ids, other) + 0.1 * (prior * np.log(prior / other)).sum()
        assert moved >= weak.objective[0] - TOLERANCE


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_sequences_of_hundreds_of_nats_and_impossible_tokens(spread):
    """MixMin's objective: one log-sum-exp a sequence, whose experts may differ by more than float64 can hold."""
    rng = np.random.default_rng(0)
    log_probs, segment_ids = problem(3, tokens=900, spread=spread)
    segment_ids = np.sort(segment_ids)
    log_probs[rng.random(900) < 0.02, 0] = -np.inf
    sequence_ids = np.arange(900) // 10
    objectives = np.vstack([np.eye(3), np.full((1, 3), 1 / 3)])
    found = optimum(log_probs, segment_ids, objectives, tau=1, sequence_ids=sequence_ids)
    assert (found.gap <= TOLERANCE).all()
    sums = np.add.reduceat(np.float64(log_probs), np.arange(0, 900, 10))
    for weights, value, gap, objective in zip(found.weights, found.objective, found.gap, objectives, strict=True):
        exact = objective @ losses(sums, segment_ids[::10], weights) * 90 / 900
        assert_allclose(value, exact, rtol=1e-9, atol=gap / 2)
    public = mixture_nll(log_probs, segment_ids, found.weights, tau=1.0, sequence_ids=sequence_ids)
    assert_allclose((public * objectives).sum(axis=1), found.objective, atol=1e-6)


def test_a_weight_that_a_single_row_needs_is_found_from_far_away():
    """One token in 2000 that only expert 1 can produce: its share is 1/2000, however good expert 0 is elsewhere."""
    log_probs = np.tile(np.log([[0.5, 0.5 * np.exp(-30)]]), (2000, 1))
    log_probs[7] = [-400, -1]
    found = optimum(log_probs, np.zeros(2000, int), np.ones((1, 1)))
    assert found.gap <= TOLERANCE
    assert_allclose(found.weights[0, 1], 1 / 2000, rtol=1e-3)
    assert found.passes < 40


def test_identical_experts_share_what_is_theirs():
    log_probs, segment_ids = problem(4, k=3)
    twins = np.column_stack([log_probs, log_probs[:, 1], log_probs[:, 1]])
    alone, together = (optimum(x, segment_ids, np.eye(3)) for x in (log_probs, twins))
    assert (together.gap <= TOLERANCE).all()
    assert_allclose(together.objective, alone.objective, atol=TOLERANCE)


rows = st.lists(
    st.tuples(*[st.one_of(st.floats(-300, 0), st.sampled_from([-np.inf, 0.0, -1.0, -50.0]))] * 3),
    min_size=2,
    max_size=9,
).filter(lambda rows: all(max(row) > -np.inf for row in rows))
bounds = st.lists(st.tuples(st.floats(0, 0.33), st.floats(0.34, 1)), min_size=3, max_size=3)


@given(rows, bounds, st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_feasible_and_no_worse_than_any_other_mixture_by_more_than_the_gap(rows, bounds, other):
    log_probs, segment_ids = np.array(rows), np.zeros(len(rows), int)
    lower, upper = np.array(bounds).T
    found = optimum(log_probs, segment_ids, np.ones((1, 1)), lower=lower, upper=upper)
    assert (found.weights >= lower - 1e-15).all()
    assert (found.weights <= upper + 1e-15).all()
    assert_allclose(found.weights.sum(), 1, atol=1e-14)
    room = upper - lower
    inside = lower + room * np.array(other) / max(other)
    centre = lower + room * (1 - lower.sum()) / room.sum()
    directions = inside - lower - (inside - lower).sum() * (centre - lower) / (centre - lower).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.min([*np.abs((upper - centre) / directions)[directions > 0], 1.0])
        size = np.min([*np.abs((centre - lower) / directions)[directions < 0], size])
    for share in (0, 0.3, 1):
        baseline = np.clip(centre + share * size * directions, lower, upper)
        value = losses(log_probs, segment_ids, baseline / baseline.sum())[0]
        assert found.objective[0] - found.gap[0] <= value + 1e-12 * (1 + abs(value))


def test_the_gap_bounds_what_is_left_when_passes_run_out():
    log_probs, segment_ids = problem(5)
    best = optimum(log_probs, segment_ids, np.eye(3)).objective
    for passes in (1, 2, 3):
        early = optimum(log_probs, segment_ids, np.eye(3), max_passes=passes)
        assert early.passes == passes
        assert (early.objective - best <= early.gap + 1e-12).all()
        assert (early.gap > TOLERANCE).any()


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("extra", ["free", "bounds", "pull", "counts"])
def test_gaps_and_values_are_honest_whatever_is_asked_for(tolerance, extra):
    """Beside an optimum found to 1e-13, and values summed up token by token."""
    log_probs, segment_ids = problem(10, tokens=3000, spread=1.0)
    objectives, counted, prior = np.vstack([np.eye(3), np.full((1, 3), 1 / 3)]), np.ones((4, 60), int), None
    arguments = {}
    if extra == "bounds":
        arguments = {"upper": np.array([0.3, 1, 1, 0.5]), "caps": (np.array([[0, 1.0, 1, 0]]), np.array([0.6]))}
    if extra == "pull":
        prior = np.array([0.1, 0.2, 0.3, 0.4])
        arguments = {"kl": 1e-4, "prior": prior}
    if extra == "counts":
        counted = np.random.default_rng(0).integers(0, 4, (4, 60))
        arguments = {"unit_ids": np.arange(3000) // 50, "unit_counts": counted}
    best = optimum(log_probs, segment_ids, objectives, tolerance=1e-13, **arguments)
    found = optimum(log_probs, segment_ids, objectives, tolerance=tolerance, **arguments)
    assert (found.gap <= tolerance).all()
    for n, weights in enumerate(found.weights):
        times = np.repeat(counted[n], 50)
        value = objectives[n] @ losses(np.repeat(log_probs, times, axis=0), np.repeat(segment_ids, times), weights)
        value += 0 if prior is None else 1e-4 * (prior * np.log(prior / weights)).sum()
        assert_allclose(found.objective[n], value, rtol=1e-14, atol=found.gap[n] / 2)
        assert value - best.objective[n] <= found.gap[n] + 1e-12
        assert found.objective[n] - found.gap[n] <= best.objective[n] + 1e-12


@given(
    st.lists(st.lists(st.floats(-20, 0), min_size=4, max_size=4), min_size=5, max_size=20),
    st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda w: sum(w) > 0.1),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
@settings(deadline=None)
def test_no_change_moves_a_term_by_more_than_the_curvature_says(rows, weights, change):
    """Whatever row, of the text or not: a share of at most √(sᵀHs / c). Rounding: 1e-6 of what it is."""
    probs, weights = np.exp(rows), np.array(weights) / sum(weights)
    change = np.array(change) - np.mean(change)
    ratios = probs / (probs @ weights)[:, None]
    curvature = ratios.T @ ratios
    (c,) = stiffness(curvature[None], weights[None])
    moved = np.abs(np.vstack([probs, np.eye(4)]) @ change)
    length = np.sqrt(change @ curvature @ change)
    assert (np.sqrt(c) * moved <= np.vstack([probs, np.eye(4)]) @ weights * length * (1 + 1e-6) + 1e-12).all()


def test_the_bound_on_changes_is_reached():
    """Changes are along (1, −1) alone, sᵀHs = 4 + 9 − 2 · 1 = 11: 1/λ² over it is largest for λ = 0.2."""
    curvature = np.array([[4.0, 1], [1, 9]])
    assert_allclose(stiffness(curvature[None], np.array([[0.8, 0.2]])), [0.2**2 * 11], rtol=1e-12)
    assert stiffness(np.ones((1, 2, 2)), np.array([[0.5, 0.5]])) < 1e-12  # twins may change places without a trace


def test_many_tokens_start_from_a_sample_and_come_to_the_same(monkeypatch):
    log_probs, segment_ids = problem(6, tokens=40_000)
    whole = optimum(log_probs, segment_ids, np.eye(3))
    monkeypatch.setitem(optimum.__globals__, "_SAMPLE", 4000)
    monkeypatch.setattr(second_order, "_BLOCK_BYTES", 40_000)
    started = optimum(log_probs, segment_ids, np.eye(3))
    assert started.passes < whole.passes
    assert (started.gap <= TOLERANCE).all()
    best = optimum(log_probs, segment_ids, np.eye(3), tolerance=1e-13)
    exact = [losses(log_probs, segment_ids, weights)[j] for j, weights in enumerate(started.weights)]
    assert_allclose(started.objective, exact, rtol=1e-14, atol=started.gap.max() / 2)  # as in double
    assert (exact - best.objective <= started.gap + 1e-12).all()
    assert optimum(log_probs, segment_ids, np.eye(3), tolerance=0.1).passes == 2  # single precision certifies nothing
    assert_allclose(started.objective, whole.objective, atol=TOLERANCE)
    assert_allclose(started.weights, whole.weights, atol=1e-6)


def test_resampled_documents_are_solved_as_if_they_stood_in_the_text_that_often():
    log_probs, segment_ids = problem(7, tokens=600)
    segment_ids = np.sort(segment_ids)
    unit_ids = np.arange(600) // 10
    counts = bootstrap(unit_ids, segment_ids, 5, seed=0)
    assert_array_equal(counts[:, :20].sum(axis=1), 20)  # as many of each domain as it has
    objectives = np.tile([[0.2, 0.3, 0.5]], (5, 1))
    found = optimum(log_probs, segment_ids, objectives, unit_ids=unit_ids, unit_counts=counts)
    for n in range(5):
        times = counts[n][unit_ids]
        copied = optimum(np.repeat(log_probs, times, axis=0), np.repeat(segment_ids, times), objectives[:1])
        assert_allclose(found.objective[n], copied.objective[0], atol=TOLERANCE)
        assert_allclose(found.weights[n], copied.weights[0], atol=1e-6)


def test_an_expert_that_is_not_allowed_does_not_matter():
    log_probs, segment_ids = problem(8)
    upper = np.array([1, 0, 1, 1])
    without = optimum(np.delete(log_probs, 1, axis=1), segment_ids, np.eye(3))
    log_probs[:, 1] = 0
    found = optimum(log_probs, segment_ids, np.eye(3), upper=upper)
    assert_array_equal(found.weights[:, 1], 0)
    assert_allclose(np.delete(found.weights, 1, axis=1), without.weights, atol=1e-6)


def test_bounds_that_leave_one_mixture_give_it():
    log_probs, segment_ids = problem(9)
    fixed = np.array([0.1, 0.2, 0.3, 0.4])
    for bounds in ({"upper": fixed}, {"lower": fixed}):
        found = optimum(log_probs, segment_ids, np.eye(3), **bounds)
        assert_allclose(found.weights, np.tile(fixed, (3, 1)), atol=1e-15)
        assert_array_equal(found.gap <= 1e-12, True)


GOOD, DOMAIN, ONE = np.log(np.full((4, 3), 0.5)), np.array([0, 0, 1, 1]), np.ones((1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lower": np.array([0.5, 0.4, 0.3])}, r"lower bounds sum to 1.2, .* 0.5 of web"),
        ({"upper": np.array([0.5, 0.2, 0.1])}, r"upper bounds sum to 0.8, .* 0.1 of law"),
        ({"lower": np.array([0, 0.3, 0]), "upper": np.array([1, 0.2, 1])}, "domain code: lower bound 0.3 and upper"),
        ({"lower": np.array([0, np.nan, 0])}, "domain code: lower bound nan"),
        ({"lower": np.zeros(2)}, "lower bounds of shape"),
        ({"lower": np.array([0.6, 0, 0]), "caps": (np.array([[1.0, 1, 0]]), np.array([0.5]))}, "cap 0 on web, code is"),
        ({"caps": (np.array([[1.0, 0, 0], [-1, 0, 0]]), np.array([0.2, -0.4]))}, "caps: together"),
        ({"caps": (np.ones((1, 2)), np.ones(1))}, "caps of shapes"),
        ({"kl": 1.0}, "needs a prior"),
        ({"kl": -1.0}, "kl=-1.0 must be"),
        ({"kl": 1.0, "prior": np.ones(3) / 3, "upper": np.array([1, 1, 0])}, "domain law: the prior gives it 0.333"),
        ({"tau": 0.5, "sequence_ids": np.arange(4)}, "only the losses of tau=0 and tau=1 are convex"),
        ({"tau": 1.0}, "tau=1.0 needs sequence_ids"),
        ({"unit_counts": np.ones((1, 4))}, "unit_counts need unit_ids"),
        ({"unit_ids": np.arange(4), "unit_counts": np.ones((2, 4))}, "unit_counts"),
        ({"unit_ids": np.arange(4), "unit_counts": np.array([[1, 1, 0, 0]])}, "objective 0: domain 1 has no token"),
        ({"objectives": np.ones((1, 3))}, "expected one weight for each of the 2 domains"),
        ({"objectives": np.array([[1, -1]])}, "objective 0: domain 1 has weight -1"),
        ({"objectives": np.zeros((1, 2))}, "objective 0: every weight is zero"),
        ({"segment_ids": np.array([0, 0, 2, 2])}, "domain '1' has no token"),
        ({"segment_ids": np.zeros(3, int)}, "segment_ids"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {"log_probs": GOOD, "segment_ids": DOMAIN, "objectives": ONE, "names": ["web", "code", "law"], **arguments}
    with pytest.raises(UserError, match=message):
        optimum(**given)


@pytest.mark.parametrize("value", [np.nan, 0.25, np.inf])
def test_what_is_no_log_prob_is_named(value):
    bad = GOOD.copy()
    bad[2, 1] = value
    with pytest.raises(UserError, match=rf"token 2 \(domain '1'\) under expert 'code' is {value}"):
        optimum(bad, DOMAIN, ONE, names=["web", "code", "law"])


def test_a_token_that_no_allowed_expert_can_produce_is_named():
    bad = GOOD.copy()
    bad[3, :2] = -np.inf
    assert optimum(bad, DOMAIN, ONE).gap <= TOLERANCE
    with pytest.raises(UserError, match=r"token 3 \(domain '1'\) is impossible under every expert that is allowed"):
        optimum(bad, DOMAIN, ONE, upper=np.array([1, 1, 0]))


def test_a_unit_in_two_domains_is_named():
    with pytest.raises(UserError, match="unit 1 has tokens of more than one domain"):
        bootstrap(np.array([0, 1, 1, 2]), DOMAIN, 2, 0)
