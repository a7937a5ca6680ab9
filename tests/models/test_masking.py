"""Masked language modelling: what is hidden, what is shown, and that an encoder sees both sides and no answer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.models import attention, decoder, huggingface, masking
from mde.models.config import DecoderConfig, preset
from mde.training.loss import loss, predictions
from mde.training.settings import TrainSettings
from mde.training.step import initial, schedule, train_step

CONFIG = preset("tiny", 64, objective="masked")
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 64, (64, 65)).astype(np.int32)
ONE = np.ones_like(TOKENS)  # every sequence is one document


def test_fifteen_in_a_hundred_are_hidden_eighty_of_them_behind_the_mask_token():
    targets, mask = jnp.asarray(TOKENS[:, 1:]), jnp.ones((64, 64), bool)
    shown, same, hidden = masking.drawn(CONFIG, targets, mask)
    n = hidden.size
    assert_array_equal(same, targets)
    # Binomial counts lie within four standard deviations of their mean but for one time in 16,000; the draw is fixed.
    assert abs(hidden.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / n)
    assert_array_equal(shown[~hidden], targets[~hidden])
    inside = np.asarray(shown)[np.asarray(hidden)]
    right = np.asarray(targets)[np.asarray(hidden)]
    masked, kept = inside == CONFIG.vocab_size, inside == right
    error = 4 * np.sqrt(0.25 / len(inside))
    assert abs(masked.mean() - 0.8) < error
    assert abs(kept.mean() - 0.1) < error
    others = inside[~masked & ~kept]
    assert len(np.unique(others)) > 20  # of 64 tokens, in some 60 draws
    assert ((others >= 0) & (others < 64)).all()


def test_masks_are_those_of_the_batch_and_spare_what_is_no_target():
    targets, mask = jnp.asarray(TOKENS[:, 1:]), jnp.asarray(RNG.random((64, 64)) < 0.5)
    first, again = (masking.drawn(CONFIG, targets, mask) for _ in range(2))
    jax.tree.map(assert_array_equal, first, again)
    assert not first.hidden[~mask].any()
    other = masking.drawn(CONFIG, targets[::-1], mask[::-1])  # the same sequences in another batch
    assert (other.hidden[::-1] != first.hidden).any()


def test_fixed_masks_go_with_the_text_and_come_off_again():
    mask = decoder.target_mask(ONE)
    text = masking.fixed(TOKENS, mask)
    shown, targets, hidden = masking.marked(CONFIG, jnp.asarray(text[:, 1:]))
    assert_array_equal(targets, TOKENS[:, 1:])
    assert_array_equal(hidden, text[:, 1:] < 0)
    assert_array_equal(hidden, decoder.scored(text, ONE, masked=True))
    assert (np.asarray(shown)[np.asarray(hidden)] == 64).all()
    # More text after it hides no other tokens in what was there before.
    assert_array_equal(masking.fixed(TOKENS[:10], mask[:10]), text[:10])


@pytest.fixture(scope="module")
def params():
    return decoder.init(CONFIG, 0)


def test_an_encoder_sees_both_sides_of_its_own_document_and_no_hidden_token(params):
    segments = np.concatenate([np.ones((1, 33), int), np.full((1, 32), 2)], axis=1)
    text = TOKENS[:1].copy()
    text[0, 10] = ~text[0, 10]
    log_probs = jax.jit(lambda tokens: decoder.token_log_probs(CONFIG, params, tokens, segments)[0, 9])
    before = log_probs(text)

    def changed(position: int) -> jax.Array:
        other = text.copy()
        other[0, position] = other[0, position] % 63 + 1
        return log_probs(other)

    assert changed(5) != before
    assert changed(20) != before
    assert changed(40) == before  # another document
    # Whatever token is hidden, the distribution over it is the same one: over the vocabulary and the mask token.
    total = sum(np.exp(log_probs(np.where(np.arange(65) == 10, ~np.int32(t), text))) for t in range(65))
    assert_allclose(total, 1, rtol=1e-5)


def test_the_causal_model_is_as_it_was(params):
    causal = dataclasses.replace(CONFIG, objective="causal")
    assert decoder.init(causal, 0)["embed"]["embedding"].shape == (64, 32)
    assert params["embed"]["embedding"].shape == (65, 32)
    assert CONFIG.parameters == causal.parameters + 32
    assert sum(x.size for x in jax.tree.leaves(params)) == CONFIG.parameters


def test_the_loss_is_the_mean_over_what_is_hidden(params):
    tokens, segments = jnp.asarray(TOKENS[:8]), jnp.asarray(ONE[:8])
    shown, targets, hidden = masking.drawn(CONFIG, tokens[:, 1:], decoder.target_mask(segments))
    logits = decoder.Decoder(CONFIG).apply({"params": params}, shown, segments[:, 1:])
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    expected = np.asarray(nll, np.float64)[np.asarray(hidden)].mean()
    assert_allclose(loss(CONFIG, params, tokens, segments)[1], expected, rtol=1e-5)
    assert predictions(CONFIG, tokens, segments) == hidden.sum()


def test_no_kernel_lets_the_future_through_or_holds_it_back():
    """All kernels that run here agree, with the past alone and with both sides."""
    shape, segments = (2, 32, 2, 8), jnp.asarray(np.repeat([[1, 2]], 2, axis=0).repeat(16, axis=1))
    q, k, v = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    for causal in (True, False):
        seen, mask = (attention.visible(kernel, segments, causal) for kernel in ("heads", "xla"))
        heads = attention.attend("heads", q, k, v, seen, causal)
        xla = attention.attend("xla", q, k, v, mask, causal)
        assert_allclose(heads, xla, atol=1e-5)
        last = attention.attend("heads", q, k.at[:, 15].add(1.0), v, seen, causal)
        assert bool((last[:, 0] == heads[:, 0]).all()) is causal


def test_an_encoder_is_not_exported_as_a_llama(params, tmp_path):
    with pytest.raises(UserError, match="an encoder is no LlamaForCausalLM"):
        huggingface.save(tmp_path / "model", CONFIG, params, 64)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_an_encoder_learns_what_stands_on_both_sides():
    """Tokens come six times in a row, so a hidden one stands beside itself; whoever has learnt nothing has log 64."""
    runs = np.repeat(RNG.integers(0, 64, (200, 11)), 6, axis=1)[:, :65].astype(np.int32)
    settings = TrainSettings(steps=200, batch_size=16, seq_len=64, learning_rate=1e-2, accumulate=2)
    state = initial(CONFIG, settings, 0)
    step = jax.jit(functools.partial(train_step, CONFIG, settings))
    losses = []
    for i in range(settings.steps):
        batch = jnp.asarray(runs[RNG.integers(0, len(runs), 16)])
        state, metrics = step(state, batch, jnp.ones_like(batch), schedule(settings)(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[:5]) > 3.5
    assert np.mean(losses[-20:]) < np.log(64) / 2
    text = masking.fixed(runs, np.ones((len(runs), 64), bool))
    log_probs = decoder.token_log_probs(CONFIG, state.params, jnp.asarray(text), jnp.ones_like(text))
    assert -np.asarray(log_probs)[text[:, 1:] < 0].mean() < np.log(64) / 2


def test_an_unknown_objective():
    with pytest.raises(ValueError, match="unknown objective 'maskd': did you mean 'masked'"):
        DecoderConfig(64, 32, 1, 2, 2, 64, objective="maskd")
