import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp

from mde.evaluation import MixtureLosses, kernel, mixture_nll

# The bar for every point of the simplex, in nats per token. Probabilities and mixtures of them are kept
# in float32, whose rounding of 6e-8 a token is far below; sums over tokens must not add to it.
TOLERANCE = 1e-6
K = 4


def log_of(weights):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights, np.float64))


def means(terms_CxT, segment_ids):
    return np.stack([-terms_CxT[:, segment_ids == j].mean(axis=1) for j in range(segment_ids.max() + 1)], axis=1)


def reference(log_probs, segment_ids, weights):
    """MDE, one log-sum-exp a candidate and token, in float64."""
    return means(logsumexp(np.float64(log_probs) + log_of(weights)[:, None], axis=-1), segment_ids)


def prefix_reference(log_probs, segment_ids, weights, tau, sequence_ids):
    """The posterior of every expert, updated token by token."""
    losses = np.zeros((len(weights), len(log_probs)))
    for c, log_weights in enumerate(log_of(weights)):
        for t, row in enumerate(np.float64(log_probs)):
            if t == 0 or sequence_ids[t] != sequence_ids[t - 1]:
                log_posterior = log_weights
            log_posterior = log_posterior - logsumexp(log_posterior)
            losses[c, t] = logsumexp(log_posterior + row)
            log_posterior = log_posterior + (tau * row if tau else 0)  # 0 times −inf is not a number
    return means(losses, segment_ids)


def candidates(k, count=6, seed=0):
    """Corners, edges, the middle, points with tiny weights, random points."""
    rng = np.random.default_rng(seed)
    edge = np.eye(k) * 0.5 + np.roll(np.eye(k), 1, axis=1) * 0.5
    tiny = np.eye(k) * (1 - 1e-9 * k) + 1e-9
    least = np.eye(k)
    least[:, 0] += 1e-300
    random = np.concatenate([rng.dirichlet([a] * k, count) for a in (0.05, 1.0)])
    return np.concatenate([np.eye(k), edge, tiny, least, np.full((1, k), 1 / k), random])


def tokens_of(rng, count, widest, k=K):
    """Log-probs of experts that agree on most tokens and differ by up to `widest` nats on others."""
    base = -rng.exponential(2.0, (count, 1))
    return np.float32(base - rng.uniform(0, widest, (count, k)) * (rng.random((count, 1)) < 0.5))


