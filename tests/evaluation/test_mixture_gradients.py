import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special

from mde.errors import UserError
from mde.evaluation import MixtureLosses, mixture_nll

K, J = 4, 3
SLOW = pytest.mark.slow  # more programs to compile
# Relative to each entry: float32 probabilities, a matmul over tokens and a reciprocal, a rounding of 6e-8 each.
RELATIVE = 2e-6


def text(widest, count=600, seed=0):
    rng = np.random.default_rng(seed)
    wide = rng.uniform(0, widest, (count, K)) * (rng.random((count, 1)) < 0.5)
    log_probs = np.float32(-rng.exponential(2.0, (count, 1)) - wide)
    return log_probs, np.sort(np.arange(count) % J), np.arange(count) // 20


def mixtures():
    rng = np.random.default_rng(1)
    edges = np.eye(K) * 0.5 + np.roll(np.eye(K), 1, axis=1) * 0.5
    tiny = np.eye(K) * (1 - K * 1e-6) + 1e-6
    return np.concatenate([np.eye(K), edges, tiny, rng.dirichlet(np.ones(K), 4)])


def analytic(log_probs, segment_ids, weights):
    """−mean of p_k / Σ_l λ_l p_l over each domain's tokens, float64, [C, J, K]."""
    probs = np.exp(np.float64(log_probs))
    ratios = probs[None] / (weights @ probs.T)[..., None]
    return -np.stack([ratios[:, segment_ids == j].mean(axis=1) for j in range(J)], axis=1)


@pytest.mark.parametrize("widest", [3.0, 80.0])
def test_derivatives_equal_float64_inside_on_faces_and_in_corners(widest):
    log_probs, segment_ids, _ = text(widest)
    weights = mixtures()
    losses = MixtureLosses(log_probs, segment_ids)
    values, slopes = losses.value_and_grad(weights)
    assert slopes.shape == (len(weights), J, K)
    assert slopes.dtype == values.dtype == np.float64
    assert_allclose(slopes, analytic(log_probs, segment_ids, weights), rtol=RELATIVE)
    assert_allclose(values, losses(weights), rtol=0, atol=0)


def test_shares_too_small_for_float32_have_their_derivatives_too():
    log_probs, segment_ids, _ = text(60.0)
    weights = np.eye(K) * (1 - K * 1e-25) + 1e-25
    slopes = MixtureLosses(log_probs, segment_ids).value_and_grad(weights)[1]
    assert_allclose(slopes, analytic(log_probs, segment_ids, weights), rtol=RELATIVE)


def test_a_derivative_that_float32_cannot_hold_is_infinite_and_the_others_stay_exact():
    log_probs = np.array([[-100.0, 0.0]])
    slopes = MixtureLosses(log_probs, [0]).value_and_grad([[1.0, 0.0]])[1]
    assert_allclose(slopes, [[[-1.0, -np.inf]]], rtol=RELATIVE)


def test_weights_times_derivatives_are_minus_one():
    """Σ_k λ_k ∂/∂λ_k log Σ_k λ_k p_k = 1, whatever the text."""
    log_probs, segment_ids, _ = text(9.0, seed=3)
    weights = mixtures()
    slopes = MixtureLosses(log_probs, segment_ids).value_and_grad(weights)[1]
    assert_allclose(np.einsum("cjk,ck->cj", slopes, weights), -1, rtol=RELATIVE)


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_derivatives_equal_finite_differences(tau):
    """Central differences along the simplex; losses are good to 1e-7, so a step of 1e-2 leaves 1e-5 of that and the
    third derivative's share, which halving the step shows to be as small."""
    log_probs, segment_ids, sequence_ids = text(3.0)
    losses = MixtureLosses(log_probs, segment_ids, sequence_ids)
    rng = np.random.default_rng(5)
    weights, direction = np.full((1, K), 1 / K), rng.normal(size=K)
    direction -= direction.mean()
    slope = losses.value_and_grad(weights, tau)[1] @ direction
    step = lambda h: (losses(weights + h * direction, tau) - losses(weights - h * direction, tau)) / (2 * h)  # noqa: E731
    coarse, fine = step(1e-2), step(5e-3)
    assert_allclose((4 * fine - coarse) / 3, slope, rtol=0, atol=1e-4)
    assert np.abs(slope).min() > 1e-3  # far above the tolerance


def prepared(widest):
    log_probs, segment_ids, sequence_ids = text(widest, seed=2)
    return MixtureLosses(log_probs, segment_ids, sequence_ids)


@pytest.fixture(scope="module")
def losses():
    return prepared(9.0)


@pytest.mark.parametrize(("widest", "tau"), [(9.0, 0.0), *(pytest.param(60.0, t, marks=SLOW) for t in (0.0, 0.1, 1.0))])
def test_traced_losses_equal_those_of_arrays(widest, tau):
    weights, losses = mixtures(), prepared(widest)
    found = jax.jit(lambda w: losses(w, tau))(weights)
    assert found.dtype == jnp.float32
    assert_allclose(found, losses(weights, tau), rtol=3e-7, atol=1e-6)  # the result itself is rounded to float32


