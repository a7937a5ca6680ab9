"""Update rules of DoReMi and DoGE against steps worked out in float64, and their gradients against explicit loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.models import decoder
from mde.models.config import preset
from mde.training.loss import loss, outputs, reading
from mde.training.loss import token_losses as token_losses_of
from mde.training.reweighting import (
    DoGE,
    DoReMi,
    alignment,
    doge_weights,
    domain_gradients,
    doremi_weights,
    excess,
    multiplied,
)
from mde.training.settings import TrainSettings
from mde.training.step import begin

NAMES = ("web", "code", "books")
MODEL = preset("tiny", 64)
SETTINGS = TrainSettings(steps=20, batch_size=6, seq_len=12, learning_rate=1e-2, loss_chunks=2)
PLACES = 2

# Float32 arithmetic of a few operations on numbers near 1, each good to 6e-8.
RULE = {"rtol": 1e-6, "atol": 1e-7}
# Float32 losses and gradients of some hundred tokens, summed in another order; they are near 4 and 1.
STEP = {"rtol": 2e-5, "atol": 2e-6}


def by_hand(weights, exponents):
    grown = np.asarray(weights, np.float64) * np.exp(np.asarray(exponents, np.float64))
    return grown / grown.sum()


def test_three_steps_of_doremi_by_hand():
    """With η = 1 and c = .1, from uniform weights of two domains."""
    weights, exact = jnp.full(2, 0.5), np.full(2, 0.5)
    for found in ([np.log(3), 0.0], [0.2, 0.7], [0.0, 0.0]):
        weights = doremi_weights(weights, jnp.array(found), 1.0, 0.1)
        exact = 0.9 * by_hand(exact, found) + 0.1 / 2
        assert_allclose(weights, exact, **RULE)
    first = doremi_weights(jnp.full(2, 0.5), jnp.array([np.log(3), 0.0]), 1.0, 0.1)
    assert_allclose(first, [0.9 * 0.75 + 0.05, 0.9 * 0.25 + 0.05], **RULE)
    assert_allclose(
        doremi_weights(jnp.full(2, 0.5), jnp.array([1.0, 0.0]), 2.0, 0.0), by_hand([0.5] * 2, [2, 0]), **RULE
    )


def test_a_step_of_doge_by_hand():
    weights, found = [0.5, 0.3, 0.2], [2.0, -1.0, 0.5]
    after = doge_weights(jnp.array(weights), jnp.array(found), 0.01, 0.05)
    assert_allclose(after, by_hand(weights, np.array(found) * 0.01 / 0.05), **RULE)
    assert_allclose(doge_weights(jnp.array(weights), jnp.array(found), 0.0, 0.05), weights, **RULE)  # no learning rate


@settings(deadline=None)  # the first of each length compiles
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=8),
    st.floats(0.001, 0.5),
    st.integers(0, 2**31),
)
def test_weights_stay_a_mixture_and_follow_the_order_of_their_scores(scores, smoothing, seed):
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(scores))).astype(np.float32)
    after = np.asarray(doremi_weights(weights, jnp.array(scores), 1.0, smoothing), np.float64)
    assert_allclose(after, (1 - smoothing) * by_hand(weights, scores) + smoothing / len(scores), rtol=2e-5, atol=1e-6)
    assert after.sum() == pytest.approx(1, abs=1e-6)
    assert after.min() >= smoothing / len(scores) * (1 - 1e-6)


def test_exponents_that_leave_float32_and_weights_of_zero():
    found = multiplied(jnp.array([0.5, 0.5, 0.0]), jnp.array([1e4, 1e4 - 1, 2e4]))
    assert_allclose(found, [*by_hand([1, 1], [1, 0]), 0], **RULE)


def test_excess_is_clipped_token_by_token_before_it_is_averaged():
    losses = jnp.array([[[3.0, 1.0], [2.0, 2.0]], [[5.0, 9.0], [4.0, 1.0]]])  # [places, domains, tokens]
    reference = jnp.array([[[2.0, 4.0], [2.0, 1.5]], [[5.5, 0.0], [1.0, 3.0]]])
    mask = jnp.array([[[1, 1], [1, 1]], [[1, 0], [1, 1]]], bool)
    # The first domain: 1, -3 → 0, -.5 → 0, one not counted; the second: 0, .5, 3, -2 → 0.
    assert_allclose(excess(losses, reference, mask), [1 / 3, 3.5 / 4], **RULE)
    assert_allclose(excess(losses, reference, mask & jnp.array([True, False])[:, None]), [1 / 3, 0], **RULE)


@pytest.fixture(scope="module")
def batch():
    """Six sequences of three domains, two each, with document bounds and padding."""
    rng = np.random.default_rng(0)
    segments = np.ones((PLACES, 3, 13), np.int32)
    segments[0, 0, 5:] = 2
    segments[1, 2, 4:] = 0
    return {"tokens": rng.integers(1, 64, (PLACES, 3, 13)).astype(np.int32), "segments": segments}


@pytest.fixture(scope="module")
def without_code(batch):
    """The same where the second domain has nothing but padding."""
    keep = np.array([1, 0, 1])[:, None]
    return {name: values * keep for name, values in batch.items()}


@pytest.fixture(scope="module")
def models():
    return decoder.init(MODEL, 0), decoder.init(MODEL, 1)


@functools.cache
def compiled(method):
    return jax.jit(functools.partial(method.step, MODEL, SETTINGS))


def token_losses(params, batch):
    """Losses and mask of each token [places, domains, L], from the model's own log-probs."""
    tokens, segments = (values.reshape(-1, 13) for values in batch.values())
    log_probs = jax.jit(functools.partial(decoder.token_log_probs, MODEL))(params, tokens, segments)
    mask = decoder.target_mask(segments)
    return (np.asarray(x).reshape(PLACES, 3, -1) for x in (-np.asarray(log_probs, np.float64), mask))


