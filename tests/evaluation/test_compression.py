import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp

from mde.errors import UserError
from mde.evaluation import MixtureLosses, compress, compression
from mde.evaluation.compression import GROUP

K, J = 3, 2
RNG = np.random.default_rng


def text(seed=0, tokens=4000, spread=2.0):
    rng = np.random.default_rng(seed)
    segment_ids = np.arange(tokens) % J
    log_probs = -rng.gamma(1.0, spread, (tokens, K)) - 0.5 * (segment_ids[:, None] != np.arange(K))
    return np.float32(log_probs), segment_ids


@pytest.fixture(scope="module")
def made():
    log_probs, segment_ids = text()
    return compress(log_probs, segment_ids, 400), MixtureLosses(log_probs, segment_ids)


def test_a_group_for_every_kind_of_token_is_exact():
    """Four kinds of token, each a group of its own: what is left is float32 and the ridge."""
    rng = np.random.default_rng(0)
    kinds = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.05], [1e-3, 1e-2, 0.5]])
    segment_ids = np.arange(2000) % J
    log_probs = kinds[np.where(segment_ids == 0, rng.integers(0, 2, 2000), rng.integers(1, 4, 2000))]
    found = compress(log_probs, segment_ids, 4 * GROUP)
    assert (found.error < 1e-5).all()
    assert len(found.nodes) == 4 * GROUP
    order = np.argsort(found.nodes[:, 0] / found.nodes.sum(axis=1))[::-1]
    expected = np.array(
        [[np.mean(np.isclose(log_probs[segment_ids == j], kind).all(1)) for j in range(J)] for kind in kinds]
    )
    by_first = np.argsort(np.exp(kinds[:, 0]) / np.exp(kinds).sum(axis=1))[::-1]
    assert_allclose(GROUP * found.node_weights[order][::GROUP], expected[by_first], atol=1e-3)


def test_losses_of_mixtures_never_seen_are_within_the_stated_error(made):
    """The statement is a measurement, so a fresh draw may be a little worse; interior points are far better."""
    found, exact = made
    rng = np.random.default_rng(5)
    weights = compression.spread(400, K, rng)
    errors = np.abs(found(weights).losses - exact(weights))
    assert (errors <= 1.2 * found.error).all()
    assert (errors[:120].mean(axis=0) < 0.3 * found.error).all()
    assert (errors[:120] < 2e-3).all()  # uniform mixtures


def test_more_pseudo_tokens_are_better(made):
    fewer = compress(*text(), 48)
    assert (fewer.error > 3 * made[0].error).all()


def test_fitted_weights_beat_plain_pooling(made):
    """Pooling alone, each pseudo-token weighing the tokens nearest to it, is what the fit is there to improve on."""
    found, exact = made
    log_probs, segment_ids = text()
    logs = log_probs - logsumexp(log_probs, axis=1, keepdims=True)
    nodes = np.log(found.nodes) - np.log(found.nodes.sum(axis=1, keepdims=True))
    nearest = ((logs[:, None] - nodes) ** 2).sum(-1)
    counts = np.stack([np.bincount(nearest.argmin(1)[segment_ids == j], minlength=len(nodes)) for j in range(J)], 1)
    weights = compression.spread(100, K, np.random.default_rng(1))
    pooled = np.log(weights @ found.nodes.T) @ (counts / counts.sum(axis=0))
    offset = (pooled + exact(weights)).mean(axis=0)
    assert (np.abs(pooled + exact(weights) - offset).max(axis=0) > 3 * found.error).all()


def test_answers_do_not_depend_on_how_candidates_are_cut(made, monkeypatch):
    found, _ = made
    weights = np.random.default_rng(2).dirichlet(np.ones(K), 77)
    whole = found(weights).losses
    monkeypatch.setattr(compression, "_CALL", 10)
    monkeypatch.setattr(compression, "_CANDIDATE_BLOCK", 3)
    assert_allclose(found(weights).losses, whole, atol=1e-5)  # float32, in another order
    assert found(np.zeros((0, K))).losses.shape == (0, J)


@given(st.lists(st.just(0.0) | st.floats(0, 1), min_size=K, max_size=K).filter(lambda p: sum(p) > 1e-3))
@settings(max_examples=50, deadline=None)
def test_any_point_of_the_simplex_faces_and_corners_too(made, point):
    found, exact = made
    weights = np.array([point]) / sum(point)
    errors = np.abs(found(weights).losses - exact(weights))
    assert (errors <= 1.5 * found.error).all()


