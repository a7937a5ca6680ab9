import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp

from mde.errors import UserError
from mde.evaluation import MixtureLosses, compress, compression

K, J = 3, 2


def text(seed=0, tokens=4000, spread=2.0):
    rng = np.random.default_rng(seed)
    segment_ids = np.arange(tokens) % J
    log_probs = -rng.gamma(1.0, spread, (tokens, K)) - 0.5 * (segment_ids[:, None] != np.arange(K))
    return np.float32(log_probs), segment_ids


@pytest.fixture(scope="module")
def made():
    log_probs, segment_ids = text()
    return compress(log_probs, segment_ids, 100), MixtureLosses(log_probs, segment_ids)


def test_as_many_pseudo_tokens_as_kinds_of_token_are_exact():
    """Four kinds of token, each its own pseudo-token: what is left is float32 and the ridge."""
    rng = np.random.default_rng(0)
    kinds = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.05], [1e-3, 1e-2, 0.5]])
    segment_ids = np.arange(2000) % J
    log_probs = kinds[np.where(segment_ids == 0, rng.integers(0, 2, 2000), rng.integers(1, 4, 2000))]
    found = compress(log_probs, segment_ids, 4)
    assert (found.error < 1e-5).all()
    assert len(found.nodes) == 4
    order = np.argsort(found.nodes[:, 0] / found.nodes.sum(axis=1))[::-1]
    expected = np.array(
        [[np.mean(np.isclose(log_probs[segment_ids == j], kind).all(1)) for j in range(J)] for kind in kinds]
    )
    by_first = np.argsort(np.exp(kinds[:, 0]) / np.exp(kinds).sum(axis=1))[::-1]
    assert_allclose(found.node_weights[order], expected[by_first], atol=1e-3)


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
    fewer = compress(*text(), 12)
    assert (fewer.error > 3 * made[0].error).all()


def test_fitted_weights_beat_plain_pooling(made):
    """Pooling alone, each pseudo-token weighing the tokens nearest to it, is what the fit is there to improve on."""
    found, exact = made
    log_probs, segment_ids = text()
    logs = log_probs - logsumexp(log_probs, axis=1, keepdims=True)
    nearest = ((logs[:, None] - np.log(found.nodes)) ** 2).sum(-1)
    counts = np.stack([np.bincount(nearest.argmin(1)[segment_ids == j], minlength=100) for j in range(J)], axis=1)
    weights = compression.spread(100, K, np.random.default_rng(1))
    pooled = np.log(weights @ found.nodes.T) @ (counts / counts.sum(axis=0))
    offset = (pooled + exact(weights)).mean(axis=0)
    assert (np.abs(pooled + exact(weights) - offset).max(axis=0) > 5 * found.error).all()


def test_answers_do_not_depend_on_how_candidates_are_cut(made, monkeypatch):
    found, _ = made
    weights = np.random.default_rng(2).dirichlet(np.ones(K), 77)
    whole = found(weights).losses
    monkeypatch.setattr(compression, "_CALL", 10)
    monkeypatch.setattr(compression, "_CANDIDATE_BLOCK", 3)
    assert_allclose(found(weights).losses, whole, atol=1e-5)  # float32, in another order
    assert found(np.zeros((0, K))).losses.shape == (0, J)


@given(st.lists(st.floats(0, 1), min_size=K, max_size=K).filter(lambda p: sum(p) > 1e-3))
@settings(max_examples=50, deadline=None)
def test_any_point_of_the_simplex(made, point):
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


def test_impossible_tokens_are_refused():
    log_probs, segment_ids = text(tokens=100)
    log_probs[30, 2] = -np.inf
    with pytest.raises(UserError, match=r"token 30 \(domain 0\) is impossible under expert 2"):
        compress(log_probs, segment_ids, 10)
    with pytest.raises(UserError, match="pseudo_tokens=0 must be positive"):
        compress(*text(tokens=100), 0)