@pytest.mark.parametrize(
    ("widest", "first"),  # with corners, and only where weights are large
    [(9.0, 0), pytest.param(60.0, 0, marks=SLOW), pytest.param(60.0, -4, marks=SLOW)],
)
def test_jax_derivatives_equal_those_of_arrays(widest, first):
    weights, losses = mixtures()[first:], prepared(widest)
    slopes = losses.value_and_grad(weights)[1]
    single = jnp.float32(weights)
    assert_allclose(jax.grad(lambda w: losses(w).sum())(single), slopes.sum(axis=1), rtol=RELATIVE)
    assert_allclose(jax.jit(jax.grad(lambda w: losses(w)[:, 1].sum()))(single), slopes[:, 1], rtol=RELATIVE)
    for jacobian in (jax.jacrev, jax.jacfwd):
        assert_allclose(jacobian(losses)(single[-1]), slopes[-1], rtol=RELATIVE)


@SLOW
def test_vmap_and_value_and_grad(losses):
    weights = jnp.float32(mixtures()[-4:])
    one_by_one = jax.vmap(jax.value_and_grad(lambda w: losses(w).mean()))(weights)
    values, slopes = losses.value_and_grad(mixtures()[-4:])
    assert_allclose(one_by_one[0], values.mean(axis=1), rtol=1e-6)
    assert_allclose(one_by_one[1], slopes.mean(axis=1), rtol=RELATIVE)


def test_mixture_nll_takes_traced_weights():
    log_probs, segment_ids, _ = text(3.0)
    weights = mixtures()
    slopes = jax.grad(lambda w: mixture_nll(log_probs, segment_ids, w).sum())(jnp.float32(weights))
    assert_allclose(slopes, analytic(log_probs, segment_ids, weights).sum(axis=1), rtol=RELATIVE)


def test_gradient_descent_on_the_simplex_finds_the_domain_that_the_text_is_of():
    log_probs = np.log(np.where(np.arange(400)[:, None] % 2 == np.arange(2), 0.8, 0.1))
    losses = MixtureLosses(log_probs, np.zeros(400, int))

    @jax.jit
    def step(logits):
        return logits - jax.grad(lambda x: losses(jax.nn.softmax(x))[0])(logits)

    logits = jnp.array([2.0, -1.0])
    for _ in range(200):
        logits = step(logits)
    assert_allclose(jax.nn.softmax(logits), [0.5, 0.5], atol=1e-3)


def test_traced_weights_need_text_that_fits():
    log_probs, segment_ids, _ = text(3.0)
    with pytest.raises(UserError, match="memory=1000 does not hold 600 tokens"):
        jax.jit(MixtureLosses(log_probs, segment_ids, memory=1000))(mixtures())


@pytest.mark.parametrize("tau", [0.0, pytest.param(0.1, marks=SLOW), pytest.param(1.0, marks=SLOW)])
@pytest.mark.parametrize("total", [1e-5, 0.3, 1e6])
def test_traced_weights_of_any_sum_give_the_unnormalised_mixture(total, tau):
    """Float64 log-sum-exp of λ_k p_k as it stands: the loss moves by log of the sum, the gradient by its inverse."""
    log_probs, segment_ids, sequence_ids = text(9.0, seed=2)
    weights = np.float64(np.float32(mixtures() * total))
    losses = MixtureLosses(log_probs, segment_ids, sequence_ids)
    value = lambda w: -_log_sum(np.float64(log_probs), segment_ids, sequence_ids, w, tau)  # noqa: E731
    expected = np.array([value(w) for w in weights])
    # A loss of 14 nats and one of single precision: 14 × 6e-8, and as much again for the logarithm of the sum.
    found = jax.jit(lambda w: losses(w, tau))(weights)
    assert_allclose(found, expected, rtol=3e-7, atol=2e-6)
    if tau == 0:
        slopes = jax.grad(lambda w: losses(w).sum())(jnp.float32(weights))
        assert_allclose(slopes, analytic(log_probs, segment_ids, weights).sum(axis=1), rtol=RELATIVE)


def _log_sum(log_probs, segment_ids, sequence_ids, weights, tau):
    """[J] mean log-probabilities per token in float64 for weights [K]; τ as in `MixtureLosses`."""
    before = np.zeros_like(log_probs)
    for s in np.unique(sequence_ids):
        here = sequence_ids == s
        before[here] = np.cumsum(log_probs[here], axis=0) - log_probs[here]
    mixed = lambda logs: special.logsumexp(logs, axis=1, b=weights)  # noqa: E731
    if tau == 1:  # telescopes: one term per sequence
        last = np.append(sequence_ids[1:] != sequence_ids[:-1], True)
        terms = np.where(last, mixed(before + log_probs), 0)
    else:
        terms = mixed(tau * before + log_probs) - (mixed(tau * before) if tau else 0)
    return np.bincount(segment_ids, terms) / np.bincount(segment_ids)


def test_traced_weights_that_are_all_zero_rule_every_token_out(losses):
    assert np.isposinf(np.asarray(jax.jit(losses)(jnp.zeros((1, K))))).all()
