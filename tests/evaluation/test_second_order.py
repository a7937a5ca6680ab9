import dataclasses

import numpy as np
from numpy.testing import assert_allclose

from mde.evaluation import second_order
from mde.evaluation.mixture import Text
from mde.evaluation.second_order import rows_of

K, J, N = 4, 3, 6


def made(pull):
    rng = np.random.default_rng(0)
    log_probs = -rng.gamma(1.0, 3.0, (500, K))
    text = Text(log_probs, np.arange(500) % J, None, None, None, None)
    rows, tokens = rows_of(text, 0, np.ones(K, bool), np.arange(500) // 25)
    rows = rows.weigh(tokens, rng.dirichlet(np.ones(J), N), rng.integers(0, 3, (N, 20)))
    return dataclasses.replace(rows, pull=pull), rng.dirichlet(np.full(K, 3.0), N)


def test_gradients_and_hessians_are_those_of_the_values():
    """Central differences, whose own error is about the square of the step, 1e-10, over a smallest weight of .02."""
    rows, weights = made(np.array([0.3, 0.0, 0.1, 0.2]))
    everything = np.arange(N)
    model = rows.evaluate(weights, everything)
    for k in range(K):
        step = 1e-5 * np.eye(K)[k]
        more, less = rows.evaluate(weights + step, everything), rows.evaluate(weights - step, everything)
        assert_allclose((more.value - less.value) / 2e-5, model.gradient[:, k], rtol=1e-5)
        assert_allclose((more.gradient - less.gradient) / 2e-5, model.hessian[:, k], rtol=1e-4, atol=1e-5)


def test_blocks_threads_and_company_change_nothing(monkeypatch):
    rows, weights = made(np.zeros(K))
    whole = rows.evaluate(weights, np.arange(N))
    monkeypatch.setattr(second_order, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(second_order, "_BLOCKS", 2)
    for which in (np.arange(N), np.array([4]), np.array([0, 5])):
        part = rows.evaluate(weights[which], which)
        for field in ("value", "gradient", "hessian"):
            assert_allclose(getattr(part, field), getattr(whole, field)[which], rtol=1e-13)


def test_single_precision_is_right_to_its_rounding():
    """A hundred and more terms of 6e-8 each, which do not all err alike: 1e-6 of the largest entry holds them."""
    rows, weights = made(np.array([0.3, 0.0, 0.1, 0.2]))
    rows = dataclasses.replace(rows, log_probs=rows.log_probs - 5000)  # as sums over sequences are
    double, single = (rows.evaluate(weights, np.arange(N), dtype) for dtype in (np.float64, np.float32))
    for field in ("value", "gradient", "hessian"):
        expected = getattr(double, field)
        assert getattr(single, field).dtype == np.float64
        assert_allclose(getattr(single, field), expected, atol=1e-6 * np.abs(expected).max())
        assert np.abs(getattr(single, field) - expected).max() > 0


def test_a_sample_weighs_what_the_whole_does():
    rows, weights = made(np.zeros(K))
    sample = dataclasses.replace(rows, unit_counts=None).sample(3000)
    assert_allclose(
        sample.domain_weights @ np.bincount(sample.segment_ids), rows.domain_weights @ np.bincount(rows.segment_ids)
    )
    exact = dataclasses.replace(rows, unit_counts=None).evaluate(weights, np.arange(N))
    assert_allclose(sample.evaluate(weights, np.arange(N)).value, exact.value, rtol=0.1)


def test_a_sample_has_enough_of_a_small_domain():
    """Of 1 in 300 tokens a sample of 600 would have two; it has as many as of an average domain."""
    segment_ids = np.where(np.arange(30_000) % 300 == 7, 2, np.arange(30_000) % 2)
    text = Text(np.zeros((30_000, K)), segment_ids, None, None, None, None)
    rows, tokens = rows_of(text, 0, np.ones(K, bool), None)
    sample = rows.weigh(tokens, np.eye(3), None).sample(600)
    drawn = np.bincount(sample.segment_ids)
    assert drawn[2] == 200
    assert_allclose(drawn[:2], 300, atol=60)
    assert_allclose(sample.domain_weights @ drawn, 1)
    assert_allclose(rows.weigh(tokens, np.eye(3), None).least(), 1 / np.bincount(segment_ids))
