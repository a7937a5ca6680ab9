"""Scores of choices under mixtures, held against plain float64 log-sum-exp."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp, softmax

from mde.errors import UserError
from mde.evaluation import answers
from mde.evaluation.answers import Choices


def made(seed, examples=7, experts=3, low=-30.0):
    """Choices of random lengths: two to five an example, one or two of them right."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 6, examples)
    right = np.concatenate([rng.permutation(np.arange(n) < rng.integers(1, 3)) for n in counts])
    lengths = rng.integers(1, 6, counts.sum())
    log_probs = rng.uniform(low, 0, (lengths.sum(), experts)).astype(np.float32)
    of = np.repeat(np.sort(rng.choice(50, examples, replace=False)), counts)
    return Choices(log_probs, lengths, rng.integers(1, 40, counts.sum()), of, right)


def mixed_by_hand(choices, weights, tau):
    """log Σ_k λ_k Π_t p_k(x_t), over tokens apart for τ = 0."""
    with np.errstate(divide="ignore"):
        prior = np.log(weights)
    found = []
    for rows in np.split(choices.log_probs.astype(np.float64), np.cumsum(choices.lengths)[:-1]):
        rows = rows.sum(axis=0, keepdims=True) if tau else rows
        found.append(sum(logsumexp(prior + row) for row in rows))
    return np.array(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 1]), st.booleans())
def test_mixtures_of_choices_equal_log_sum_exp(seed, tau, corner):
    choices = made(seed)
    weights = np.eye(3) if corner else np.random.default_rng(seed).dirichlet(np.ones(3), 4)
    expected = [mixed_by_hand(choices, row, tau) for row in weights]
    assert_allclose(choices.mixed(weights, tau), expected, rtol=1e-12)  # both float64


def test_a_corner_is_the_expert():
    choices = made(0)
    sums = [
        rows.sum(axis=0) for rows in np.split(choices.log_probs.astype(np.float64), np.cumsum(choices.lengths)[:-1])
    ]
    for tau in (0, 1):
        assert_allclose(choices.mixed(np.eye(3), tau), np.transpose(sums), rtol=1e-12)


def summaries_by_hand(choices, scores):
    hits, weights, margins = [], [], []
    for example in np.unique(choices.examples):
        mine, right = scores[choices.examples == example], choices.right[choices.examples == example]
        hits.append(right[np.argmax(mine)])
        weights.append(softmax(mine)[right].sum())
        margins.append(mine[right].max() - mine[~right].max())
    return np.mean(hits), np.mean(weights), np.mean(margins)


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_summaries_equal_a_loop_over_examples(seed, block, monkeypatch):
    monkeypatch.setattr(answers, "_BLOCK", block)
    choices = made(seed)
    scores = choices.mixed(np.random.default_rng(seed).dirichlet(np.ones(3), 6), 0)
    found = choices.summaries(scores)
    for c in range(6):
        assert_allclose([values[c] for values in found], summaries_by_hand(choices, scores[c]), rtol=1e-12)


def test_by_hand():
    """Two examples under two experts: the first is right on the first, the second on the second."""
    log_probs = np.log([[0.9, 0.2], [0.1, 0.8], [0.3, 0.6], [0.7, 0.4]])
    choices = Choices(log_probs, np.ones(4, int), np.ones(4), np.array([0, 0, 5, 5]), np.array([True, False] * 2))
    found = choices.summaries(choices.mixed(np.array([[1, 0], [0, 1], [0.5, 0.5]]), 0))
    assert_array_equal(found.accuracy, [0.5, 0.5, 0.5])  # half of each: .55 to .45 and .45 to .55
    assert_allclose(found.expected, [(0.9 + 0.3) / 2, (0.2 + 0.6) / 2, (0.55 + 0.45) / 2], rtol=1e-12)


def test_a_tie_is_a_mistake_and_impossible_choices_are_lost():
    choices = Choices(np.zeros((2, 1)), np.ones(2, int), np.ones(2), np.zeros(2, int), np.array([True, False]))
    assert choices.summaries(np.zeros((1, 2))).accuracy == 0
    ruled_out = choices.summaries(np.array([[-np.inf, -3.0]]))
    assert (ruled_out.accuracy, ruled_out.expected, ruled_out.margin) == (0, 0, -np.inf)


def test_a_token_that_an_expert_rules_out():
    log_probs = np.array([[-np.inf, -1.0], [-2.0, -3.0]])
    choices = Choices(log_probs, np.ones(2, int), np.ones(2), np.zeros(2, int), np.array([True, False]))
    for tau in (0, 1):
        assert_allclose(choices.mixed(np.array([[1, 0], [0.5, 0.5]]), tau)[:, 0], [-np.inf, -1 - np.log(2)])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lengths": np.array([1, 2])}, "2 tokens for choices of 3"),
        ({"right": np.array([True, True])}, "example 0 has no wrong choice"),
        ({"right": np.array([False, False])}, "example 0 has no right choice"),
        ({"examples": np.array([1, 0])}, "do not stand together"),
    ],
)
def test_what_is_no_task(change, expected):
    whole = {
        "log_probs": np.zeros((2, 1)),
        "lengths": np.ones(2, int),
        "bytes": np.ones(2),
        "examples": np.zeros(2, int),
        "right": np.array([True, False]),
    }
    with pytest.raises(UserError, match=expected):
        Choices(**(whole | change))


def test_weights_and_exponents_that_are_none():
    with pytest.raises(UserError, match=r"tau=0\.5"):
        made(0).mixed(np.eye(3), 0.5)
    with pytest.raises(UserError, match="weights"):
        made(0).mixed(np.ones((1, 3)), 0)
