import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mde.evaluation import merged_nll
from mde.evaluation.merged import merge

# Nats per token: parameters averaged in another order, and a mean over a few hundred log-probs of about 5, in float32.
TOLERANCE = 1e-5
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.3, 0.5], [1 / 3] * 3])  # no multiple of two devices


@pytest.fixture(scope="module")
def found(config, models, data):
    return merged_nll(config, models, data, WEIGHTS, batch_size=8)


def average(models, weights):
    """In float64."""
    return jax.tree.map(lambda *xs: sum(w * np.float64(x) for w, x in zip(weights, xs, strict=True)), *models)


def test_corners_are_the_experts_own_losses(found, models, data, by_hand):
    own = [data.losses(by_hand(model)) for model in models]
    assert_allclose(found[:3], own, rtol=0, atol=TOLERANCE)
    assert np.abs(np.diff(own, axis=0)).min() > 100 * TOLERANCE  # the experts do differ


@pytest.mark.parametrize("candidate", [3, 4])
def test_inside_it_is_the_averaged_model_run_by_hand(candidate, found, models, data, by_hand):
    params = jax.tree.map(np.float32, average(models, WEIGHTS[candidate]))
    assert_allclose(found[candidate], data.losses(by_hand(params)), rtol=0, atol=TOLERANCE)


def test_losses_are_one_a_candidate_and_domain_in_float64(found, data):
    assert found.shape == (len(WEIGHTS), len(data.domains))
    assert found.dtype == np.float64


@pytest.mark.parametrize("candidates", [[2], [0, 3]])
def test_a_candidate_does_not_depend_on_the_others_nor_on_the_number_of_devices(
    candidates, found, config, models, data
):
    some = merged_nll(config, models, data, WEIGHTS[candidates], batch_size=8)
    assert_allclose(some, found[candidates], rtol=0, atol=TOLERANCE)


def test_losses_do_not_depend_on_the_batch_size(found, config, models, data):
    other = merged_nll(config, models, data, WEIGHTS[:2], batch_size=len(data.tokens) + 3)
    assert_allclose(other, found[:2], rtol=0, atol=TOLERANCE)


def test_an_expert_of_weight_zero_has_no_say(config, models, data, found):
    strange = [*models[:2], jax.tree.map(lambda x: 1e3 * x, models[2])]
    other = merged_nll(config, strange, data, WEIGHTS[:2], batch_size=8)
    assert_array_equal(other, merged_nll(config, models, data, WEIGHTS[:2], batch_size=8))


def test_merge_averages_every_leaf_in_float32(models):
    half = jax.tree.map(lambda *xs: np.stack(xs).astype(np.float16), *models)
    merged = merge(half, np.float32([0.2, 0.3, 0.5]))
    expected = average([jax.tree.map(lambda x, k=k: x[k], half) for k in range(3)], [0.2, 0.3, 0.5])
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(merged))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6, atol=1e-7), merged, expected)