def assert_stepped_along(gradient, state, metrics):
    """AdamW's first moment after one step is a tenth of the clipped gradient."""
    norm = np.linalg.norm(gradient)
    assert_allclose(metrics["grad_norm"], norm, **STEP)
    found = flat(optax.tree_utils.tree_get(state.opt_state, "mu"))
    assert_allclose(found, 0.1 * gradient * min(1, SETTINGS.clip_norm / norm), **STEP)


@jax.jit
def loss_and_gradient(params, tokens, segments):
    return jax.value_and_grad(lambda params: loss(MODEL, params, tokens, segments)[0])(params)


def by_domain(params, batch):
    """Loss and gradient of each domain's sequences alone, in a loop."""
    return [loss_and_gradient(params, *(values[:, k] for values in batch.values())) for k in range(3)]


def flat(gradient, clip_norm=np.inf):
    """A gradient as one float64 vector, clipped."""
    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]).astype(np.float64)
    return vector * min(1, clip_norm / np.linalg.norm(vector))


def test_a_step_of_doremi_is_that_of_its_definition(batch, models):
    method = DoReMi(NAMES, eta=2.0, smoothing=0.01)
    state, metrics = compiled(method)(method.begin(begin(SETTINGS, models[0])), batch, 1e-2, models[1])
    (own, mask), (told, _) = token_losses(models[0], batch), token_losses(models[1], batch)
    exact = [np.maximum(own - told, 0)[:, k][mask[:, k]].mean() for k in range(3)]
    assert_allclose(state.scores, exact, **STEP)
    assert min(exact) > 0.1
    weights = 0.99 * by_hand([1 / 3] * 3, 2 * np.array(exact)) + 0.01 / 3
    assert_allclose(state.weights, weights, **STEP)
    assert_allclose([metrics[f"weight/{name}"] for name in NAMES], weights, **STEP)
    assert_allclose([metrics[f"excess/{name}"] for name in NAMES], exact, **STEP)
    means = [own[:, k][mask[:, k]].mean() for k in range(3)]
    assert_allclose(metrics["loss"], weights @ means, **STEP)
    gradients = [flat(gradient) for _, gradient in by_domain(models[0], batch)]
    assert_stepped_along(weights @ np.array(gradients), state, metrics)


def test_a_domain_that_is_not_in_a_batch_keeps_its_excess(batch, without_code, models):
    method = DoReMi(NAMES)
    before, _ = compiled(method)(method.begin(begin(SETTINGS, models[0])), batch, 0.0, models[1])
    after, metrics = compiled(method)(before, without_code, 0.0, models[1])
    assert after.scores[1] == before.scores[1] > 0
    assert_allclose(after.scores, before.scores, **STEP)  # the model did not move, nor did the other domains' text
    weights = (1 - 1e-3) * by_hand(before.weights, after.scores) + 1e-3 / 3
    assert_allclose(after.weights, weights, **STEP)
    assert np.isfinite(metrics["loss"])


