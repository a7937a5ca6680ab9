import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import logsumexp

from mde.errors import UserError
from mde.evaluation import bootstrap, mixture_nll, optimum

MODULE = optimum.__globals__  # the module has the name of its function
TOLERANCE = 1e-8  # the gap that is asked for


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


def slsqp(log_probs, segment_ids, objective):
    """What a general solver finds, float64."""
    k = log_probs.shape[1]
    found = minimize(
        lambda w: objective @ losses(log_probs, segment_ids, np.maximum(w, 1e-300)),
        np.full(k, 1 / k),
        bounds=[(0, 1)] * k,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}],
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


def test_an_expert_that_dominates_everywhere_gets_everything():
    log_probs = np.log([[0.5, 0.4, 0.1], [0.9, 0.8, 0.9]])
    found = optimum(log_probs, np.array([0, 1]), np.array([[1, 0], [0.5, 0.5]]))
    assert_array_equal(found.weights, [[1, 0, 0], [1, 0, 0]])


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_general_solver(seed):
    log_probs, segment_ids = problem(seed)
    rng = np.random.default_rng(seed)
    objectives = np.vstack([np.eye(3), rng.dirichlet(np.ones(3), 2)])
    found = optimum(log_probs, segment_ids, objectives)
    assert (found.gap <= TOLERANCE).all()
    assert_allclose(found.weights.sum(axis=1), 1, atol=1e-15)
    assert (found.weights >= 0).all()
    for n, objective in enumerate(objectives):
        value = objective @ losses(log_probs, segment_ids, found.weights[n])
        assert_allclose(found.objective[n], value, rtol=1e-14, atol=found.gap[n] / 2)
        expected, least = slsqp(log_probs, segment_ids, objective)
        assert value <= least + TOLERANCE  # never worse than the other solver by more than the gap
        assert_allclose(found.weights[n], expected, atol=2e-3)  # SLSQP's own accuracy where the loss is flat


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


@given(rows, st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_on_the_simplex_and_no_worse_than_any_other_mixture_by_more_than_the_gap(rows, other):
    log_probs, segment_ids = np.array(rows), np.zeros(len(rows), int)
    found = optimum(log_probs, segment_ids, np.ones((1, 1)))
    assert (found.weights >= 0).all()
    assert found.gap[0] <= TOLERANCE
    assert_allclose(found.weights.sum(), 1, atol=1e-14)
    inside = np.array(other) / np.sum(other)
    for another in (inside, 0.999 * found.weights[0] + 0.001 * inside, np.full(3, 1 / 3)):
        value = losses(log_probs, segment_ids, another)[0]
        assert found.objective[0] - found.gap[0] <= value + 1e-12 * (1 + abs(value))


def test_the_gap_bounds_what_is_left_when_passes_run_out(monkeypatch):
    log_probs, segment_ids = problem(5)
    best = optimum(log_probs, segment_ids, np.eye(3)).objective
    for passes in (1, 2, 3):
        monkeypatch.setitem(MODULE, "_PASSES", passes)
        early = optimum(log_probs, segment_ids, np.eye(3))
        assert early.passes == passes
        assert (early.objective - best <= early.gap + 1e-12).all()
        assert (early.gap > TOLERANCE).any()


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("resampled", [False, True])
def test_gaps_and_values_are_honest_whatever_is_asked_for(tolerance, resampled, monkeypatch):
    """Beside an optimum found to 1e-12, and values summed up token by token."""
    log_probs, segment_ids = problem(10, tokens=3000, spread=1.0)
    objectives, counted = np.vstack([np.eye(3), np.full((1, 3), 1 / 3)]), np.ones((4, 60), int)
    arguments = {}
    if resampled:
        counted = np.random.default_rng(0).integers(0, 4, (4, 60))
        arguments = {"unit_ids": np.arange(3000) // 50, "unit_counts": counted}
    monkeypatch.setitem(MODULE, "_TOLERANCE", 1e-12)
    best = optimum(log_probs, segment_ids, objectives, **arguments)
    monkeypatch.setitem(MODULE, "_TOLERANCE", tolerance)
    found = optimum(log_probs, segment_ids, objectives, **arguments)
    assert (found.gap <= tolerance).all()
    for n, weights in enumerate(found.weights):
        times = np.repeat(counted[n], 50)
        value = objectives[n] @ losses(np.repeat(log_probs, times, axis=0), np.repeat(segment_ids, times), weights)
        assert_allclose(found.objective[n], value, rtol=1e-14, atol=found.gap[n] / 2)
        assert value - best.objective[n] <= found.gap[n] + 1e-12
        assert found.objective[n] - found.gap[n] <= best.objective[n] + 1e-12


def test_many_tokens_start_from_a_sample_and_come_to_the_same(monkeypatch):
    log_probs, segment_ids = problem(6, tokens=40_000)
    whole = optimum(log_probs, segment_ids, np.eye(3))
    monkeypatch.setitem(MODULE, "_SAMPLE", 4000)
    monkeypatch.setitem(MODULE, "_BLOCK_BYTES", 40_000)
    started = optimum(log_probs, segment_ids, np.eye(3))
    assert started.passes < whole.passes
    assert (started.gap <= TOLERANCE).all()
    exact = [losses(log_probs, segment_ids, weights)[j] for j, weights in enumerate(started.weights)]
    assert_allclose(started.objective, exact, rtol=1e-13)
    assert_allclose(started.objective, whole.objective, atol=TOLERANCE)
    assert_allclose(started.weights, whole.weights, atol=1e-6)


def test_hessians_are_those_of_the_values():
    """Second differences along the line to another mixture: their own error is about the square of the step."""
    log_probs, segment_ids = problem(0)
    rng = np.random.default_rng(0)
    made = MODULE["_Problem"](log_probs, segment_ids, np.ones(400), rng.dirichlet(np.ones(3), 5), None, None)
    weights, change = rng.dirichlet(np.full(4, 3.0), 5), 1e-4 * rng.normal(size=(5, 4))
    less, value, more = (made.evaluate(weights + s * change, np.arange(5))[0] for s in (-1, 0, 1))
    hessian = made.evaluate(weights, np.arange(5))[1]
    assert_allclose(less - 2 * value + more, np.einsum("nij,ni,nj->n", hessian, change, change), rtol=1e-3, atol=1e-13)
    slope = -np.einsum("nij,ni,nj->n", hessian, weights, change)
    assert_allclose((more - less) / 2, slope, rtol=1e-5, atol=1e-10)


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


GOOD, DOMAIN, ONE = np.log(np.full((4, 3), 0.5)), np.array([0, 0, 1, 1]), np.ones((1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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


def test_a_token_that_no_expert_can_produce_is_named():
    bad = GOOD.copy()
    bad[3, :2] = -np.inf
    assert optimum(bad, DOMAIN, ONE).gap <= TOLERANCE
    bad[3] = -np.inf
    with pytest.raises(UserError, match=r"token 3 \(domain '1'\) is impossible under every expert"):
        optimum(bad, DOMAIN, ONE)


def test_a_unit_in_two_domains_is_named():
    with pytest.raises(UserError, match="unit 1 has tokens of more than one domain"):
        bootstrap(np.array([0, 1, 1, 2]), DOMAIN, 2, 0)
