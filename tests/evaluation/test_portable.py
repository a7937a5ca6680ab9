"""Scored text that travels: the same losses from 16 bits, or from pseudo-tokens with a stated error."""

import numpy as np
import pytest

from mde.evaluation import mixture_nll, portable
from mde.optimization import simplex


def losses(text: portable.Portable, weights: np.ndarray) -> np.ndarray:
    """What the page computes, in float64."""
    mixed = np.log(weights @ np.exp(-text.step * text.logs.astype(np.float64)).T)
    columns = []
    for j, offset in enumerate(text.offsets):
        mine = text.domains == j
        columns.append(offset - mixed[:, mine] @ text.counts[mine])
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    log_probs = rng.normal(-4, 1, (6000, 1)) + rng.normal(0, 1.5, (6000, 4))
    return np.minimum(log_probs, 0).astype(np.float32), np.sort(rng.integers(0, 3, 6000))


def test_every_token_is_kept_where_there_are_few(scored):
    weights = np.concatenate([simplex.space_filling(50, 4, seed=1), simplex.corners(4)])
    text = portable.portable(*scored)
    assert len(text.logs) == 6000
    # A logarithm is off by at most half a step of 2e-4; means over 2,000 tokens by a hundredth of that, and the
    # corners, where all errors are of one expert, hardly more.
    np.testing.assert_allclose(losses(text, weights), mixture_nll(*scored, weights), atol=1e-5)


def test_more_text_becomes_pseudo_tokens_of_a_stated_error(scored, monkeypatch):
    monkeypatch.setattr(portable, "MOST", 1000)
    weights = simplex.space_filling(200, 4, seed=1)
    text = portable.portable(*scored)
    off = np.abs(losses(text, weights) - mixture_nll(*scored, weights)).max(axis=0)
    assert (off > 0).all()
    assert (off <= text.error).all()
    assert text.error.max() < 0.1


def test_a_token_that_an_expert_finds_impossible_stays_a_number(scored):
    log_probs, owners = scored[0].copy(), scored[1]
    log_probs[:3, 1] = -np.inf
    inside = simplex.space_filling(20, 4, seed=2)
    text = portable.portable(log_probs, owners)
    # Half a step is 6e-4 nats now, and its mean over 2,000 tokens a hundredth of that.
    np.testing.assert_allclose(losses(text, inside), mixture_nll(log_probs, owners, inside), atol=5e-5)
    assert np.isfinite(losses(text, simplex.corners(4))).all()