@pytest.mark.parametrize("widest", [0.5, 9.0, 30.0, 55.0, 100.0])
@pytest.mark.parametrize("count", [3, 2000])
def test_losses_equal_float64_at_corners_faces_and_inside(count, widest):
    rng = np.random.default_rng(count)
    log_probs = tokens_of(rng, count, widest)
    segment_ids = np.sort(np.arange(count) % 3)
    weights = candidates(K)
    found = mixture_nll(log_probs, segment_ids, weights)
    assert found.dtype == np.float64
    assert_allclose(found, reference(log_probs, segment_ids, weights), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("gap", [1.3, 9.77, 17.37, 39.9, 52.94, 57.002, 99.99])
@pytest.mark.parametrize("count", [1, 7, 4096])
def test_rounding_that_is_the_same_for_every_token_does_not_add_up(count, gap):
    """The worst case: no two errors cancel where all tokens are alike, at the corner of the expert that is worse."""
    log_probs = np.float32(np.tile([[-0.1234567, -0.1234567 - gap]], (count, 1)))
    segment_ids = np.zeros(count, int)
    weights = np.array([[1, 0], [0, 1], [1e-6, 1 - 1e-6], [0.5, 0.5]])
    expected = reference(log_probs, segment_ids, weights)
    assert_allclose(mixture_nll(log_probs, segment_ids, weights), expected, rtol=0, atol=TOLERANCE)


rows = st.lists(
    st.tuples(*[st.one_of(st.floats(-100, 0, width=32), st.sampled_from([-np.inf, 0.0, -10.0, -40.0, -60.0]))] * K),
    min_size=1,
    max_size=12,
).filter(lambda rows: all(max(row) > -np.inf for row in rows))
points = st.lists(st.one_of(st.sampled_from([0.0, 1e-30, 1e-9, 1e-3]), st.floats(0, 1)), min_size=K, max_size=K)


@given(rows, st.lists(points.filter(lambda p: sum(p) > 1e-3), min_size=1, max_size=3))
@example([(0.0, -np.inf, -np.inf, -np.inf)], [[0.0, 1.0, 0.0, 0.0]])
@example([(-1.0, -np.inf, -50.0, -2.0), (-1.0, -2.0, -3.0, -4.0)], [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
@settings(max_examples=100, deadline=None)
def test_any_point_and_any_log_probs(rows, points):
    """Impossible tokens included: a mixture of experts that all rule a token out has loss infinity."""
    log_probs = np.array(rows, np.float32)
    weights = np.array(points) / np.sum(points, axis=1, keepdims=True)
    weights = np.concatenate([weights, np.eye(K)])[:8]
    weights = np.concatenate([weights, np.repeat(weights[-1:], 8 - len(weights), axis=0)])  # one shape, one compilation
    segment_ids = np.zeros(len(log_probs), int)
    found = mixture_nll(log_probs, segment_ids, weights)
    assert_allclose(found, reference(log_probs, segment_ids, weights), rtol=0, atol=TOLERANCE)


def sequences(seed, widest=9.0, count=12, length=20):
    """Sequences of different lengths in two domains."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length, count)
    sequence_ids = np.repeat(np.arange(count), lengths)
    return tokens_of(rng, len(sequence_ids), widest), np.int64(sequence_ids >= count // 2), sequence_ids


@pytest.mark.parametrize("widest", [1.0, 30.0])
def test_with_tau_one_a_sequence_is_one_log_sum_exp(widest):
    log_probs, segment_ids, sequence_ids = sequences(0, widest)
    weights = candidates(K)
    found = mixture_nll(log_probs, segment_ids, weights, tau=1.0, sequence_ids=sequence_ids)
    starts = np.flatnonzero(np.diff(sequence_ids, prepend=-1))
    sums = np.add.reduceat(np.float64(log_probs), starts)
    total = logsumexp(sums + log_of(weights)[:, None], axis=-1)
    expected = np.stack([-total[:, segment_ids[starts] == j].sum(1) / (segment_ids == j).sum() for j in (0, 1)], 1)
    assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    naive = prefix_reference(log_probs, segment_ids, weights, 1.0, sequence_ids)
    assert_allclose(found, naive, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("tau", "tolerance"), [(1e-6, 1e-6), (0.03, 1e-6), (0.5, 1e-6), (0.97, 1e-6)])
def test_with_tau_between_the_weights_follow_the_prefix(tau, tolerance):
    log_probs, segment_ids, sequence_ids = sequences(1)
    weights = candidates(K)
    found = mixture_nll(log_probs, segment_ids, weights, tau=tau, sequence_ids=sequence_ids)
    expected = prefix_reference(log_probs, segment_ids, weights, tau, sequence_ids)
    assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_by_hand_with_two_experts_and_two_tokens():
    log_probs = np.log([[0.5, 0.25], [0.5, 0.125]])
    weights = np.array([[0.5, 0.5]])
    segment_ids, sequence_ids = np.array([0, 0]), np.array([0, 0])
    found = functools.partial(mixture_nll, log_probs, segment_ids, weights, sequence_ids=sequence_ids)
    assert_allclose(found(), -np.log(0.375 * 0.3125) / 2, rtol=1e-6)
    assert_allclose(found(tau=1.0), -np.log(0.5 * 0.25 + 0.5 * 0.03125) / 2, rtol=1e-6)
    posterior = np.sqrt([0.5, 0.25]) / np.sqrt([0.5, 0.25]).sum()
    assert_allclose(found(tau=0.5), -np.log(0.375 * (posterior @ [0.5, 0.125])) / 2, rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_a_corner_is_the_experts_own_loss(tau):
    log_probs, segment_ids, sequence_ids = sequences(2)
    found = mixture_nll(log_probs, segment_ids, np.eye(K), tau=tau, sequence_ids=sequence_ids)
    own = [[-np.float64(log_probs)[segment_ids == j, k].mean() for j in (0, 1)] for k in range(K)]
    assert_allclose(found, own, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_an_expert_that_rules_a_token_out_has_loss_infinity_alone_and_no_say_in_company(tau):
    log_probs = np.log([[0.5, 0.2, 0.1], [1e-300, 0.3, 0.1], [0.5, 0.5, 0.1]])
    log_probs[1, 0] = -np.inf
    ids = np.zeros(3, int)
    weights = np.array([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    found = mixture_nll(log_probs, ids, weights, tau=tau, sequence_ids=ids)
    assert found[0, 0] == np.inf
    with np.errstate(invalid="ignore"):
        expected = prefix_reference(log_probs, ids, weights[1:], tau, ids)
    assert_allclose(found[1:], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_sequences_do_not_see_each_other(tau):
    log_probs, segment_ids, sequence_ids = sequences(3)
    changed = log_probs.copy()
    changed[segment_ids == 0] *= 2
    weights = candidates(K)
    one, other = (
        mixture_nll(x, segment_ids, weights, tau=tau, sequence_ids=sequence_ids) for x in (log_probs, changed)
    )
    assert_array_equal(one[:, 1], other[:, 1])
    assert (one[:, 0] != other[:, 0]).any()


def test_losses_of_a_candidate_do_not_depend_on_the_others(monkeypatch):
    monkeypatch.setattr(kernel, "_WIDTHS", (8, 32))
    rng = np.random.default_rng(4)
    log_probs, segment_ids = tokens_of(rng, 600, 50.0), np.sort(rng.integers(0, 3, 600))
    weights = rng.dirichlet(np.ones(K), 70)  # more than one block per device, and no multiple of anything
    losses = MixtureLosses(log_probs, segment_ids)
    together = losses(weights)
    for some in ([0], [5, 33, 69]):
        assert_allclose(losses(weights[some]), together[some], rtol=0, atol=TOLERANCE / 10)  # blocks only: rounding


@pytest.mark.parametrize("block", [512, pytest.param(2048, marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_blocks(block, monkeypatch):
    rng = np.random.default_rng(5)
    log_probs, segment_ids = tokens_of(rng, 1000, 80.0), np.sort(rng.integers(0, 3, 1000))
    weights = candidates(K)
    expected = reference(log_probs, segment_ids, weights)
    monkeypatch.setattr(kernel, "_tile", lambda: (block, 64))
    monkeypatch.setattr(kernel, "_WIDTHS", (8, 8))
    assert_allclose(mixture_nll(log_probs, segment_ids, weights), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("experts", [1, 17, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 16, 40))])
def test_many_experts_take_the_matmul_and_few_the_fused_sum(experts):
    rng = np.random.default_rng(experts)
    log_probs, segment_ids = tokens_of(rng, 700, 80.0, experts), np.sort(rng.integers(0, 2, 700))
    weights = np.concatenate(
        [np.eye(experts)[:3], rng.dirichlet(np.ones(experts), 5), rng.dirichlet(np.full(experts, 0.05), 5)]
    )
    found = mixture_nll(log_probs, segment_ids, weights)
    assert_allclose(found, reference(log_probs, segment_ids, weights), rtol=0, atol=TOLERANCE)


def test_losses_do_not_depend_on_the_order_of_tokens_or_experts():
    rng = np.random.default_rng(6)
    log_probs, segment_ids = tokens_of(rng, 1000, 80.0), np.sort(rng.integers(0, 3, 1000))
    weights = candidates(K)
    found = mixture_nll(log_probs, segment_ids, weights)
    tokens, experts = rng.permutation(1000), rng.permutation(K)
    shuffled = mixture_nll(log_probs[tokens][:, experts], segment_ids[tokens], weights[:, experts])
    assert_allclose(shuffled, found, rtol=0, atol=TOLERANCE / 2)  # two results that are each exact to less than that


def test_mde_is_convex_and_below_the_average_of_the_experts_losses():
    log_probs, segment_ids, _ = sequences(7)
    rng = np.random.default_rng(7)
    one, other = rng.dirichlet(np.ones(K), 50), rng.dirichlet(np.ones(K), 50)
    losses = MixtureLosses(log_probs, segment_ids)
    assert (losses((one + other) / 2) <= (losses(one) + losses(other)) / 2 + TOLERANCE).all()
    assert (losses(one) <= one @ losses(np.eye(K)) + TOLERANCE).all()
