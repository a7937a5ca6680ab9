import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.models import decoder
from mde.models.config import preset
from mde.training.loss import loss
from mde.training.runs import Run
from mde.training.settings import TrainSettings
from mde.training.step import begin, optimizer, schedule, train_step

MODEL = preset("tiny", 64)
SETTINGS = TrainSettings(steps=20, batch_size=4, seq_len=16, learning_rate=1e-2, warmup_steps=4)


@pytest.fixture(scope="module")
def loss_and_gradient():
    return jax.jit(jax.value_and_grad(lambda *arguments: loss(MODEL, *arguments)[0]))


@pytest.fixture(scope="module")
def params():
    return decoder.init(MODEL, 0)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    segments = np.ones((4, 17), np.int32)
    segments[0, 5:] = 2
    segments[1, 3:] = 0
    return rng.integers(1, 64, (4, 17)), segments


def test_the_loss_is_the_mean_over_scored_targets_of_all_sequences_together(params, batch, loss_and_gradient):
    tokens, segments = batch
    log_probs = np.asarray(
        jax.jit(functools.partial(decoder.token_log_probs, MODEL))(params, tokens, segments), np.float64
    )
    scored = [(b, t) for b in range(4) for t in range(16) if segments[b, t] == segments[b, t + 1] > 0]
    assert len(scored) == 15 + 2 + 16 + 16
    expected = -np.mean([log_probs[b, t] for b, t in scored])
    # A float32 mean of 49 terms of about 4: a few times 6e-8 * 4.
    assert_allclose(loss_and_gradient(params, tokens, segments)[0], expected, rtol=1e-6)


def test_a_batch_of_padding_has_loss_zero_and_no_gradient(params, loss_and_gradient):
    value, grads = loss_and_gradient(params, np.zeros((4, 17), int), np.zeros((4, 17), np.int32))
    assert value == 0
    jax.tree.map(lambda g: assert_array_equal(g, 0), grads)


@pytest.fixture(scope="module")
def step():
    return jax.jit(functools.partial(train_step, MODEL, SETTINGS))


def test_a_step_reports_the_loss_before_it_and_repeated_steps_learn_the_batch(params, batch, step, loss_and_gradient):
    state, losses = begin(SETTINGS, params), []
    for rate in schedule(SETTINGS)(np.arange(SETTINGS.steps)):
        state, metrics = step(state, *batch, rate)
        losses.append(float(metrics["loss"]))
    # Two programs of the same numbers differ by rounding only.
    assert_allclose(losses[0], loss_and_gradient(params, *batch)[0], rtol=1e-6)
    assert losses[0] == losses[1]  # the first step of the warm-up has learning rate 0
    assert losses[-1] < losses[0] - 1


def test_decay_spares_norms_and_gradients_are_clipped():
    params = {"final_norm": {"scale": jnp.full(3, 2.0)}, "out": {"kernel": jnp.full((3, 3), 2.0)}}
    rate = 0.25
    update, _ = _update(params, jax.tree.map(jnp.zeros_like, params), rate)  # nothing but decay is left
    assert_array_equal(update["final_norm"]["scale"], 0)
    assert_allclose(update["out"]["kernel"], -rate * SETTINGS.weight_decay * 2.0, rtol=1e-6)

    large = jax.tree.map(lambda x: jnp.full_like(x, 1e3), params)
    _, state = _update(params, large, rate)
    (mean,) = (s.mu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    norm = np.sqrt(sum(np.sum(np.square(m)) for m in jax.tree.leaves(mean)))
    assert_allclose(norm, (1 - 0.9) * SETTINGS.clip_norm, rtol=1e-5)


def _update(params, grads, rate):
    one = optimizer(SETTINGS, rate)
    return one.update(grads, one.init(params), params)


def test_at_a_rate_of_zero_parameters_stay_as_they_are_to_the_bit(params, batch, step):
    state, _ = step(begin(SETTINGS, params), *batch, 0.0)
    jax.tree.map(assert_array_equal, state.params, params)


def test_accumulated_gradients_are_those_of_the_whole_batch(params, batch, step):
    """To rounding, though the parts have unlike numbers of targets."""
    state = begin(SETTINGS, params)
    parts = jax.jit(functools.partial(train_step, MODEL, dataclasses.replace(SETTINGS, accumulate=2)))
    (one, whole), (two, accumulated) = step(state, *batch, 1e-3), parts(state, *batch, 1e-3)
    for name in whole:
        assert_allclose(accumulated[name], whole[name], rtol=1e-6)
    mean = lambda state: optax.tree_utils.tree_get(state.opt_state, "mu")  # noqa: E731
    # Sums of 2,000 float32 products in another order, of gradients whose norm is clipped to 1.
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=0, atol=1e-7), mean(one), mean(two))