def test_gradients_of_domains_are_those_of_a_loop_over_them(batch, models):
    tight = dataclasses.replace(SETTINGS, clip_norm=0.5)
    gradients, losses, counts = jax.jit(functools.partial(domain_gradients, MODEL, tight))(models[0], batch)
    values, exact = zip(*by_domain(models[0], batch), strict=True)
    rows = np.array([flat(gradient, 0.5) for gradient in exact])
    assert_allclose(np.linalg.norm(rows, axis=1), 0.5)  # so that clipping is seen
    for k in range(3):
        assert_allclose(flat(jax.tree.map(lambda g, k=k: g[k], gradients)), rows[k], **STEP)
    assert_allclose(losses, values, **STEP)
    assert_array_equal(counts, [11 + 12, 24, 12 + 3])
    assert_allclose(alignment(gradients, jnp.ones(3)), rows @ rows.sum(axis=0), **STEP)
    assert_allclose(alignment(gradients, jnp.array([0.0, 1, 0])), rows @ rows[1], **STEP)


@pytest.mark.parametrize("target", [None, "code"])
def test_a_step_of_doge_is_that_of_its_definition(target, batch, models):
    method = DoGE(NAMES, mu=0.1, target=target)
    state, metrics = compiled(method)(method.begin(begin(SETTINGS, models[0])), batch, 1e-2)
    values, gradients = zip(*by_domain(models[0], batch), strict=True)
    rows = np.array([flat(gradient, SETTINGS.clip_norm) for gradient in gradients])
    exact = rows @ (rows.sum(axis=0) if target is None else rows[1])
    weights = by_hand([1 / 3] * 3 if target is None else [0.5, 0, 0.5], exact * 1e-2 / 0.1)
    assert_allclose(state.scores, exact, **STEP)
    assert_allclose(state.weights, weights, **STEP)
    assert_allclose([metrics[f"alignment/{name}"] for name in NAMES], exact, **STEP)
    assert_allclose(metrics["loss"], weights @ np.array(values), **STEP)
    assert_stepped_along(weights @ rows, state, metrics)
    assert target is None or state.weights[1] == 0  # what is aimed at is not trained on


def test_a_domain_that_is_not_in_a_batch_keeps_its_alignment_and_moves_nothing(batch, without_code, models):
    method = DoGE(NAMES, mu=0.1)
    before, _ = compiled(method)(method.begin(begin(SETTINGS, models[0])), batch, 0.0)
    after, metrics = compiled(method)(before, without_code, 1e-2)
    assert after.scores[1] == before.scores[1]
    rows = np.array([flat(g, SETTINGS.clip_norm) for _, g in by_domain(models[0], batch)]) * [[1], [0], [1]]
    exact = np.where([True, False, True], rows @ rows.sum(axis=0), before.scores)
    weights = by_hand(before.weights, exact * 1e-2 / 0.1)
    assert_allclose(after.weights, weights, **STEP)
    assert_allclose(metrics["grad_norm"], np.linalg.norm(weights @ rows), **STEP)


@pytest.mark.slow
def test_encoders_are_compared_on_the_same_masks(batch):
    """With itself for a reference nothing is in excess; with another model only hidden tokens count."""
    config = preset("tiny", 64, objective="masked")
    models = decoder.init(config, 0), decoder.init(config, 1)
    method = DoReMi(NAMES)
    step = jax.jit(functools.partial(method.step, config, SETTINGS))
    same, metrics = step(method.begin(begin(SETTINGS, models[0])), batch, 1e-2, models[0])
    assert_array_equal(same.scores, 0)
    assert_allclose(same.weights, 1 / 3, **RULE)
    tokens, segments = (values.reshape(-1, 13) for values in batch.values())
    shown, documents, mask = reading(config, tokens, segments)
    own, told = (
        np.asarray(token_losses_of(1, *outputs(config, params, shown, documents), tokens[:, 1:])) for params in models
    )
    by_domain = lambda values: np.asarray(values, np.float64).reshape(PLACES, 3, -1).swapaxes(0, 1).reshape(3, -1)  # noqa: E731
    mask, own, gap = by_domain(mask) > 0, by_domain(own), by_domain(np.maximum(own - told, 0))
    assert 0 < mask.sum() < 24  # some 15% of the targets
    assert_allclose(
        metrics["loss"], np.mean([own[k][mask[k]].mean() if mask[k].any() else 0 for k in range(3)]), **STEP
    )
    other, _ = step(method.begin(begin(SETTINGS, models[0])), batch, 1e-2, models[1])
    assert_allclose(other.scores, [gap[k][mask[k]].mean() if mask[k].any() else 0 for k in range(3)], **STEP)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DoReMi(NAMES, eta=0.0), r"eta=0\.0 must be positive"),
        (lambda: DoReMi(NAMES, smoothing=1.0), r"smoothing=1\.0, expected a share from 0 up to 1"),
        (lambda: DoGE(NAMES, mu=-1.0), r"mu=-1\.0 must be positive"),
        (lambda: DoGE(NAMES, target="cod"), "unknown target 'cod': did you mean 'code'"),
    ],
)
def test_constants_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