def test_the_error_comes_with_every_answer(made):
    found, _ = made
    assert_array_equal(found(np.eye(K)).error, found.error)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, K)), "candidate 0 are .* expected a point of the simplex"),
        (np.array([[1, 0, 0], [1.5, -0.5, 0]]), "candidate 1 are"),
        (np.full((1, K), np.nan), "candidate 0 are"),
        (np.ones((1, K + 1)) / (K + 1), r"weights of shape \(1, 4\), expected \[C, 3\]"),
    ],
)
def test_what_is_no_mixture_is_named(made, weights, message):
    with pytest.raises(UserError, match=message):
        made[0](weights)


def test_losses_are_infinite_where_they_are_and_close_elsewhere():
    """Expert 2 finds some tokens of domain 0 impossible, experts 0 and 1 one token of domain 1."""
    log_probs, segment_ids = text(tokens=1500)
    log_probs[::50, 2] = -np.inf
    log_probs[1001, :2] = -np.inf
    found, exact = compress(log_probs, segment_ids, 400), MixtureLosses(log_probs, segment_ids)
    weights = np.concatenate([np.eye(K), [[0.5, 0.5, 0], [1e-4, 0, 1 - 1e-4]], compression.spread(100, K, RNG(3))])
    losses, expected = found(weights).losses, exact(weights)
    assert_array_equal(np.isinf(losses), np.isinf(expected))
    assert_array_equal(np.isinf(losses[:5]), [[0, 1], [0, 1], [1, 0], [0, 1], [0, 0]])
    finite = np.isfinite(expected).all(axis=1)
    assert (np.abs(losses[finite] - expected[finite]) <= 1.2 * found.error).all()
    assert (found.error < 0.1).all()


def test_experts_that_are_far_apart_do_not_leave_float32():
    """Ranges to 60 nats: a group's product would go below float32's least."""
    log_probs, segment_ids = text(tokens=1500)
    log_probs[::3, 0] -= 60
    found, exact = compress(log_probs, segment_ids, 400), MixtureLosses(log_probs, segment_ids)
    weights = np.concatenate([np.eye(K), compression.spread(100, K, RNG(3))])
    assert (np.abs(found(weights).losses - exact(weights)) <= 1.2 * found.error).all()
    assert (found.error < 0.1).all()


def test_logarithms_are_those_of_float32():
    """Within 1.2e-7 of float64 and half a unit in the last place, over all that products can be."""
    x = np.exp(np.append(RNG(0).uniform(-85, 1, 10_000), np.linspace(-0.5, 0.5, 10_001))).astype(np.float32)
    exact = np.log(np.float64(x))
    assert (
        np.abs(np.asarray(compression._log(x)) - exact) <= 1.2e-7 + 1.5 * np.spacing(np.abs(np.float32(exact)))
    ).all()


def test_text_is_read_block_by_block():
    """As much memory as is given, to the same answer but for clusters of other tokens' order."""
    log_probs, segment_ids = text()
    whole, parts = compress(log_probs, segment_ids, 80), compress(log_probs, segment_ids, 80, memory=1 << 16)
    weights = RNG(4).dirichlet(np.ones(K), 50)
    assert_allclose(parts(weights).losses, whole(weights).losses, atol=1e-5)


@pytest.mark.parametrize("memory", [1 << 31, 1 << 10])
def test_what_is_no_log_prob_is_named(memory):
    log_probs, segment_ids = text(tokens=100)
    log_probs[30, 2] = np.nan
    with pytest.raises(UserError, match=r"token 30 \(domain '0'\) under expert 'news' is nan"):
        compress(log_probs, segment_ids, 20, experts=["web", "code", "news"], memory=memory)
    log_probs[30] = -np.inf
    with pytest.raises(UserError, match=r"token 30 \(domain '0'\) is impossible under every expert"):
        compress(log_probs, segment_ids, 20, memory=memory)


def test_groups_must_be_whole():
    for count, message in ((0, "pseudo_tokens=0 must be positive"), (6, "pseudo_tokens=6 must be a multiple of 4")):
        with pytest.raises(UserError, match=message):
            compress(*text(tokens=100), count)