def test_the_norm_of_the_gradient_is_reported_before_it_is_clipped(params, batch, step, loss_and_gradient):
    _, metrics = step(begin(SETTINGS, params), *batch, 0.0)
    _, grads = loss_and_gradient(params, *batch)
    expected = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
    assert_allclose(metrics["grad_norm"], expected, rtol=1e-5)


def test_schedules_by_hand():
    settings = TrainSettings(100, 1, 1, learning_rate=2.0, warmup_steps=10, final_fraction=0.1)
    cosine = schedule(settings)
    assert_allclose([cosine(s) for s in (0, 5, 10, 55, 100)], [0, 1, 2, 1.1, 0.2], rtol=1e-6, atol=1e-7)
    wsd = schedule(dataclasses.replace(settings, schedule="wsd", decay_fraction=0.2))
    assert_allclose([wsd(s) for s in (0, 5, 10, 50, 80, 90, 100)], [0, 1, 2, 2, 2, 1.1, 0.2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_runs_shorter_than_the_warm_up_have_a_schedule(steps, kind):
    settings = dataclasses.replace(SETTINGS, steps=steps, warmup_steps=10, schedule=kind)
    assert np.isfinite(schedule(settings)(np.arange(steps))).all()


@pytest.mark.parametrize("field", ["steps", "batch_size", "seq_len", "learning_rate", "clip_norm"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_settings_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"{field}={value}"):
        dataclasses.replace(SETTINGS, **{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"loss_chunks": 3}, "loss_chunks=3 does not divide seq_len=16"),
        ({"accumulate": 3}, "accumulate=3 does not divide batch_size=4"),
        ({"z_loss": -1.0}, "z_loss=-1.0 must not be negative"),
        ({"weight_decay": -1}, "weight_decay=-1 must not be negative"),
        ({"warmup_steps": -5}, "warmup_steps=-5 must not be negative"),
        ({"final_fraction": float("nan")}, "final_fraction=nan must not be negative"),
        ({"z_loss": "1e-4"}, "z_loss='1e-4': expected a number"),
        ({"weight_decay": "0.1"}, "weight_decay='0.1': expected a number"),
        ({"clip_norm": True}, "clip_norm=True: expected a number"),
        ({"accumulate": 4.0}, "accumulate=4.0: expected a whole number"),
        ({"decay_fraction": 1.5}, "decay_fraction=1.5 must lie between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **change)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_that_nothing_can_be_drawn_from_are_refused(seed):
    assert np.int32(Run("run", (1.0,), 2**31 - 1).seed) > 0
    with pytest.raises(UserError, match=f"seed={seed} must lie between 0 and 2147483647"):
        Run("run", (1.0,), seed)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(UserError, match="unknown training setting 'z_los': did you mean 'z_loss'"):
        TrainSettings.from_dict({**dataclasses.asdict(SETTINGS), "z_los": 1.0})


def test_tokens_are_counted_over_all_steps():
    assert SETTINGS.tokens == 20 * 4 * 16
